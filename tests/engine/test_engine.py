"""The engine on the fake runner: the life of requests, their limits, and what is left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.fake_runner import VOCAB, FakeRunner, fake_logits
from tinyllm.engine.engine import Engine
from tinyllm.engine.outcome import Collector
from tinyllm.engine.prefix import PrefixCache
from tinyllm.engine.types import (
    Done,
    Draining,
    Event,
    Finished,
    Prompt,
    PromptTooLong,
    QueueFull,
    Request,
    Started,
    Token,
)
from tinyllm.sampler import Sampler, SamplingParams

GREEDY = SamplingParams(temperature=0.0)
_ids = iter(range(10**9))


def request(prompt: list[int] | np.ndarray, max_tokens: int = 5, **more: Any) -> Request:
    more.setdefault("params", SamplingParams(seed=1))
    tokens = np.asarray(prompt, np.int32)
    return Request(f"r{next(_ids)}", Prompt(tokens), max_tokens=max_tokens, **more)


def expected(prompt: list[int], n_tokens: int, seed: int = 1, stream: int = 0) -> list[int]:
    """The answer by the plainest loop there is."""
    sampler, ids = Sampler(SamplingParams(seed=seed), stream), list(prompt)
    for _ in range(n_tokens):
        ids.append(sampler.pick(fake_logits(np.array(ids, np.int64))).token)
    return ids[len(prompt) :]


def check_idle(engine: Engine) -> None:
    """Nothing runs, nothing waits, and only the prefix cache holds pages."""
    stats = engine.stats()
    assert (stats.queue_length, stats.running, stats.running_choices) == (0, 0, 0)
    engine._caches.prefixes.clear()
    assert engine._caches.memory.free_pages == engine._caches.memory.n_pages


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine(FakeRunner(), max_batch=8, max_queue=8)
    engine.start()
    yield engine
    engine.stop()
    assert engine._caches.memory.free_pages == engine._caches.memory.n_pages


def test_an_answer_is_that_of_the_plain_loop(engine: Engine) -> None:
    outcome = engine.run(request([5, 6, 7], 12), 10)
    assert outcome.answers[0].tokens == expected([5, 6, 7], 12)
    assert outcome.answers[0].reason == "length"
    check_idle(engine)


def test_events_come_in_order(engine: Engine) -> None:
    events: list[Event] = []
    done = threading.Event()

    def listen(event: Event) -> None:
        events.append(event)
        if isinstance(event, Done):
            done.set()

    engine.submit(request([1, 2, 3], 2, n=2), listen)
    assert done.wait(10)
    assert events[0] == Started(3, 0)
    assert [(type(e), e.index) for e in events[1:-1]] == [  # type: ignore[union-attr]
        (Token, 0), (Token, 1), (Token, 0), (Finished, 0), (Token, 1), (Finished, 1),
    ]  # fmt: skip
    assert isinstance(events[-1], Done)


def test_choices_are_prefilled_once_and_drawn_from_their_own_streams(engine: Engine) -> None:
    runner: FakeRunner = engine.runner  # type: ignore[assignment]
    prompt = list(range(1, 30))
    outcome = engine.run(request(prompt, 6, n=4), 10)
    for stream, answer in enumerate(outcome.answers):
        assert answer.tokens == expected(prompt, 6, stream=stream)
    assert runner.steps[0] == [29] and runner.steps[1] == [1, 1, 1, 1]


def test_choices_share_the_pages_of_their_prompt() -> None:
    runner = FakeRunner(n_pages=64, page_size=4)
    engine = Engine(runner, max_batch=8, prefix_cache=False)
    engine.submit(request(list(range(40)), 3, n=8), lambda e: None)
    engine.step()  # prefill and first tokens
    engine.step()
    assert 64 - runner.pool.free_pages == 10 + 8  # the prompt's once, one more for each choice


def test_stop_ids_end_a_choice_and_are_reported(engine: Engine) -> None:
    want = expected([3, 4], 20)
    stop = want[4]
    outcome = engine.run(request([3, 4], 20, stop_ids=frozenset([stop])), 10)
    assert outcome.answers[0].tokens == want[: want.index(stop) + 1]
    assert outcome.answers[0].reason == "stop"


@pytest.mark.parametrize("n", [1, 3])
def test_no_tokens_at_all(engine: Engine, n: int) -> None:
    outcome = engine.run(request([1, 2], 0, n=n), 10)
    assert [(a.tokens, a.reason) for a in outcome.answers] == [([], "length")] * n
    assert outcome.prompt_tokens == 2
    check_idle(engine)


def test_max_tokens_is_clamped_to_the_context(engine: Engine) -> None:
    prompt = list(np.arange(500) % VOCAB)
    outcome = engine.run(request(prompt, 100_000), 10)
    assert (len(outcome.answers[0].tokens), outcome.answers[0].reason) == (12, "length")


def test_too_long_a_prompt_says_by_how_much(engine: Engine) -> None:
    with pytest.raises(PromptTooLong) as caught:
        engine.submit(request(list(np.arange(513) % VOCAB)), lambda e: None)
    assert (caught.value.n_prompt_tokens, caught.value.n_ctx) == (513, 512)


def test_a_small_budget_bounds_the_context() -> None:
    engine = Engine(FakeRunner(n_pages=8, page_size=4, max_seq_len=512))
    assert engine.n_ctx == 32
    with pytest.raises(PromptTooLong):
        engine.submit(request([1] * 33), lambda e: None)
    collector = Collector()
    engine.submit(request([1] * 30, 10), collector)
    while engine.step():
        pass
    assert len(collector.wait(0).answers[0].tokens) == 2


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [VOCAB]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [1], "max_tokens": -1}, "max_tokens"),
        ({"prompt": [1], "n": 0}, "n must"),
        ({"prompt": [1], "n": 9}, "n must"),
    ],
)
def test_bad_requests_are_refused_by_name(engine: Engine, change: Any, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        engine.submit(request(**change), lambda e: None)


@pytest.mark.parametrize("name", ["max_batch", "max_queue", "prefill_chunk", "kv_cache_mb"])
def test_bad_limits_are_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        Engine(FakeRunner(), **{name: -1})


def test_a_seed_that_is_missing_is_drawn_once() -> None:
    engine = Engine(FakeRunner())
    engine.start()
    first = engine.run(request([1, 2], 8, params=SamplingParams(), keep=True), 10)
    second = engine.run(request([1, 2], 8, params=SamplingParams()), 10)
    assert first.answers[0].tokens != second.answers[0].tokens
    engine.stop()


def test_cancel_is_noticed_within_a_step_also_in_prefill() -> None:
    engine = Engine(FakeRunner(), prefill_chunk=10)
    collector = Collector()
    ticket = engine.submit(request(list(np.arange(100) % VOCAB)), collector)
    engine.step()
    ticket.cancel()
    ticket.cancel()
    assert not engine.step()
    assert collector.wait(0).answers[0].reason == "cancelled"
    check_idle(engine)


def test_cancel_while_decoding_and_while_waiting() -> None:
    engine = Engine(FakeRunner(), max_batch=1)
    one, two = Collector(), Collector()
    first = engine.submit(request([1, 2, 3], 100), one)
    second = engine.submit(request([1, 2, 3], 100), two)
    engine.step()
    engine.step()
    second.cancel()
    engine.step()
    assert two.wait(0).answers[0].reason == "cancelled"
    first.cancel()
    engine.step()
    outcome = one.wait(0)
    assert outcome.answers[0].reason == "cancelled"
    assert outcome.answers[0].tokens == expected([1, 2, 3], 3)
    check_idle(engine)


def test_deadlines_end_with_timeout() -> None:
    engine = Engine(FakeRunner(), max_batch=1)
    one, two = Collector(), Collector()
    engine.submit(request([1], 100, deadline=time.monotonic() + 3600), one)
    engine.submit(request([1], 100, deadline=time.monotonic() - 1), two)
    engine.step()
    assert two.wait(0).answers[0].reason == "timeout"
    assert engine.stats().running == 1


def test_the_queue_is_bounded() -> None:
    engine = Engine(FakeRunner(), max_batch=1, max_queue=2)
    for _ in range(3):
        engine.submit(request([1], 5), lambda e: None)
    with pytest.raises(QueueFull) as caught:
        engine.submit(request([1], 5), lambda e: None)
    assert caught.value.retry_after >= 1
    engine.step()
    with pytest.raises(QueueFull):
        engine.submit(request([1], 5), lambda e: None)
    while engine.stats().queue_length == 2:
        engine.step()
    engine.submit(request([1], 5), lambda e: None)


def test_keys_take_turns() -> None:
    engine = Engine(FakeRunner(), max_batch=2, max_queue=100)
    order: list[str] = []
    for key, count in (("a", 6), ("b", 2), ("c", 2)):
        for i in range(count):

            def listen(event: Event, name: str = f"{key}{i}") -> None:
                if isinstance(event, Started):
                    order.append(name)

            engine.submit(request([1, 2, 3], 3, key=key), listen)
    while engine.step():
        pass
    assert order.index("b0") <= 2 and order.index("c0") <= 3  # not behind all of a's
    assert [name for name in order if name[0] == "a"] == [f"a{i}" for i in range(6)]


def test_a_request_waits_until_its_worst_case_fits() -> None:
    runner = FakeRunner(n_pages=10, page_size=4)
    engine = Engine(runner, max_batch=8)
    one, two = Collector(), Collector()
    engine.submit(request([1] * 10, 15), one)  # 24 tokens: 6 pages
    engine.submit(request([2] * 10, 15), two)
    engine.step()
    assert engine.stats().running == 1 and engine.stats().queue_length == 1
    while engine.step():
        pass
    assert [c.wait(0).answers[0].reason for c in (one, two)] == ["length", "length"]
    assert two.wait(0).answers[0].tokens == expected([2] * 10, 15)


def test_a_second_turn_starts_from_the_first_one(engine: Engine) -> None:
    prompt = list(range(1, 40))
    first = engine.run(request(prompt, 8), 10)
    longer = prompt + first.answers[0].tokens + [7, 8, 9]
    second = engine.run(request(longer, 8), 10)
    assert second.cached_tokens == len(prompt) + 7  # the last token drawn was never fed back
    assert second.answers[0].tokens == expected(longer, 8)
    other = engine.run(request(longer, 8, key="somebody else"), 10)
    assert other.cached_tokens == 0
    assert other.answers[0].tokens == second.answers[0].tokens


def test_a_whole_prompt_that_is_cached_still_computes_its_last_token(engine: Engine) -> None:
    prompt = list(range(1, 20))
    engine.run(request(prompt, 3), 10)
    again = engine.run(request(prompt, 3), 10)
    assert again.cached_tokens == len(prompt) - 1
    assert again.answers[0].tokens == expected(prompt, 3)


def test_prefixes_of_running_requests_are_shared() -> None:
    engine = Engine(FakeRunner())
    prompt = list(range(1, 40))
    one, two = Collector(), Collector()
    engine.submit(request(prompt, 20), one)
    engine.step()
    engine.submit(request([*prompt, 3], 5), two)
    while engine.step():
        pass
    assert two.wait(0).cached_tokens == len(prompt)
    assert two.wait(0).answers[0].tokens == expected([*prompt, 3], 5)


def test_kept_prefixes_give_way_least_recently_used_first() -> None:
    runner = FakeRunner(n_pages=24, page_size=4)
    engine = Engine(runner)
    engine._caches.prefixes = PrefixCache(engine._caches.memory, share=1.0)
    engine.start()
    old, used = [1] * 20, [2] * 20
    for prompt in (old, used, used):
        engine.run(request(prompt, 2), 10)
    engine.run(request([3] * 56, 2), 10)
    assert engine.run(request(used, 2), 10).cached_tokens == 19
    assert engine.run(request(old, 2), 10).cached_tokens == 0
    engine.stop()


def test_images_match_by_content() -> None:
    engine = Engine(FakeRunner())
    engine.start()

    def with_image(key: int) -> Request:
        prompt = Prompt(
            np.array([1, 2, 9, 9, 3, 4], np.int32),
            np.array([2, 3]),
            np.full((2, 8), key, np.float32),
            np.array([-key, -key - 1]),
        )
        return Request(f"i{key}", prompt, SamplingParams(seed=1), 4)

    assert engine.run(with_image(5), 10).cached_tokens == 0
    assert engine.run(with_image(6), 10).cached_tokens == 2
    same = engine.run(with_image(5), 10)
    assert same.cached_tokens == 5
    engine.stop()
    chunked = Engine(FakeRunner(), prefill_chunk=3)
    chunked.start()
    assert chunked.run(with_image(5), 10).answers == same.answers
    chunked.stop()


class Digits:
    """A guide that allows ids below ten, forces a first token, and ends after `n`."""

    def __init__(self, n: int) -> None:
        self.n, self.seen = n, 0

    def allowed(self) -> np.ndarray:
        return np.arange(VOCAB) < 10

    def forced(self) -> list[int]:
        return [42] if self.seen == 0 else []

    def accept(self, token: int) -> bool:
        self.seen += 1
        return self.seen == self.n


def test_guides_steer_each_choice(engine: Engine) -> None:
    outcome = engine.run(request([1], 50, n=2, guide=lambda i: Digits(4 + i)), 10)
    for i, answer in enumerate(outcome.answers):
        assert answer.reason == "stop" and len(answer.tokens) == 4 + i
        assert answer.tokens[0] == 42 and max(answer.tokens[1:]) < 10


@pytest.mark.parametrize("where", ["make", "allowed", "forced", "accept"])
def test_a_guide_that_raises_fails_its_own_request_only(engine: Engine, where: str) -> None:
    def fail(*_: object) -> Any:
        raise RuntimeError("a broken guide")

    def make(index: int) -> Digits:
        if where == "make":
            fail()
        guide = Digits(10)
        guide.seen = 1
        setattr(guide, where, fail)
        return guide

    healthy = Collector()
    engine.submit(request([1, 2], 40), healthy)
    outcome = engine.run(request([1], 5, n=2, guide=make), 10)
    assert {a.reason for a in outcome.answers} == {"error"}
    assert "a broken guide" in outcome.answers[0].message
    assert healthy.wait(10).answers[0].tokens == expected([1, 2], 40)
    check_idle(engine)


def test_a_model_that_fails_on_one_request_serves_the_others(engine: Engine) -> None:
    runner: FakeRunner = engine.runner  # type: ignore[assignment]

    def fail(segments: Any) -> None:
        for segment in segments:
            if 13 in segment.tokens:
                segment.cache.append(np.array([1]))  # leave a mess behind
                raise RuntimeError("bad luck")

    runner.before = fail
    healthy, unlucky = Collector(), Collector()
    engine.submit(request([1, 2], 3), healthy)
    engine.submit(request([13], 3), unlucky)
    assert unlucky.wait(10).answers[0].reason == "error"
    assert "bad luck" in unlucky.wait(0).answers[0].message
    want = expected([1, 2], 3)
    assert 13 not in want
    assert healthy.wait(10).answers[0].tokens == want
    check_idle(engine)


@pytest.mark.parametrize("row", [0, 1, 2])
def test_a_row_that_fails_takes_its_siblings_along_and_nobody_else(row: int) -> None:
    runner = FakeRunner()
    engine = Engine(runner)
    healthy, unlucky = Collector(), Collector(3)
    engine.submit(request([1, 2], 6), healthy)
    engine.submit(request([3, 4], 6, n=3), unlucky)
    while not any(job.choices and job.request.n == 3 for job in engine._scheduler.running):
        engine.step()
    (job,) = (job for job in engine._scheduler.running if job.request.n == 3)
    cache = job.choices[row].cache

    def fail(segments: Any) -> None:
        if any(segment.cache is cache for segment in segments):
            raise RuntimeError("bad luck")

    runner.before = fail
    while engine.step():
        pass
    assert {a.reason for a in unlucky.wait(0).answers} == {"error"}
    assert healthy.wait(0).answers[0].tokens == expected([1, 2], 6)
    check_idle(engine)


def test_a_fault_of_the_engine_itself_leaves_it_serving(engine: Engine) -> None:
    plan = engine._scheduler.plan
    engine._scheduler.plan = lambda _: 1 / 0  # type: ignore[method-assign, assignment, return-value]
    outcome = engine.run(request([1, 2], 3), 10)
    assert (outcome.answers[0].reason, outcome.answers[0].message) == ("error", "internal error")
    engine._scheduler.plan = plan  # type: ignore[method-assign]
    assert engine.run(request([1, 2], 3), 10).answers[0].tokens == expected([1, 2], 3)


def test_a_pool_that_somebody_else_uses_up_fails_one_request_and_no_more() -> None:
    runner = FakeRunner(n_pages=8, page_size=4)
    engine = Engine(runner)
    collector = Collector(2)
    engine.submit(request([1, 2, 3], 12, n=2), collector)
    engine.step()
    other = runner.new_cache(100)
    other.reserve(4 * runner.pool.free_pages)
    while engine.step():
        pass
    assert {a.reason for a in collector.wait(0).answers} == {"error"}
    other.free()
    check_idle(engine)


def test_a_listener_that_raises_is_let_go(engine: Engine) -> None:
    done = threading.Event()

    def listen(event: Event) -> None:
        if isinstance(event, Done):
            done.set()
        raise RuntimeError("gone")

    engine.submit(request([1], 500), listen)
    assert done.wait(10)
    assert engine.run(request([1], 2), 10).answers[0].reason == "length"
    check_idle(engine)


def test_draining_finishes_what_runs_and_takes_nothing_new() -> None:
    engine = Engine(FakeRunner(), max_batch=1)
    engine.start()
    collectors = [Collector() for _ in range(3)]
    for collector in collectors:
        engine.submit(request([1], 50), collector)
    engine.drain()
    with pytest.raises(Draining):
        engine.submit(request([1]), lambda e: None)
    engine.stop(drain_timeout=30)
    assert [c.wait(0).answers[0].reason for c in collectors] == ["length"] * 3


def test_stop_cancels_what_is_left_and_a_second_stop_is_at_once() -> None:
    runner = FakeRunner()
    runner.before = lambda segments: time.sleep(0.02)
    engine = Engine(runner, max_batch=1)
    engine.start()
    collectors = [Collector() for _ in range(2)]
    for collector in collectors:
        engine.submit(request([1], 500), collector)
    first = threading.Thread(target=engine.stop, args=(3600,))
    first.start()
    engine.stop(0)
    first.join(10)
    assert not first.is_alive()
    assert [c.wait(0).answers[0].reason for c in collectors] == ["cancelled"] * 2
    check_idle(engine)


def test_stop_before_start_and_twice() -> None:
    engine = Engine(FakeRunner())
    engine.stop(5)
    engine.stop()


def test_start_twice_is_refused(engine: Engine) -> None:
    with pytest.raises(RuntimeError, match="already"):
        engine.start()


def test_top_logprobs_are_the_raw_softmax(engine: Engine) -> None:
    events: list[Event] = []
    done = threading.Event()
    engine.submit(
        request([1, 2], 1, top_logprobs=3, params=GREEDY),
        lambda e: (events.append(e), done.set() if isinstance(e, Done) else None),  # type: ignore
    )
    assert done.wait(10)
    token = next(e for e in events if isinstance(e, Token))
    logits = fake_logits(np.array([1, 2])).astype(np.float64)
    logprobs = logits - np.log(np.exp(logits).sum())
    best = np.argsort(-logprobs)[:3]
    assert [t for t, _ in token.top] == best.tolist() and token.token == best[0]
    np.testing.assert_allclose([p for _, p in token.top], logprobs[best], atol=1e-6)
    assert token.logprob == token.top[0][1]


def test_stats_count(engine: Engine) -> None:
    engine.run(request([1, 2, 3], 4), 10)
    engine.run(request([1, 2, 3, 4], 4), 10)
    stats = engine.stats()
    assert stats.requests == 2 and stats.finished == {"length": 2}
    assert stats.prompt_tokens == 7 and stats.cached_tokens == 3
    assert stats.generated_tokens == 8 and stats.prefix_hits == 1 and stats.prefix_lookups == 2
    assert stats.prefix_entries == 2 and not stats.draining
