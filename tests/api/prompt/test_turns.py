"""Callers take turns, whoever asks most; and a place comes back however its turn ended."""

from __future__ import annotations

import asyncio
import threading

import pytest

from tinyllm.api.contract.errors import ApiError
from tinyllm.api.limits import MAX_WAITING
from tinyllm.api.prompt.turns import FairSemaphore, WorkerPools, Workers


def test_one_request_comes_before_another_callers_flood() -> None:
    async def flood() -> list[str]:
        turns, served = FairSemaphore(1), []

        async def ask(caller: str) -> None:
            async with turns.turn(caller):
                served.append(caller)
                await asyncio.sleep(0)

        tasks = [asyncio.create_task(ask("flood")) for _ in range(20)]
        await asyncio.sleep(0)
        tasks += [asyncio.create_task(ask(caller)) for caller in ("one", "two", "one")]
        await asyncio.gather(*tasks)
        return served

    served = asyncio.run(flood())
    # At most one of each other caller's in between.
    assert served.index("one") <= 4 and served.index("two") <= 5
    assert served.count("one") == 2 and served.count("flood") == 20


def test_who_goes_away_takes_no_place_along() -> None:
    async def leave() -> None:
        turns = FairSemaphore(1)
        await turns.enter("a")
        waiting = [asyncio.create_task(turns.enter(caller)) for caller in "bcd"]
        await asyncio.sleep(0)
        waiting[0].cancel()
        turns.leave("a")  # b is cancelled already, so c is next
        waiting[1].cancel()  # its turn has come, and it is gone too
        await asyncio.wait_for(waiting[2], 1)
        turns.leave("d")
        await asyncio.wait_for(turns.enter("e"), 1)
        assert turns.waiting() == 0

    asyncio.run(leave())


def test_a_callers_share_and_its_queue_are_bounded() -> None:
    async def crowd() -> None:
        turns = FairSemaphore(3, most=2)
        await turns.enter("a")
        await turns.enter("a")
        waiting = [asyncio.create_task(turns.enter("a")) for _ in range(MAX_WAITING)]
        await asyncio.sleep(0)
        with pytest.raises(ApiError, match="Too many"):
            await turns.enter("a")
        await asyncio.wait_for(turns.enter("b"), 1)  # the third place isn't for a
        for task in waiting:
            task.cancel()

    asyncio.run(crowd())


def test_one_callers_grammars_leave_a_thread_for_anothers() -> None:
    """They may take seconds each, and wait in a row."""

    async def flood() -> None:
        pools, go = WorkerPools(), threading.Event()
        slow = [asyncio.create_task(pools.grammars.run("a", go.wait, 10)) for _ in range(4)]
        await asyncio.sleep(0.02)
        assert await asyncio.wait_for(pools.grammars.run("b", lambda: 2), 5) == 2
        go.set()
        await asyncio.gather(*slow)
        pools.close()

    asyncio.run(flood())


def test_a_thread_is_free_again_when_its_work_is_done_not_before() -> None:
    async def work() -> None:
        workers, go = Workers("test", 1), threading.Event()
        first = asyncio.create_task(workers.run("a", go.wait, 10))
        await asyncio.sleep(0.01)
        first.cancel()
        second = asyncio.create_task(workers.run("b", lambda: 2))
        await asyncio.sleep(0.02)
        assert not second.done()
        go.set()
        assert await second == 2
        workers.close()

    asyncio.run(work())
