"""A kept request run again: it waits like any other, and ends with the client that asked for it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from tinyllm.api.answer.asking import Caller, failed, submit
from tinyllm.api.answer.event_queue import LoopWaker
from tinyllm.api.contract.errors import not_found, quoted
from tinyllm.api.prompt.served import EngineLike
from tinyllm.engine.outcome import Collector
from tinyllm.engine.replay import NotKept, Recording, ReplayResult, compare, rerun
from tinyllm.engine.types import Done, Finished


def find(engines: Iterable[EngineLike], id: str, key: str) -> tuple[EngineLike, Recording]:
    """A kept request of that key, and the engine that ran it. ApiError 404."""
    for engine in engines:
        try:
            return engine, engine.recording(id, key)
        except NotKept:
            continue
    raise not_found(f"A kept completion of the id {quoted(id)}")


async def replay(
    engine: EngineLike, recording: Recording, waker: LoopWaker, caller: Caller
) -> ReplayResult:
    """Run it again, from a cold start, and compare every bit. Raises ApiError, ClientGone."""
    request = replace(rerun(recording), deadline=caller.deadline, share=caller.share)
    collector = Collector(request.n)
    event_queue = submit(engine, request, waker, caller)
    while True:
        for event in await event_queue.get():
            collector(event)
            if isinstance(event, Finished) and (error := failed(event, started=True)) is not None:
                raise error
            if isinstance(event, Done):
                return compare(recording, collector.outcome)
