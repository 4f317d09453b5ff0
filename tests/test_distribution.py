"""What a token is drawn from, over vectors small enough to work out by hand."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from tinyllm.distribution import Distribution
from tinyllm.sampler import Sampler, SamplingParams


def dist(logits: list[float], allowed: list[bool] | None = None, **params: object) -> Distribution:
    sampler = Sampler(SamplingParams(seed=0, **params))  # type: ignore[arg-type]
    mask = None if allowed is None else np.array(allowed)
    return Distribution(np.array(logits, np.float32), sampler, allowed=mask)


def test_standings_by_hand() -> None:
    d = dist([math.log(4), math.log(1), math.log(3), math.log(2)], top_k=3, top_p=0.6)
    assert [s.token for s in d.best(4)] == [0, 2, 3, 1]
    assert [s.p_raw for s in d.best(4)] == pytest.approx([0.4, 0.3, 0.2, 0.1])
    assert [s.cut_by for s in d.best(4)] == [None, None, "top_p", "top_k"]
    assert [s.p for s in d.best(4)] == pytest.approx([4 / 7, 3 / 7, 0, 0])
    assert [(s.name, s.n_kept) for s in d.stages] == [
        ("raw", 4), ("mask", 4), ("penalties", 4), ("temperature", 4), ("top_k", 3), ("top_p", 2)
    ]  # fmt: skip
    assert [s.mass for s in d.stages[-2:]] == pytest.approx([0.9, 0.7])
    p = np.array([0.4, 0.3, 0.2, 0.1])
    assert d.entropy == pytest.approx(-(p * np.log(p)).sum())


def test_entropy_of_the_sure_and_of_what_cannot_come() -> None:
    rare = math.exp(-30)  # p log p of the sure token alone would be rounding
    assert dist([0.0, -30.0]).entropy == pytest.approx(31 * rare, rel=1e-3)
    assert dist([5.0, -math.inf]).entropy == 0
    assert dist([2.0, -math.inf, 2.0, -3e38]).entropy == pytest.approx(math.log(2))


def test_a_mask_is_a_stage() -> None:
    d = dist([3.0, 2.0, 1.0], [False, True, True], temperature=0)
    assert [s.cut_by for s in d.best(3)] == ["mask", None, "temperature"]
    assert d.p.tolist() == [0, 1, 0]


def test_ties_rank_by_id_and_any_token_can_be_asked_about() -> None:
    d = dist([1.0, 5.0, 1.0, 1.0])
    assert [s.token for s in d.best(4)] == [1, 0, 2, 3]
    assert [d.standing(t).rank for t in range(4)] == [1, 0, 2, 3]
    assert [s.token for s in d.best_and(3, 2)] == [1, 0, 3]
    assert [s.token for s in d.best_and(0, 2)] == [1, 0]
    assert [s.token for s in d.best_and(2, 0)] == [2]
    with pytest.raises(ValueError, match="k must be a whole number from 0 up"):
        d.best(-1)


def test_filters_that_are_off_cost_nothing_and_keep_everything() -> None:
    d = dist([1.0, 2.0, 3.0])
    assert all(s.logits is d.logits for s in d.stages)
    assert d.p is d.p_raw


@given(
    logits=st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=40),
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
    top_k=st.integers(0, 50),
    top_p=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
)
def test_what_is_drawn_was_kept(
    logits: list[float], temperature: float, top_k: int, top_p: float
) -> None:
    d = dist(logits, temperature=temperature, top_k=top_k, top_p=top_p)
    assert d.p.sum() == pytest.approx(1)
    kept = [s.n_kept for s in d.stages]
    assert kept == sorted(kept, reverse=True)
    pick = d.sampler.fork().pick(d.logits)
    assert d.standing(pick.token).cut_by is None
    assert d.standing(pick.token).p > 0
