"""Lookup decoding: the same bits with and without, and guesses where they are worth it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from tests.fake_runner import VOCAB, FakeRunner
from tests.llama_folders import random_weights, small_config
from tinyllm.compiled import CompiledModel
from tinyllm.config import ModelConfig
from tinyllm.engine.engine import Engine
from tinyllm.engine.job import Guesses
from tinyllm.engine.lookup import (
    FIRST_ODDS,
    FULL,
    LONGEST,
    Lookup,
    PassTime,
    longest_match,
    share_rows,
)
from tinyllm.engine.scheduler import Decode
from tinyllm.engine.types import Event, Finished, Prompt, Request, Token, TraceParams
from tinyllm.runner import Runner, Segment
from tinyllm.sampler import SamplingParams

# -- guesses from the text


def plain_match(ids: list[int]) -> tuple[int, int]:
    """The definition, by trying every place."""
    best = (0, 0)
    for behind in range(1, len(ids)):
        length = 0
        while length < min(behind, LONGEST) and ids[behind - 1 - length] == ids[-1 - length]:
            length += 1
        if length and length >= best[1]:
            best = (behind, length)
    return best


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=60))
def test_the_longest_match_is_the_loops(ids: list[int]) -> None:
    assert longest_match(np.array(ids, np.int64)) == plain_match(ids)


def test_a_match_is_found_where_it_was_said_last() -> None:
    #         0  1  2  3  4  5  6  7  8
    ids = [7, 8, 9, 1, 7, 8, 9, 2, 8, 9]
    assert longest_match(np.array(ids, np.int64)) == (7, 2)
    lookup = Lookup(np.array(ids, np.int64), 10)
    assert lookup.guesses(2) == ([2, 8], [FIRST_ODDS[1], FIRST_ODDS[1] * FIRST_ODDS[2]])
    lookup.push(2)  # as guessed: the match goes on, and is trusted more
    tokens, odds = lookup.guesses(9)
    assert tokens == [8, 9, 2] and odds[0] == FIRST_ODDS[2]
    lookup.push(5)
    assert lookup.guesses(9) == ([], [])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=2, max_size=50), st.integers(1, 20))
def test_a_match_that_goes_on_is_the_one_that_a_search_finds(ids: list[int], n: int) -> None:
    n = min(n, len(ids) - 1)
    lookup = Lookup(np.array(ids[:n], np.int64), len(ids))
    for token in ids[n:]:
        lookup.guesses(4)
        lookup.push(token)
    fresh = Lookup(np.array(ids, np.int64), 1)
    assert lookup.guesses(50)[0] == fresh.guesses(50)[0]


def test_an_image_is_never_guessed() -> None:
    ids = np.array([5, 6, -9, 7, 5], np.int64)
    assert Lookup(ids, 4).guesses(4)[0] == [6]


def test_what_was_wrong_is_trusted_less() -> None:
    lookup = Lookup(np.array([1, 2, 1], np.int64), 100)
    before = lookup.guesses(1)[1][0]
    for token in (3, 1) * 5:
        lookup.push(token)
        lookup.guesses(1)
    lookup = Lookup(np.array([1, 2, 1], np.int64), 100)
    lookup.guesses(1)
    lookup.push(1)
    assert lookup._odds[0] < before == FIRST_ODDS[0]


# -- how many of them to run


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.lists(st.floats(0.01, 1.0), max_size=4), min_size=1, max_size=3),
    st.lists(st.floats(0.0, 0.4), min_size=16, max_size=16),
)
def test_rows_are_shared_for_the_most_tokens_a_second(
    factors: list[list[float]], more: list[float]
) -> None:
    offers = [np.cumprod(f).tolist() for f in factors]
    seconds = np.cumsum([1.0, *more]).tolist()

    def rate(counts: Sequence[int]) -> float:
        expected = sum(1 + sum(offer[:n]) for offer, n in zip(offers, counts, strict=True))
        return expected / seconds[len(offers) + sum(counts) - 1]

    counts = share_rows(offers, lambda n: seconds[n - 1], 16)
    ways = itertools.product(*(range(len(offer) + 1) for offer in offers))
    assert rate(counts) == pytest.approx(max(map(rate, ways)))


def test_the_rows_of_a_pass_have_a_limit() -> None:
    assert sum(share_rows([[1.0] * 50, [1.0] * 50], lambda n: 1.0, 10)) == 8


def test_the_time_of_a_pass_is_learnt_by_size() -> None:
    time = PassTime()
    assert time(8) / time(1) == pytest.approx(1 + 7 * PassTime.PER_ROW)
    for _ in range(50):
        time.observe(1, 1e-3)
        time.observe(7, 2e-3)  # in a tile for 8
    assert time(1) == pytest.approx(1e-3) and time(5) == time(8) == pytest.approx(2e-3)
    assert time(2) == pytest.approx(1e-3 * (1 + PassTime.PER_ROW))  # not tried yet
    assert time(16) == pytest.approx(2e-3 + 8e-3 * PassTime.PER_ROW)
    for _ in range(PassTime.FORGET):
        time.observe(1, 1e-3)
    assert time(8) < 1.5e-3  # seen too long ago: worth another try


# -- the same bits


class Forgetful(FakeRunner):
    """Its logits hang on the last two tokens alone, so that its answers run in circles."""

    def forward_batch(self, segments: Sequence[Segment]) -> list[np.ndarray]:
        results = super().forward_batch(segments)
        for segment, rows in zip(segments, results, strict=True):
            ids = segment.cache.keys(0)  # type: ignore[attr-defined]
            for i in range(len(rows)):
                end = len(ids) - len(rows) + i + 1
                a, b = (int(t) for t in (0, *ids[:end])[-2:])
                rows[i] = np.random.default_rng(VOCAB * a + b).normal(0, 2, VOCAB)
        return results


class Script:
    """A guide that forces phrases here and there, and allows few tokens between them."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._forced: list[int] = []
        self._n = 0

    def allowed(self) -> np.ndarray | None:
        return None if self._n % 3 else np.arange(VOCAB) % 4 != 0

    def forced(self) -> list[int]:
        return self._forced

    def accept(self, token: int) -> bool:
        self._n += 1
        if self._forced:
            assert token == self._forced.pop(0)
        elif self._rng.random() < 0.2:
            self._forced = self._rng.integers(1, VOCAB, self._rng.integers(1, 9)).tolist()
        return self._n > 60


