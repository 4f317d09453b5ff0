"""The scheduler and its pace, the page budget, and the prefix cache, each by itself."""

from __future__ import annotations

import numpy as np
import pytest

from tests.fake_runner import FakeRunner
from tinyllm.engine.job import Job, LiveChoice
from tinyllm.engine.memory import PagedMemory, pages_for
from tinyllm.engine.prefix import PrefixCache, common_prefix
from tinyllm.engine.scheduler import OLDEST_EVERY, REMEMBERED, Pace, Prefill, Scheduler
from tinyllm.engine.types import Prompt, Request
from tinyllm.sampler import SamplingParams


def job(order: int, n_prompt: int, key: str = "", n: int = 1, pages: int = 1) -> Job:
    prompt = Prompt(np.zeros(n_prompt, np.int32))
    request = Request(str(order), prompt, SamplingParams(), 5, n=n, key=key)
    return Job(request, lambda e: None, 5, pages, order, prompt.match_ids())


def opener(runner: FakeRunner):  # type: ignore[no-untyped-def]
    def open_prompt(job: Job) -> bool:
        job.prompt_cache = runner.new_cache(100)  # type: ignore[assignment]
        return True

    return open_prompt


def orders(jobs: object) -> list[int]:
    return [j.order for j in jobs]  # type: ignore[attr-defined]


# -- admission


def test_rows_and_pages_bound_what_runs() -> None:
    scheduler = Scheduler(max_batch=3, n_pages=11, prefill_chunk=8)  # one of them for guests
    for i, (n, pages) in enumerate([(1, 4), (1, 6), (1, 1)]):
        scheduler.add(job(i, 3, n=n, pages=pages))
    assert orders(scheduler.admit()) == [0, 1]  # no page is left
    scheduler.remove(scheduler.running[0])
    assert orders(scheduler.admit()) == [2]
    scheduler.add(job(3, 3, n=2, pages=1))
    assert orders(scheduler.admit()) == []  # one row is left
    assert orders(scheduler.waiting) == [3]


def test_nobody_overtakes_a_large_request() -> None:
    scheduler = Scheduler(max_batch=8, n_pages=10, prefill_chunk=8)
    scheduler.add(job(0, 3, pages=5))
    scheduler.add(job(1, 3, pages=10))
    scheduler.add(job(2, 3, pages=1))
    assert orders(scheduler.admit()) == [0]
    scheduler.remove(scheduler.running[0])
    assert orders(scheduler.admit()) == [1]


def test_the_key_with_the_fewest_rows_is_next() -> None:
    scheduler = Scheduler(max_batch=4, n_pages=100, prefill_chunk=8)
    for i in range(6):
        scheduler.add(job(i, 3, key="greedy"))
    assert orders(scheduler.admit()) == [0, 1, 2, 3]
    scheduler.add(job(6, 3, key="modest"))
    scheduler.remove(scheduler.running[0])
    assert orders(scheduler.admit()) == [6]
    scheduler.remove(scheduler.running[0])
    assert orders(scheduler.admit()) == [4]


# -- the plan of a step


def test_the_shortest_prompt_first_but_the_oldest_is_not_starved() -> None:
    runner = FakeRunner()
    scheduler = Scheduler(max_batch=50, n_pages=10**6, prefill_chunk=10)
    scheduler.add(job(0, 1000))
    served_oldest = 0
    for i in range(1, 41):  # a newcomer with a short prompt before every step
        scheduler.add(job(i, 10))
        list(scheduler.admit())
        (work,) = scheduler.plan(opener(runner))
        assert isinstance(work, Prefill)
        if work.job.order == 0:
            served_oldest += 1
        else:
            scheduler.remove(work.job)
    assert served_oldest == 40 // OLDEST_EVERY


