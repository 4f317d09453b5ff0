"""One completion on its way: asks the engine, and reads its events into parts of choices.

Both ways of answering, whole and streamed, go through here: a whole answer is folded from the
chunks that a stream would have sent.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass

from starlette.types import Receive

from tinyllm.api.answer.mailbox import Bell, ClientGone, Mailbox
from tinyllm.api.answer.reader import ChoiceReader, Piece
from tinyllm.api.answer.tracing import Desk, Inside, StepWriter, engine_params
from tinyllm.api.constraints.guides import ChoiceGuide
from tinyllm.api.contract.errors import (
    ApiError,
    context_length_exceeded,
    invalid,
    server_error,
    too_many,
    unavailable,
)
from tinyllm.api.contract.protocol import MAX_INSIDE, Finish, Usage
from tinyllm.api.prompt.plan import Plan
from tinyllm.api.prompt.served import EngineLike
from tinyllm.engine.types import (
    Done,
    Draining,
    Event,
    Finished,
    Guide,
    Handle,
    Prompt,
    PromptTooLong,
    QueueFull,
    Request,
    Started,
    Token,
)
from tinyllm.inside.trace_file import StepRecord
from tinyllm.sampler import SamplingParams

log = logging.getLogger(__name__)

LOOK_AGAIN = 0.25  # seconds after which a wait for a look inside is thought over


class Caller:
    """The client at the other end: gives up all that runs for it once it is gone.

    `deadline` is when its answer must be there, in time.monotonic() seconds.
    """

    def __init__(self, receive: Receive, deadline: float | None = None) -> None:
        self.deadline = deadline
        self._open: list[tuple[Handle, Mailbox | None]] = []
        self._watch = asyncio.create_task(self._wait(receive))
        self.gone = False

    async def _wait(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        for handle, mailbox in self._open:
            _give_up(handle, mailbox)

    def attach(self, handle: Handle, mailbox: Mailbox | None = None) -> None:
        """Have a request given up with the client."""
        self._open.append((handle, mailbox))
        if self.gone:
            _give_up(handle, mailbox)

    def close(self) -> None:
        """The answer is out, or will never be: whatever still runs is given up."""
        self._watch.cancel()
        for handle, _ in self._open:
            handle.cancel()


def _give_up(handle: Handle, mailbox: Mailbox | None) -> None:
    handle.cancel()
    if mailbox is not None:
        mailbox.hang_up()


def submit(engine: EngineLike, request: Request, bell: Bell, caller: Caller) -> Mailbox:
    """Ask the engine. Raises ApiError: 400 too long, 429 queue full, 503 draining."""
    mailbox = Mailbox(bell)
    try:
        handle = engine.submit(request, mailbox.put)
    except QueueFull as error:
        raise too_many(f"{str(error)[:1].upper()}{str(error)[1:]}.", error.retry_after) from None
    except Draining:
        message = "The server is shutting down and takes no new requests."
        raise unavailable(message, "draining", retry_after=5) from None
    except PromptTooLong as error:
        raise context_length_exceeded(error.n_prompt_tokens, error.n_ctx) from None
    except ValueError as error:
        raise invalid(f"The request can't be run: {error}.", "messages") from None
    caller.attach(handle, mailbox)
    return mailbox


@dataclass
class Part:
    """What happened to one choice; `finish` on its last part."""

    index: int
    piece: Piece
    finish: Finish | None = None
    confidence: float | None = None  # on the last part


class Generation:
    """One completion.

    Args:
        plan: what to do.
        request_id: also the completion's id.
        key: the owner.
        session: the client's session, if any.
        deadline: time.monotonic() seconds, or None.
        keep: for replay.
        desk: where a trace's looks inside are made.
    """

    def __init__(
        self,
        plan: Plan,
        request_id: str,
        *,
        key: str = "",
        session: str | None = None,
        deadline: float | None = None,
        keep: bool = False,
        desk: Desk | None = None,
    ) -> None:
        self.plan = plan
        self.id = request_id
        n = plan.request.n or 1
        trace = plan.request.trace
        self._desk = desk
        self._deadline = deadline
        self._inside: Inside | None = None
        self._n_inside = MAX_INSIDE // n  # steps of a choice that are looked into
        self._writers: list[StepWriter] = []
        if trace is not None:
            n_prompt = len(plan.prompt.tokens)
            self._writers = [StepWriter(plan.model.tokenizer, n_prompt) for _ in range(n)]
        self._hide_thought = bool(plan.request.reasoning and plan.request.reasoning.exclude)
        self._guides: dict[int, ChoiceGuide] = {}
        self._request = Request(
            id=request_id,
            prompt=plan.prompt,
            params=plan.params,
            max_tokens=plan.max_tokens,
            n=n,
            # A think block may end with what ends a turn: the guide tells the two apart.
            stop_ids=frozenset() if plan.think is not None else plan.model.stop_ids,
            top_logprobs=plan.request.top_logprobs or 0,
            trace=None if trace is None else engine_params(trace, n),
            guide=self._make_guide if plan.guided else None,
            key=key,
            session=session,
            deadline=deadline,
            keep=keep,
        )
        self._readers = [
            ChoiceReader(
                plan.model.tokenizer,
                think=plan.think,
                calls=plan.calls,
                stops=plan.stops,
                silent=plan.model.silent_ids,
                logprobs=bool(plan.request.logprobs),
            )
            for _ in range(n)
        ]
        self._called = [False] * n
        self.n_cached = 0
        self.started: float | None = None  # when the prompt had been taken in, monotonic
        self.first_token: float | None = None
        self.finishes: list[Finish] = []

    def _make_guide(self, index: int) -> Guide:
        """On the engine's thread; again for a replay, when nobody reads along."""
        guide = self.plan.guide()
        self._guides.setdefault(index, guide)
        return guide

    def submit(self, bell: Bell, caller: Caller) -> None:
        """Queue it. Raises ApiError."""
        plan, trace = self.plan, self.plan.request.trace
        if trace is not None and trace.inside:
            readable = plan.model.readable
            assert self._desk is not None and readable is not None  # the plan has seen to it
            n, tokenizer = self._request.n, plan.model.tokenizer
            self._inside = self._desk.open(readable, tokenizer, plan.prompt, trace, n)
            caller.attach(self._inside)
        self._mailbox = submit(self.plan.model.engine, self._request, bell, caller)

    async def begun(self, patience: float) -> None:
        """Wait for the first event, `patience` seconds at most, so that early faults show."""
        self._early = await self._mailbox.get(patience)
        for event in self._early:
            if isinstance(event, Finished):
                self._check(event)

    async def parts(self, ping: float | None = None) -> AsyncIterator[Part | None]:
        """The parts of all choices as they come; None after `ping` seconds without any.

        Raises ApiError for a fault on the way, ClientGone when nobody listens.
        """
        events = self._early
        while True:
            for event in events:
                if isinstance(event, Done):
                    return
                part = self._read(event)
                if part is None:
                    continue
                for step in part.piece.steps:
                    if self._inside is None or step.index >= self._n_inside:
                        continue
                    assert isinstance(event, Token) and self._desk is not None
                    drawn = self._writers[event.index].drawn[: step.index]
                    if self._desk.closed:
                        raise _stopped()
                    look = self._desk.look(self._inside, event, step, drawn)
                    async for _ in self._pings(look, ping):
                        yield None
                    part.piece.steps = [look.result()]
                yield part
            events = await self._mailbox.get(ping)
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
                if self._mailbox.gone:
                    raise ClientGone
                if self._deadline is not None and now > self._deadline:
                    raise _out_of_time(started=True)
                if self._desk is None or self._desk.closed:
                    raise _stopped()
                if ping is not None and now - pinged >= ping:
                    pinged = now
                    yield None
            if look.cancelled():
                raise _stopped()
        finally:
            look.cancel()  # if nobody waits for it any more

    def _read(self, event: Event) -> Part | None:
        if isinstance(event, Token):
            if self.first_token is None:
                self.first_token = time.monotonic()
            reader = self._readers[event.index]
            n_thought = reader.n_thought
            piece = reader.push(event)
            if self._writers:
                step = self._writers[event.index].write(event)
                if not (self._hide_thought and reader.n_thought > n_thought):
                    piece.steps = [step]
            self._called[event.index] |= bool(piece.calls)
            return Part(event.index, piece)
        if isinstance(event, Started):
            self.started = time.monotonic()
            self.n_cached = event.cached_tokens
            return None
        if isinstance(event, Finished):
            return self._finish(event)
        return None

    def _finish(self, event: Finished) -> Part:
        self._check(event)
        reader = self._readers[event.index]
        piece = reader.finish()
        called = self._called[event.index] | bool(piece.calls)
        finish: Finish = "length"
        if event.reason == "stop":
            finish = "tool_calls" if called else "stop"
        self.finishes.append(finish)
        confidence = _confidence(reader.sum_logprob, reader.n_tokens)
        return Part(event.index, piece, finish, confidence)

    def _check(self, event: Finished) -> None:
        """ApiError unless the choice came to a proper end."""
        guide = self._guides.get(event.index)
        if guide is not None and guide.error:
            message = "The JSON Schema turned out too complex to follow; simplify it."
            raise invalid(message, kind="json_schema")
        if (error := _failed(event, self.started is not None)) is not None:
            raise error

    # -- sums over all choices ---------------------------------------------------------------

    @property
    def usage(self) -> Usage:
        n_prompt = len(self.plan.prompt.tokens)
        n_completion = sum(reader.n_tokens for reader in self._readers)
        return {
            "prompt_tokens": n_prompt,
            "completion_tokens": n_completion,
            "total_tokens": n_prompt + n_completion,
            "prompt_tokens_details": {"cached_tokens": self.n_cached},
            "completion_tokens_details": {
                "reasoning_tokens": sum(reader.n_thought for reader in self._readers)
            },
        }

    @property
    def confidence(self) -> float | None:
        """100 · exp(mean log p) over every generated token; None when there is none."""
        total = sum(reader.sum_logprob for reader in self._readers)
        return _confidence(total, sum(reader.n_tokens for reader in self._readers))