class Cheap(PassTime):
    """A machine on which rows cost next to nothing, whatever the tests' own clock says."""

    def __call__(self, n_rows: int) -> float:
        return 1.0 + 0.02 * n_rows


REQUESTS = st.builds(
    dict,
    prompt=st.lists(st.integers(1, 9), min_size=1, max_size=40),
    max_tokens=st.integers(1, 50),
    n=st.integers(1, 2),
    temperature=st.sampled_from([0.0, 0.3, 1.0]),
    penalty=st.sampled_from([0.0, 0.4]),
    guide=st.one_of(st.none(), st.integers(0, 99)),
    stop=st.sampled_from([frozenset(), frozenset({3, 11, 40})]),
    wait=st.integers(0, 3),
)


def serve(runner: Runner, wanted: list[dict[str, Any]], lookup: bool) -> tuple[list[Any], Engine]:
    """What each request is told, with tokens compared by every bit (but for their guesses)."""
    engine = Engine(runner, max_batch=4, max_queue=100, lookup=lookup)
    engine._scheduler._pass_time = Cheap()
    told: list[list[Event]] = [[] for _ in wanted]
    for i, w in enumerate(wanted):
        request = Request(
            f"r{i}",
            Prompt(np.array(w["prompt"], np.int32)),
            SamplingParams(w["temperature"], seed=i, frequency_penalty=w["penalty"]),
            w["max_tokens"],
            n=w["n"],
            stop_ids=w["stop"],
            top_logprobs=2,
            trace=TraceParams(candidates=2, stages=True),
            guide=None if w["guide"] is None else (lambda j, seed=w["guide"]: Script(seed + j)),
            keep=True,
        )
        engine.submit(request, told[i].append)
        for _ in range(w["wait"]):
            engine.step()
    while engine.step():
        pass
    return [[e for e in events if isinstance(e, (Token, Finished))] for events in told], engine


def by_choice(events: list[Any]) -> list[list[Any]]:
    return [[e for e in events if e.index == i] for i in range(2)]


@settings(max_examples=60, deadline=None)
@given(st.lists(REQUESTS, min_size=1, max_size=6))
def test_every_token_is_the_same_with_and_without(wanted: list[dict[str, Any]]) -> None:
    runner = Forgetful(n_pages=400, page_size=3)
    without, _ = serve(runner, wanted, lookup=False)
    assert runner.pool.free_pages > 0
    runner = Forgetful(n_pages=400, page_size=3)
    told, engine = serve(runner, wanted, lookup=True)
    assert [by_choice(e) for e in told] == [by_choice(e) for e in without]
    stats = engine.stats()
    kept = sum(
        e.guess is not None and e.guess.token == e.token
        for events in told
        for e in events
        if isinstance(e, Token)
    )
    assert stats.kept_guesses == kept <= stats.guessed_tokens
    engine.stop()
    assert runner.pool.free_pages == runner.pool.n_pages and (runner.pool.refs == 0).all()


