"""Asking the engine on a client's behalf: what runs for it is given up once it is gone."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

from tinyllm.api.answer.event_queue import ClientGone, EventQueue, LoopWaker
from tinyllm.api.constraints.trial import GivenUp
from tinyllm.api.contract.errors import (
    ApiError,
    context_length_exceeded,
    invalid,
    sentence,
    server_error,
    too_many,
    unavailable,
)
from tinyllm.api.prompt.served import EngineLike
from tinyllm.engine.types import (
    Draining,
    Finished,
    Handle,
    Prompt,
    PromptTooLong,
    QueueFull,
    Request,
    Started,
)
from tinyllm.sampler import SamplingParams

log = logging.getLogger(__name__)
T = TypeVar("T")


class Caller:
    """The client at the other end: gives up all that runs for it once it is gone.

    `deadline` is when its answer must be there, in time.monotonic() seconds; `share` is whose part
    of the server it takes, a key's or an address's.
    """

    def __init__(self, receive: Receive, deadline: float | None = None, share: str = "") -> None:
        self.deadline, self.share = deadline, share
        self._open: list[tuple[Handle, EventQueue | None]] = []
        self._task: asyncio.Task[Any] | None = None
        self._watch = asyncio.create_task(self._wait(receive))
        self.gone = False

    async def _wait(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        if self._task is not None:
            self._task.cancel()
        for handle, event_queue in self._open:
            _give_up(handle, event_queue)

    async def while_here(self, work: Coroutine[Any, Any, T]) -> T:
        """What `work` comes to, as long as the client waits for it. Raises ClientGone."""
        self._task = task = asyncio.create_task(work)
        if self.gone:
            task.cancel()
        try:
            return await task
        except (asyncio.CancelledError, GivenUp):
            if self.gone:
                raise ClientGone from None
            task.cancel()
            raise
        finally:
            self._task = None

    def attach(self, handle: Handle, event_queue: EventQueue | None = None) -> None:
        """Have a request given up with the client."""
        self._open.append((handle, event_queue))
        if self.gone:
            _give_up(handle, event_queue)

    def close(self) -> None:
        """The answer is out, or will never be: whatever still runs is given up."""
        self._watch.cancel()
        for handle, _ in self._open:
            handle.cancel()


def _give_up(handle: Handle, event_queue: EventQueue | None) -> None:
    handle.cancel()
    if event_queue is not None:
        event_queue.close()


def check_place(engine: EngineLike, share: str) -> None:
    """ApiError 429 where `submit` would refuse for want of a place: before the work for it is done.

    A flood that is refused may cost others no more than a look at the queue.
    """
    try:
        engine.check_place(share)
    except QueueFull as error:
        raise _full(error) from None


def submit(engine: EngineLike, request: Request, waker: LoopWaker, caller: Caller) -> EventQueue:
    """Ask the engine. Raises ApiError: 400 too long, 429 queue full, 503 draining."""
    event_queue = EventQueue(waker)
    try:
        handle = engine.submit(request, event_queue.put)
    except QueueFull as error:
        raise _full(error) from None
    except Draining:
        message = "The server is shutting down and takes no new requests."
        raise unavailable(message, "draining", retry_after=5) from None
    except PromptTooLong as error:
        raise context_length_exceeded(error.n_prompt_tokens, error.n_ctx) from None
    except ValueError as error:
        raise invalid(f"The request can't be run: {error}.", "messages") from None
    caller.attach(handle, event_queue)
    return event_queue


def _full(error: QueueFull) -> ApiError:
    return too_many(sentence(str(error)), error.retry_after)


async def score(
    engine: EngineLike,
    prompt: Prompt,
    start: int,
    waker: LoopWaker,
    caller: Caller,
    key: str,
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
        share=caller.share,
        deadline=caller.deadline,
        score_from=start,
    )
    event_queue = submit(engine, request, waker, caller)
    while True:
        for event in await event_queue.get():
            if isinstance(event, Started):
                return event.prompt_logprobs
            if isinstance(event, Finished):
                raise failed(event, started=False) or server_error()


def failed(event: Finished, started: bool) -> ApiError | None:
    """The error that an engine's reason for ending amounts to, if it does."""
    if event.reason == "error":
        log.error("the engine gave a request up: %s", event.message)
        return server_error("The model failed on this request; the fault is the server's.")
    if event.reason == "timeout":
        return out_of_time(started)
    if event.reason == "cancelled":
        return stopped()
    if event.reason == "crowded out":
        return too_many("Others who wait with less went before this request.", retry_after=5)
    return None


def stopped() -> ApiError:
    return unavailable("The server stopped before the answer was done.", "draining", 5)


def out_of_time(started: bool) -> ApiError:
    message = "The request took longer than the server allows."
    return unavailable(message, "request_timeout", 5, retry=not started)