def test_a_flood_of_short_prompts_is_not_ahead_of_anothers_longer_one() -> None:
    """Whose answers run already waits: with one row of two, and a new short prompt every step."""
    runner = FakeRunner()
    scheduler = Scheduler(max_batch=50, n_pages=10**6, prefill_chunk=10)
    running = job(0, 10, key="flood")
    running.choices = [LiveChoice(running, 0, None, None, None, None)]  # type: ignore[arg-type]
    scheduler.add(running)
    scheduler.add(job(1, 30, key="polite"))
    scheduler.pace = Pace(10)
    scheduler.pace.prefill_tokens = lambda *_: 10  # type: ignore[method-assign]
    taken = []
    for i in range(2, 8):
        scheduler.add(job(i, 5, key="flood"))
        list(scheduler.admit())
        works = [w for w in scheduler.plan(opener(runner)) if isinstance(w, Prefill)]
        taken.append(sum(w.n_tokens for w in works if w.job.order == 1))
    assert taken[:3] == [10, 10, 10]


def test_a_newcomers_step_is_not_filled_up_by_those_who_are_served() -> None:
    runner = FakeRunner()
    scheduler = Scheduler(max_batch=50, n_pages=10**6, prefill_chunk=100)
    running = job(0, 10, key="flood")
    running.choices = [LiveChoice(running, 0, None, None, None, None)]  # type: ignore[arg-type]
    scheduler.add(running)
    for i in range(1, 6):
        scheduler.add(job(i, 5, key="flood"))
    scheduler.pace.prefill_tokens = lambda *_: 100  # type: ignore[method-assign]
    list(scheduler.admit())
    assert len(scheduler.plan(opener(runner))) == 6  # nobody else is there
    scheduler.add(job(6, 30, key="polite"))
    scheduler.add(job(7, 10, key="other"))
    list(scheduler.admit())
    works = scheduler.plan(opener(runner))
    assert [w.job.order for w in works if isinstance(w, Prefill)] == [7, 6]


def test_chunks_are_whole_for_one_share_and_short_among_several() -> None:
    """Where nothing is decoded: far into a prompt 256 tokens would take seconds."""
    scheduler = Scheduler(max_batch=5, n_pages=1000, prefill_chunk=256)
    open_prompt = opener(FakeRunner())
    long = job(0, 9000, key="flood")
    scheduler.add(long)
    list(scheduler.admit())

    def chunks() -> list[int]:
        return [w.n_tokens for w in scheduler.plan(open_prompt) if isinstance(w, Prefill)]

    assert chunks() == [256]
    scheduler.add(job(1, 30, key="polite"))
    list(scheduler.admit())
    assert chunks() == [30, Pace.SHARED - 30]
    scheduler.remove(next(j for j in scheduler.running if j.order == 1))
    assert chunks() == [Pace.SHARED]  # who was there may come again
    assert long.prompt_cache is not None
    long.prompt_cache.length = 7000  # type: ignore[misc]
    assert chunks() == [int(Pace.SHARED / (1 + 7000 / Pace.FAR))]
    for _ in range(REMEMBERED):
        chunks()
    assert chunks() == [256]


def test_a_chunk_is_filled_from_several_prompts() -> None:
    scheduler = Scheduler(max_batch=5, n_pages=100, prefill_chunk=10)
    for i, n_prompt in enumerate([20, 4, 3]):
        scheduler.add(job(i, n_prompt))
    list(scheduler.admit())
    plan = scheduler.plan(opener(FakeRunner()))
    assert [(w.job.order, w.n_tokens) for w in plan if isinstance(w, Prefill)] == [
        (2, 3), (1, 4), (0, 3),
    ]  # fmt: skip


def test_a_prompt_that_is_given_up_leaves_its_place() -> None:
    scheduler = Scheduler(max_batch=5, n_pages=100, prefill_chunk=10)
    scheduler.add(job(0, 4))
    scheduler.add(job(1, 5))
    list(scheduler.admit())
    open_prompt = opener(FakeRunner())
    plan = scheduler.plan(lambda job: job.order == 1 and open_prompt(job))
    assert [w.job.order for w in plan] == [1]


# -- pace: a machine whose steps cost 3 ms, 0.05 ms a row more, 0.2 ms a prompt token


def seconds(rows: int, n_prefill: int, per_token: float = 2e-4) -> float:
    return 3e-3 + 5e-5 * rows + per_token * n_prefill