def test_circles_are_run_many_tokens_a_pass() -> None:
    wanted = {"prompt": [1, 2], "max_tokens": 300, "n": 1, "temperature": 0.0, "penalty": 0.0,
              "guide": None, "stop": frozenset(), "wait": 0}  # fmt: skip
    runner = Forgetful(n_pages=400, page_size=3)
    told, engine = serve(runner, [wanted], lookup=True)
    stats = engine.stats()
    assert stats.generated_tokens == 300 and stats.steps < 130
    dropped = sum(
        len(e.guess.dropped) + (e.guess.token != e.token)
        for e in told[0]
        if isinstance(e, Token) and e.guess is not None
    )
    assert stats.guessed_tokens == stats.kept_guesses + dropped
    engine.start()
    result = engine.replay("r0", "", 60)
    engine.stop()
    assert result.identical and result.tokens_compared == 300


def test_what_a_guide_forces_takes_one_pass() -> None:
    class Forced(Script):
        def __init__(self) -> None:
            super().__init__(0)
            self._forced = list(range(20, 45))

        def accept(self, token: int) -> bool:
            return token == self._forced.pop(0) and not self._forced

    runner = Forgetful()
    engine = Engine(runner)
    engine._scheduler._pass_time = Cheap()
    events: list[Event] = []
    engine.submit(
        Request("r", Prompt(np.array([1, 2], np.int32)), SamplingParams(seed=1), 50,
                guide=lambda i: Forced()), events.append,
    )  # fmt: skip
    while engine.step():
        pass
    assert [e.token for e in events if isinstance(e, Token)] == list(range(20, 45))
    assert runner.steps == [[2], [25]]
    assert (engine.stats().guessed_tokens, engine.stats().kept_guesses) == (24, 24)


def test_nothing_is_guessed_in_a_full_batch_or_where_bits_hang_on_the_batch() -> None:
    wanted = {"prompt": [1, 2] * 9, "max_tokens": 30, "n": 2, "temperature": 0.0, "penalty": 0.0,
              "guide": None, "stop": frozenset(), "wait": 0}  # fmt: skip
    runner = Forgetful(n_pages=2000)
    engine = Engine(runner, max_batch=FULL)
    for i in range(FULL // 2):
        prompt = Prompt(np.array(wanted["prompt"], np.int32))
        engine.submit(Request(f"r{i}", prompt, SamplingParams(0.0), 30, n=2), lambda e: None)
    while engine.step():
        pass
    assert engine.stats().guessed_tokens == 0
    runner = Forgetful()
    runner.batch_invariant = False
    assert serve(runner, [wanted], lookup=True)[1].stats().guessed_tokens == 0


def test_guesses_end_where_the_answer_must() -> None:
    engine = Engine(Forgetful())
    events: list[Event] = []
    prompt = Prompt(np.array([1, 2, 3] * 12, np.int32))
    engine.submit(Request("r", prompt, SamplingParams(0.0), 3), events.append)
    engine.step()
    (job,) = engine._scheduler.running
    assert len(job.choices[0].guesses(10).tokens) <= 1  # two tokens to come, one needs no guess
    engine.stop()


def test_decode_names_its_guesses() -> None:
    guesses = Guesses([4, 5, 6], [0.9, 0.8, 0.7], "guide").first(2)
    assert guesses.tokens == [4, 5] and guesses.at(2) is None
    guess = guesses.at(0)
    assert guess is not None and (guess.token, guess.source, guess.dropped) == (4, "guide", (5,))
    assert Decode.__dataclass_fields__["guesses"].default.tokens == ()


# -- the compiled kernels


@pytest.mark.parametrize("dtype", [pytest.param("f32", marks=pytest.mark.long), "q8", "q4"])
def test_the_kernels_give_the_same_bits(dtype: str) -> None:
    """A small random model, greedy and sampled, alone and beside others, in circles and not."""
    config = ModelConfig.from_hf(
        small_config(
            hidden_size=64, intermediate_size=96, head_dim=32, num_attention_heads=2,
            num_key_value_heads=1, num_hidden_layers=2, vocab_size=VOCAB, eos_token_id=0,
        )
    )  # fmt: skip
    model = CompiledModel(config, random_weights(config, 3), dtype, kv_cache_mb=8)
    rng = np.random.default_rng(5)
    wanted = [
        {
            "prompt": np.tile(rng.integers(1, VOCAB, 7), 4).tolist(), "max_tokens": 40,
            "n": 1 + i % 2, "temperature": (0.0, 0.4, 1.0)[i % 3], "penalty": 0.0,
            "guide": i if i % 2 else None, "stop": frozenset(), "wait": i,
        }
        for i in range(6)
    ]  # fmt: skip
    without, _ = serve(model, wanted, lookup=False)
    told, engine = serve(model, wanted, lookup=True)
    assert [by_choice(e) for e in told] == [by_choice(e) for e in without]
    assert engine.stats().kept_guesses > 20
    engine.stop()
