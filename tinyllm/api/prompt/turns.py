"""Work between a request and the engine: so much at once, and callers take turns.

Each kind of work has threads of its own, so that a slow kind doesn't hold up another; and within a
kind it is not whoever asks most that is served most. A caller (a key, or an address) whose request
waits comes after every other caller that has waited since it was served last.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import ParamSpec, Protocol, TypeVar

from tinyllm.api.contract.errors import too_many
from tinyllm.api.limits import MAX_WAITING

P = ParamSpec("P")
T = TypeVar("T")


class Client(Protocol):
    """Who waits for the work: a request's, as `answer.asking.Caller`."""

    share: str  # whose turn it is: the key, or the address
    gone: bool


class FairSemaphore:
    """A semaphore that is fair between callers. Used on the event loop's thread alone.

    Args:
        places: how many may be inside at once.
        most: how many one caller may have inside at once.
    """

    def __init__(self, places: int, most: int | None = None) -> None:
        self._free = places
        self._most = most or places
        self._inside: dict[str, int] = {}
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}  # served longest ago first

    def waiting(self) -> int:
        """How many wait."""
        return sum(map(len, self._waiting.values()))

    async def enter(self, caller: str) -> None:
        """Wait for a place; `leave` gives it back. ApiError 429 when too many wait already."""
        if self._free and self._may(caller):
            self._take(caller)
            return
        queue = self._waiting.setdefault(caller, deque())
        if len(queue) >= MAX_WAITING:
            raise too_many("Too many of your requests are being prepared.", retry_after=5)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # its turn came, and nobody is there
                self.leave(caller)
            raise

    def leave(self, caller: str) -> None:
        """Give a place to whoever is next."""
        self._free += 1
        self._inside[caller] -= 1
        if not self._inside[caller]:
            del self._inside[caller]
        for other, queue in list(self._waiting.items()):
            while queue and queue[0].cancelled():
                queue.popleft()
            if queue and not (self._free and self._may(other)):
                continue
            del self._waiting[other]
            if not queue:
                continue
            queue.popleft().set_result(None)
            self._take(other)
            if queue:
                self._waiting[other] = queue  # to the end: it was just served

    @asynccontextmanager
    async def turn(self, caller: str) -> AsyncIterator[None]:
        """A place for as long as the block lasts."""
        await self.enter(caller)
        try:
            yield
        finally:
            self.leave(caller)

    def _may(self, caller: str) -> bool:
        return self._inside.get(caller, 0) < self._most

    def _take(self, caller: str) -> None:
        self._free -= 1
        self._inside[caller] = self._inside.get(caller, 0) + 1


class Workers:
    """Threads of their own for one kind of work.

    Args:
        name: of the threads.
        places: how many there are.
        most: how many of them one caller may have at once.
    """

    def __init__(self, name: str, places: int, most: int | None = None) -> None:
        self.turns = FairSemaphore(places, most)
        self._pool = ThreadPoolExecutor(places, f"tinyllm-{name}")

    async def run(self, caller: str, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`work(*args)` on one of the threads, when it is the caller's turn.

        Who is cancelled meanwhile leaves a thread busy until the work is done, and a place taken.
        """
        await self.turns.enter(caller)
        try:
            future = asyncio.get_running_loop().run_in_executor(
                self._pool, lambda: work(*args, **kwargs)
            )
        except BaseException:
            self.turns.leave(caller)
            raise

        def done(future: asyncio.Future[T]) -> None:
            self.turns.leave(caller)
            if not future.cancelled():
                future.exception()  # seen, also where nobody waits for it any more

        future.add_done_callback(done)
        return await asyncio.shield(future)

    def close(self) -> None:
        """Take no more work; what runs is let finish."""
        self._pool.shutdown(wait=False, cancel_futures=True)


class WorkerPools:
    """The kinds of work there are."""

    def __init__(self) -> None:
        self.reading = Workers("reading", 1)  # large bodies
        self.planning = Workers("planning", 2)  # templates and tokens
        # The same where a grammar is to be compiled, which may take seconds: one of a caller's, so
        # that another one's needn't wait for it.
        self.grammars = Workers("grammars", 2, most=1)
        # The same with pictures: one request at a time, so that no more than its pixels are in
        # memory, whatever has been sent.
        self.pictures = Workers("pictures", 1)

    def for_conversation(self, pictures: bool, grammar: bool = False) -> Workers:
        """Who makes its prompt."""
        return self.pictures if pictures else self.grammars if grammar else self.planning

    def close(self) -> None:
        """Take no more work."""
        for workers in (self.reading, self.planning, self.grammars, self.pictures):
            workers.close()