@pytest.mark.parametrize("rows", [1, 4, 16])
@pytest.mark.parametrize("per_token", [2e-5, 2e-4])
def test_a_long_prompt_stretches_steps_to_three_usual_ones_at_most(
    rows: int, per_token: float
) -> None:
    pace = Pace(max_chunk=256)
    left, taken, steps = 4000, [], 0
    while left > 0:
        chunk = min(pace.prefill_tokens(rows), left)
        taken.append(seconds(rows, chunk, per_token))
        pace.observe(rows, chunk, taken[-1])
        left -= chunk
        steps += 1
    assert max(taken) <= 3 * seconds(rows, 0)
    assert steps < 4000 / 10  # and the prompt gets on


def test_a_step_stays_short_far_into_a_prompt_and_at_the_start_of_the_next() -> None:
    """Attention as it was measured: a token costs double behind every thousand before it."""
    pace = Pace(max_chunk=256)
    usual = seconds(4, 0)
    pace.observe(4, 0, usual)
    for start in (0, 3000, 100):
        context, taken, chunks = start, [], []
        while context < start + 1000:
            chunks.append(pace.prefill_tokens(4, context))
            extra = 1e-4 * (chunks[-1] + 2) * (1 + context / 1000) if chunks[-1] else 0.0
            taken.append(usual + extra)
            pace.observe(4, chunks[-1], taken[-1], context)
            context += chunks[-1]
        assert max(taken) <= 3 * usual
        assert max(chunks) >= 20 / (1 + start / 1000)


def test_a_step_that_something_else_held_up_is_not_the_rule() -> None:
    pace = Pace(max_chunk=256)
    pace.observe(2, 0, 1e-3)
    for _ in range(20):
        n = pace.prefill_tokens(2)
        pace.observe(2, n, 1e-3 + 5e-5 * n)
    before = pace.prefill_tokens(2)
    pace.observe(2, before, 0.1)
    assert pace.prefill_tokens(2) >= before / 2


def test_without_streams_to_hold_up_a_chunk_is_whole() -> None:
    pace = Pace(max_chunk=256)
    pace.observe(0, 256, 1.0)
    assert pace.prefill_tokens(0) == 256


def test_the_chunk_follows_the_clock_down_at_once_and_up_slowly() -> None:
    pace = Pace(max_chunk=256)
    pace.observe(2, 0, 1e-3)
    pace.observe(2, pace.prefill_tokens(2), 1.1e-3)
    large = pace.prefill_tokens(2)
    assert large > 8
    for _ in range(20):
        pace.observe(2, pace.prefill_tokens(2), 1.0)
    assert pace.prefill_tokens(2) == 1
    pace.observe(2, 1, 1.05e-3)
    assert pace.prefill_tokens(2) == 1


def test_a_step_without_prefill_measures_again_now_and_then() -> None:
    pace = Pace(max_chunk=256)
    pace.observe(2, 0, 1e-3)
    chunks = []
    for _ in range(100):
        chunks.append(pace.prefill_tokens(2))
        pace.observe(2, chunks[-1], 2e-3)
    assert 2 <= chunks.count(0) <= 4


# -- memory


@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_worst_case_is_enough_and_reached(n: int) -> None:
    for n_prompt in range(1, 14):
        for max_tokens in range(1, 12):
            runner = FakeRunner(n_pages=100, page_size=4)
            memory = PagedMemory(runner, runner.pool)  # type: ignore[arg-type]
            trunk = runner.new_cache(50)
            trunk.append(np.arange(n_prompt))
            caches = [trunk, *(trunk.fork() for _ in range(n - 1))]
            for _ in range(max_tokens - 1):
                for cache in caches:
                    cache.append(np.array([7]))
            used = 100 - runner.pool.free_pages
            assert used <= memory.worst_case(n_prompt, max_tokens, n)
            if max_tokens > 1:
                assert used == memory.worst_case(n_prompt, max_tokens, n)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_max_tokens_is_the_largest_that_fits(n: int) -> None:
    runner = FakeRunner(n_pages=20, page_size=4)
    memory = PagedMemory(runner, runner.pool)  # type: ignore[arg-type]
    for n_prompt in range(1, 30):
        most = memory.max_tokens(n_prompt, n)
        if most >= 1:
            assert memory.worst_case(n_prompt, most, n) <= 20
        assert memory.worst_case(n_prompt, max(most, 1) + 1, n) > 20 or most < 1


