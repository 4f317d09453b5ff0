"""All answers to one request: a generation a prompt, read as one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

from tinyllm.api.answer.asking import Caller
from tinyllm.api.answer.event_queue import LoopWaker
from tinyllm.api.answer.generation import Generation, Update, confidence_of, usage_of
from tinyllm.api.answer.tracing import TraceWorker
from tinyllm.api.contract.answers import Finish, Usage
from tinyllm.api.contract.errors import ApiError
from tinyllm.api.limits import PROMPTS_AT_ONCE
from tinyllm.api.prompt.plan import Plan

BETWEEN_TRIES = 0.2  # seconds, where the next one finds the queue full


class Run:
    """The choices of all prompts, numbered through: prompt p's choice i is p · n + i.

    Args:
        plans: one a prompt, all with the same n.
        id: of the answer; also what a single prompt's request is kept under for replay.
        caller: the client; what runs for it ends with it.
        waker: of the app.
        key: the owner.
        session: the client's session, if any.
        trace_worker: where a trace's looks inside are made.
    """

    def __init__(
        self,
        plans: Sequence[Plan],
        id: str,
        caller: Caller,
        waker: LoopWaker,
        *,
        key: str = "",
        session: str | None = None,
        trace_worker: TraceWorker | None = None,
    ) -> None:
        self.plans, self.id = plans, id
        self._caller, self._waker = caller, waker
        self._submitted = 0  # prompts that the engine was asked for at the beginning
        self._generations = [
            Generation(
                plan,
                id if len(plans) == 1 else f"{id}-{i}",
                key=key,
                session=session,
                deadline=caller.deadline,
                trace_worker=trace_worker,
                share=caller.share,
            )
            for i, plan in enumerate(plans)
        ]

    async def begin(self, timeout: float) -> None:
        """Ask the engine, and wait for its first word, so that early faults show. ApiError.

        Waits `timeout` seconds at most. Of many prompts those beyond PROMPTS_AT_ONCE follow.
        """
        for generation in self._generations[:PROMPTS_AT_ONCE]:
            try:
                generation.submit(self._waker, self._caller)
            except ApiError as error:
                if error.status != 429 or not self._submitted:
                    raise
                break  # one place is enough to begin with
            self._submitted += 1
        await self._generations[0].begun(timeout)

    async def updates(self, ping: float | None) -> AsyncIterator[Update | None]:
        """The updates of all choices as they come; None after `ping` seconds without any.

        Raises ApiError for a fault on the way, ClientGone when nobody listens.
        """
        if len(self._generations) == 1:
            async for update in self._generations[0].updates(ping):
                yield update
            return
        merged: asyncio.Queue[Update | BaseException | None] = asyncio.Queue()
        places = asyncio.Semaphore(PROMPTS_AT_ONCE)
        following = [
            asyncio.create_task(self._follow(place, merged, places))
            for place in range(len(self._generations))
        ]
        n_open = len(following)
        try:
            while n_open:
                try:
                    came = await asyncio.wait_for(merged.get(), ping)
                except asyncio.TimeoutError:
                    yield None
                    continue
                if isinstance(came, BaseException):
                    raise came
                if came is None:
                    n_open -= 1
                else:
                    yield came
        finally:
            for task in following:
                task.cancel()

    async def _follow(
        self,
        place: int,
        merged: asyncio.Queue[Update | BaseException | None],
        places: asyncio.Semaphore,
    ) -> None:
        """Pass on one generation's updates, then None, or what went wrong with it."""
        generation = self._generations[place]
        try:
            async with places:
                if place >= self._submitted:
                    await self._submit_late(generation)
                async for update in generation.updates():
                    if update is not None:
                        merged.put_nowait(
                            replace(update, index=place * generation.plan.n + update.index)
                        )
            merged.put_nowait(None)
        except Exception as error:
            merged.put_nowait(error)

    async def _submit_late(self, generation: Generation) -> None:
        """Ask the engine for one more prompt; where the queue is full, when it no longer is."""
        while True:
            try:
                generation.submit(self._waker, self._caller)
                return
            except ApiError as error:
                if error.status != 429:
                    raise
            await asyncio.sleep(BETWEEN_TRIES)

    def close(self) -> None:
        """It is over, however it ended."""
        for generation in self._generations:
            generation.close()

    # -- sums over all choices ---------------------------------------------------------------

    @property
    def finishes(self) -> list[Finish]:
        return [finish for generation in self._generations for finish in generation.finishes]

    @property
    def n_cached(self) -> int:
        return sum(generation.n_cached for generation in self._generations)

    @property
    def first_token(self) -> float | None:
        """When the first token of all came, time.monotonic() seconds."""
        times = [g.first_token for g in self._generations if g.first_token is not None]
        return min(times, default=None)

    @property
    def usage(self) -> Usage:
        return usage_of(self._generations)

    @property
    def confidence(self) -> float | None:
        return confidence_of(self._generations)
