"""Memory that was freed goes back to the system."""

from __future__ import annotations

import asyncio
import sys
import threading

import psutil
import pytest

from tinyllm.api.house import spare_memory


@pytest.mark.skipif(sys.platform != "linux", reason="the allocator of glibc")
def test_what_a_thread_has_freed_goes_back_though_something_behind_it_stays() -> None:
    kept = []

    def work() -> None:  # 64 MB in pieces that the allocator doesn't map one by one
        pieces = [bytearray(b"x" * 64_000) for _ in range(1000)]
        kept.append(bytearray(b"x" * 64_000))  # at the arena's end, which stays
        pieces.clear()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    before = psutil.Process().memory_info().rss
    spare_memory.give_back()
    assert psutil.Process().memory_info().rss < before - 50e6
    del kept[:]


def test_it_is_done_only_where_something_happened(monkeypatch: pytest.MonkeyPatch) -> None:
    done, count = [], 0
    monkeypatch.setattr(spare_memory, "give_back", lambda: done.append(count))

    async def run() -> None:
        nonlocal count
        task = asyncio.create_task(spare_memory.keep_giving_back(lambda: count, every=0.01))
        await asyncio.sleep(0.1)
        assert not done
        count = 1
        while not done:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        task.cancel()

    asyncio.run(run())
    assert done == [1]