def test_pages_round_up() -> None:
    assert [pages_for(n, 4) for n in (0, 1, 4, 5)] == [0, 1, 1, 2]


# -- prefixes


def ids(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def test_common_prefix() -> None:
    assert common_prefix(ids(), ids(1)) == 0
    assert common_prefix(ids(1, 2), ids(1, 2)) == 2
    assert common_prefix(ids(1, 2, 3), ids(1, 2, 4, 5)) == 2
    assert common_prefix(ids(9), ids(1)) == 0


def filled(runner: FakeRunner, values: np.ndarray):  # type: ignore[no-untyped-def]
    cache = runner.new_cache(50)
    cache.append(values)
    return cache


def test_the_longest_prefix_of_ones_own_key_is_found() -> None:
    runner = FakeRunner()
    prefixes = PrefixCache(PagedMemory(runner, runner.pool))  # type: ignore[arg-type]
    for values in (ids(1, 2), ids(1, 3, 4), ids(5)):
        prefixes.put("a", values, filled(runner, values))
    prefixes.put("b", ids(1, 3, 4, 6), filled(runner, ids(1, 3, 4, 6)))
    cache, length = prefixes.find("a", ids(1, 3, 4, 6))
    assert length == 3 and cache is not None and list(cache.keys(0)) == [1, 3, 4]
    assert prefixes.find("a", ids(8)) == (None, 0)
    assert prefixes.find("c", ids(1)) == (None, 0)


def test_a_longer_sequence_takes_the_place_of_its_prefix() -> None:
    runner = FakeRunner()
    prefixes = PrefixCache(PagedMemory(runner, runner.pool))  # type: ignore[arg-type]
    for values in (ids(1, 2), ids(1, 2, 3), ids(1, 2, 3), ids(1, 2), ids(1, 4)):
        prefixes.put("a", values, filled(runner, values))
    assert len(prefixes) == 2
    prefixes.put("a", ids(), filled(runner, ids()))
    assert len(prefixes) == 2
    prefixes.clear()
    assert runner.pool.free_pages == runner.pool.n_pages


def test_what_is_kept_is_bounded_and_the_used_entries_stay() -> None:
    runner = FakeRunner(n_pages=8, page_size=4)
    prefixes = PrefixCache(PagedMemory(runner, runner.pool), share=0.5)  # type: ignore[arg-type]
    for i in range(5):
        values = ids(i, *range(10, 15))  # two pages
        prefixes.put("a", values, filled(runner, values))
        prefixes.find("a", ids(0))
        assert runner.pool.free_pages >= 4
    assert len(prefixes) == 2
    assert prefixes.find("a", ids(0))[1] == 1 and prefixes.find("a", ids(4))[1] == 1  # 1 to 3 went
    assert prefixes.evict() and prefixes.evict() and not prefixes.evict()
    assert runner.pool.free_pages == 8


def test_what_runs_takes_from_what_may_be_kept_down_to_its_half() -> None:
    runner = FakeRunner(n_pages=16, page_size=4)
    prefixes = PrefixCache(PagedMemory(runner, runner.pool), share=0.5)  # type: ignore[arg-type]

    def pages_used_after(first: int) -> int:
        for i in range(first, first + 8):
            prefixes.put("a", ids(i), filled(runner, ids(i)))  # a page
        return 16 - runner.pool.free_pages

    running = filled(runner, ids(*range(12)))  # three pages
    assert pages_used_after(0) == 8 and len(prefixes) == 5
    more = filled(runner, ids(*range(12)))  # six together
    assert pages_used_after(10) == 6 + 4 and len(prefixes) == 4
    running.free()
    more.free()
    assert pages_used_after(20) == 8