def _failed(event: Finished, started: bool) -> ApiError | None:
    """The error that an engine's reason for ending amounts to, if it does."""
    if event.reason == "error":
        log.error("the engine gave a request up: %s", event.message)
        return server_error("The model failed on this request; the fault is the server's.")
    if event.reason == "timeout":
        return _out_of_time(started)
    if event.reason == "cancelled":
        return _stopped()
    return None


def _stopped() -> ApiError:
    return unavailable("The server stopped before the answer was done.", "draining", 5)


def _out_of_time(started: bool) -> ApiError:
    message = "The request took longer than the server allows."
    return unavailable(message, "request_timeout", 5, retry=not started)


def _confidence(sum_logprob: float, n_tokens: int) -> float | None:
    if not n_tokens:
        return None
    return round(100.0 * math.exp(min(0.0, sum_logprob / n_tokens)), 4)


async def score(
    engine: EngineLike, prompt: Prompt, start: int, bell: Bell, caller: Caller, key: str
) -> tuple[float, ...]:
    """The log-probabilities of a prompt's own tokens from position `start` on, in one prefill.

    Raises ApiError, ClientGone.
    """
    request = Request(
        id=f"score-{uuid.uuid4().hex}",
        prompt=prompt,
        params=SamplingParams(temperature=0),
        max_tokens=1,
        key=key,
        deadline=caller.deadline,
        score_from=start,
    )
    mailbox = submit(engine, request, bell, caller)
    while True:
        for event in await mailbox.get():
            if isinstance(event, Started):
                return event.prompt_logprobs
            if isinstance(event, Finished):
                raise _failed(event, started=False) or server_error()


__all__ = ["Caller", "ClientGone", "Generation", "Part", "score", "submit"]
