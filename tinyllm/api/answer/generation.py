"""One completion on its way: asks the engine, and reads its events into updates of its choices.

Both ways of answering, whole and streamed, go through here: a whole answer is folded from the
chunks that a stream would have sent.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinyllm.api.answer.asking import Caller, failed, out_of_time, stopped, submit
from tinyllm.api.answer.echo import Echo, echo
from tinyllm.api.answer.event_queue import ClientGone, LoopWaker
from tinyllm.api.answer.reader import ChoiceReader, Piece
from tinyllm.api.answer.tracing import StepWriter, TraceWorker, engine_params
from tinyllm.api.contract.answers import Finish, Usage
from tinyllm.api.contract.errors import (
    invalid,
)
from tinyllm.api.limits import MAX_INSIDE
from tinyllm.api.prompt.plan import Plan
from tinyllm.engine.types import (
    Done,
    Event,
    Finished,
    Request,
    Started,
    Token,
)
from tinyllm.inside.trace_file import StepRecord

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from tinyllm.api.answer.looking_along import Inside

LOOK_AGAIN = 0.25  # seconds after which a wait for a look inside is thought over


@dataclass
class Update:
    """What happened to one choice; `finish` on its last update."""

    index: int
    piece: Piece
    finish: Finish | None = None
    confidence: float | None = None  # on the last update


class Generation:
    """One completion.

    Args:
        plan: what to do.
        request_id: also the completion's id.
        key: the owner.
        session: the client's session, if any.
        deadline: time.monotonic() seconds, or None.
        trace_worker: where a trace's looks inside are made.
        share: whose part of the server it takes.
    """

    def __init__(
        self,
        plan: Plan,
        request_id: str,
        *,
        key: str = "",
        session: str | None = None,
        deadline: float | None = None,
        trace_worker: TraceWorker | None = None,
        share: str = "",
    ) -> None:
        self.plan = plan
        self.id = request_id
        n, trace = plan.n, plan.trace
        self._trace_worker = trace_worker
        self._deadline = deadline
        self._inside: Inside | None = None
        self._n_inside = MAX_INSIDE // n  # steps of a choice that are looked into
        self._writers: list[StepWriter] = []
        if trace is not None:
            n_prompt = len(plan.prompt.tokens)
            self._writers = [
                StepWriter(
                    plan.model.tokenizer,
                    n_prompt,
                    guesses=not plan.hide_thought,
                    start=plan.start(i) if trace.whole else None,
                )
                for i in range(n)
            ]
        self._guides = plan.guides() if plan.guided else None
        self._request = Request(
            id=request_id,
            prompt=plan.prompt,
            params=plan.params,
            max_tokens=plan.max_tokens,
            n=n,
            # A think block may end with what ends a turn: the guide tells the two apart.
            stop_ids=frozenset() if plan.think is not None else plan.stop_ids,
            top_logprobs=plan.top_logprobs,
            trace=None if trace is None else engine_params(trace, n),
            guide=self._guides,
            key=key,
            share=share,
            session=session,
            deadline=deadline,
            keep=True,
            score_from=1 if plan.score_prompt else None,
        )
        self._readers = [
            ChoiceReader(
                plan.model.tokenizer,
                think=plan.think,
                calls=plan.calls,
                stops=plan.stops,
                silent=plan.model.silent_ids | plan.stop_ids,
                ends=plan.stop_ids | plan.model.stop_ids,
                logprobs=plan.logprobs,
            )
            for _ in range(n)
        ]
        self._called = [False] * n
        self._early: list[Event] = []
        self.n_cached = 0
        self.started: float | None = None  # when the prompt had been taken in, monotonic
        self.first_token: float | None = None
        self.finishes: list[Finish] = []

    def submit(self, waker: LoopWaker, caller: Caller) -> None:
        """Queue it. Raises ApiError."""
        plan, trace = self.plan, self.plan.trace
        if trace is not None and trace.inside:
            readable = plan.model.readable
            # The plan has checked that both are there.
            assert self._trace_worker is not None and readable is not None
            leave = self._trace_worker.take_place(self._request.share)
            from tinyllm.api.answer.looking_along import Inside

            self._inside = Inside(
                readable, plan.model.tokenizer, plan.prompt, trace, self._request.n, leave
            )
            caller.attach(self._inside)
        self._event_queue = submit(self.plan.model.engine, self._request, waker, caller)

    async def begun(self, timeout: float) -> None:
        """Wait for the first events, `timeout` seconds at most, so that early faults show."""
        self._early = await self._event_queue.get(timeout)
        for event in self._early:
            if isinstance(event, Finished):
                self._check(event)

    async def updates(self, ping: float | None = None) -> AsyncIterator[Update | None]:
        """The updates of all choices as they come; None after `ping` seconds without any.

        Raises ApiError for a fault on the way, ClientGone when nobody listens.
        """
        events = self._early
        while True:
            for event in events:
                if isinstance(event, Done):
                    return
                if isinstance(event, Started) and self.plan.echo:
                    begin = await self._echo(event)
                    for index in range(self.plan.n):
                        yield Update(index, Piece(echo=begin))
                update = self._read(event)
                if update is None:
                    continue
                for step in update.piece.steps:
                    if self._inside is None or step.index >= self._n_inside:
                        continue
                    assert isinstance(event, Token) and self._trace_worker is not None
                    drawn = self._writers[event.index].drawn[: step.index]
                    if self._trace_worker.closed:
                        raise stopped()
                    look = self._trace_worker.look(self._inside, event, step, drawn)
                    async for _ in self._pings(look, ping):
                        yield None
                    update.piece.steps = [look.result()]
                yield update
            events = await self._event_queue.get(ping)
            if not events:
                yield None

    async def _pings(
        self, look: asyncio.Future[StepRecord], ping: float | None
    ) -> AsyncIterator[None]:
        """Wait for a look inside; a ping every `ping` seconds. Raises ApiError, ClientGone."""
        pinged = time.monotonic()
        try:
            while not look.done():
                await asyncio.wait([look], timeout=min(LOOK_AGAIN, ping or LOOK_AGAIN))
                now = time.monotonic()
                if self._event_queue.gone:
                    raise ClientGone
                if self._deadline is not None and now > self._deadline:
                    raise out_of_time(started=True)
                if self._trace_worker is None or self._trace_worker.closed:
                    raise stopped()
                if ping is not None and now - pinged >= ping:
                    pinged = now
                    yield None
            if look.cancelled():
                raise stopped()
        finally:
            look.cancel()  # if nobody waits for it any more

    def _read(self, event: Event) -> Update | None:
        if isinstance(event, Token):
            if self.first_token is None:
                self.first_token = time.monotonic()
            reader = self._readers[event.index]
            n_thought = reader.n_thought
            piece = reader.push(event)
            if self._writers:
                step = self._writers[event.index].write(event)
                if not (self.plan.hide_thought and reader.n_thought > n_thought):
                    piece.steps = [step]
            self._called[event.index] |= bool(piece.calls)
            return Update(event.index, piece)
        if isinstance(event, Started):
            self.started = time.monotonic()
            self.n_cached = event.cached_tokens
            return None
        if isinstance(event, Finished):
            return self._finish(event)
        return None

    async def _echo(self, event: Started) -> Echo:
        """The prompt as the beginning of an answer."""
        plan = self.plan
        return await echo(plan.prompt, plan.model.tokenizer, event if plan.score_prompt else None)

    def _finish(self, event: Finished) -> Update:
        self._check(event)
        reader = self._readers[event.index]
        piece = reader.finish()
        called = self._called[event.index] | bool(piece.calls)
        finish: Finish = "length"
        cut = self._guides is not None and self._guides.cut(event.index)
        if event.reason == "stop" and not cut:
            finish = "tool_calls" if called else "stop"
        self.finishes.append(finish)
        confidence = _confidence(reader.sum_logprob, reader.n_tokens)
        return Update(event.index, piece, finish, confidence)

    def _check(self, event: Finished) -> None:
        """ApiError unless the choice came to a proper end."""
        if self._guides is not None and self._guides.error(event.index):
            message = "The JSON Schema turned out too complex to follow; simplify it."
            raise invalid(message, *self.plan.format_place, kind="json_schema")
        if (error := failed(event, self.started is not None)) is not None:
            raise error

    def close(self) -> None:
        """It is over: what is kept for a replay shall be no more than that needs."""
        if self._guides is not None:
            self._guides.forget()

    @property
    def readers(self) -> Sequence[ChoiceReader]:
        """What has been read of each choice."""
        return self._readers


def usage_of(generations: Sequence[Generation]) -> Usage:
    """What they took together."""
    readers = [reader for generation in generations for reader in generation.readers]
    n_prompt = sum(len(generation.plan.prompt.tokens) for generation in generations)
    n_completion = sum(reader.n_tokens for reader in readers)
    return {
        "prompt_tokens": n_prompt,
        "completion_tokens": n_completion,
        "total_tokens": n_prompt + n_completion,
        "prompt_tokens_details": {
            "cached_tokens": sum(generation.n_cached for generation in generations)
        },
        "completion_tokens_details": {
            "reasoning_tokens": sum(reader.n_thought for reader in readers)
        },
    }


def confidence_of(generations: Sequence[Generation]) -> float | None:
    """100 · exp(mean log p) over every generated token; None when there is none."""
    readers = [reader for generation in generations for reader in generation.readers]
    total = sum(reader.sum_logprob for reader in readers)
    return _confidence(total, sum(reader.n_tokens for reader in readers))


def _confidence(sum_logprob: float, n_tokens: int) -> float | None:
    if not n_tokens:
        return None
    return round(100.0 * math.exp(min(0.0, sum_logprob / n_tokens)), 4)
