"""From the engine's thread to the event loop: events go in on one side and come out on the other.

The engine tells every listener of a step in a row. Waking the loop costs a system call, so it is
woken once for all that has arrived since it last looked.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque

from tinyllm.api.limits import MAX_EVENTS
from tinyllm.engine.types import Event


class ClientGone(Exception):
    """Nobody is there any more to receive the answer."""


class LoopWaker:
    """Wakes queues on the loop's thread; one for a whole app."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: deque[EventQueue] = deque()
        self._due = False

    def wake(self, event_queue: EventQueue) -> None:
        """Have `event_queue` looked at soon. From any thread."""
        self._waiting.append(event_queue)
        if not self._due:
            self._due = True
            try:
                self._loop.call_soon_threadsafe(self._deliver)
            except RuntimeError:  # the loop is closed: the server has stopped
                self._waiting.clear()

    def _deliver(self) -> None:
        self._due = False  # first, so that what arrives from here on wakes it again
        while self._waiting:
            self._waiting.popleft()._wake()


class EventQueue:
    """One request's events. `put` on the engine's thread, everything else on the loop's."""

    def __init__(self, waker: LoopWaker) -> None:
        self._waker = waker
        self._events: deque[Event] = deque()
        self._reader: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timeout = 0.0  # of the reader, in seconds
        self._waits_since = 0.0
        self.gone = False
        self.overflowed = False

    def put(self, event: Event) -> None:
        """Take an event; those past the limit are dropped, and the reader learns of it."""
        if self.gone:
            return
        if len(self._events) >= MAX_EVENTS:
            self.overflowed = True
        else:
            self._events.append(event)
        self._waker.wake(self)

    def close(self) -> None:
        """The client is gone: the reader gets ClientGone."""
        self.gone = True
        self._events.clear()
        self._wake()

    async def get(self, timeout: float | None = None) -> list[Event]:
        """All events so far, at least one; [] after `timeout` seconds without any.

        Raises ClientGone once the client went away, or left too much unread.
        """
        if not self._events and not self.gone and not self.overflowed:
            loop = asyncio.get_running_loop()
            self._reader = loop.create_future()
            if timeout is not None:
                self._timeout, self._waits_since = timeout, time.monotonic()
                if self._timer is None:
                    self._timer = loop.call_later(timeout, self._on_timer)
            try:
                await self._reader
            finally:
                self._reader = None
        if self.gone or self.overflowed:
            raise ClientGone
        return [self._events.popleft() for _ in range(len(self._events))]

    def _on_timer(self) -> None:
        """Wake a reader whose timeout is at its end.

        One timer outlasts many waits, since events come much faster than it: it looks whether the
        wait that it meets has been long enough, and else comes back for the rest.
        """
        self._timer = None
        if self._reader is None:
            return
        left = self._waits_since + self._timeout - time.monotonic()
        if left <= 0:
            self._wake()
        else:
            self._timer = asyncio.get_running_loop().call_later(left, self._on_timer)

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
