"""The compiled sampler draws what sampler.py draws."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from tinyllm import sampler as plain
from tinyllm.distribution import Distribution
from tinyllm.engine.sampling import CompiledSampler, RowScratch, look, top_logprobs
from tinyllm.engine.types import TraceParams
from tinyllm.kernels.drawing import Drawing
from tinyllm.sampler import Sampler, SamplingParams


@st.composite
def rows(draw: st.DrawFn) -> np.ndarray:
    """Logits as models make them, and worse: flat, peaked, tied, with most of them cut."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    row = rng.normal(0, draw(st.sampled_from([0.01, 1.0, 4.0, 30.0])), draw(st.integers(1, 3000)))
    if draw(st.booleans()):
        row = np.round(row)
    if draw(st.booleans()):
        row[rng.random(len(row)) < 0.9] = -np.inf
        row[rng.integers(len(row))] = 0.5
    return row.astype(np.float32)


@settings(max_examples=300, deadline=None)
@given(
    row=rows(),
    temperature=st.sampled_from([0.0, 0.01, 0.5, 1.0, 2.0]),
    top_k=st.sampled_from([0, 1, 2, 40, 2999]),
    top_p=st.sampled_from([0.0, 0.1, 0.5, 0.9, 0.999, 1.0]),
    seed=st.integers(0, 2**64 - 1),
    penalty=st.sampled_from([0.0, 1.5]),
)
def test_the_same_tokens_and_logprobs(
    row: np.ndarray, temperature: float, top_k: int, top_p: float, seed: int, penalty: float
) -> None:
    params = SamplingParams(
        temperature, top_k, top_p, seed, presence_penalty=penalty, logit_bias={0: 2.0}
    )
    slow, fast = Sampler(params, 3), CompiledSampler(params, 3, RowScratch(len(row)))
    for _ in range(4):
        want, got = slow.pick(row), fast.pick(row)
        if want.token != got.token:  # only where the sums' last digits decide: see `edge`
            assert edge(slow, row)
            return
        assert got.chosen_by == want.chosen_by
        assert math.isclose(got.logprob, want.logprob, abs_tol=1e-5)


def edge(sampler: Sampler, row: np.ndarray) -> bool:
    """Whether a cut or a draw fell within rounding of a boundary."""
    sampler.rewind(1)
    x = sampler.stages(row)[-1][1]
    p = np.cumsum(plain.probabilities(x))
    u = plain.uniform(sampler.seed, sampler.stream, len(sampler.picked))
    near_draw = np.abs(p - u).min() < 1e-6
    y = sampler.stages(row)[-2][1]
    mass = np.cumsum(np.sort(plain.probabilities(y))[::-1])
    return bool(near_draw or np.abs(mass - sampler.params.top_p).min() < 1e-6)


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**64 - 1), stream=st.integers(0, 2**16), step=st.integers(0, 2**40)
)  # fmt: skip
def test_the_same_uniform_numbers(seed: int, stream: int, step: int) -> None:
    got = Drawing(1).uniform(np.uint64(seed), np.uint64(stream), np.uint64(step))
    assert got == plain.uniform(seed, stream, step)


def test_they_are_drawn_without_a_warning_where_nothing_is_compiled() -> None:
    script = """
import numpy as np
from tinyllm.kernels import draw
for numbers in (1, 2, 3), (2**64 - 1, 2**16, 2**40), (0, 0, 0):
    print(draw.uniform(*map(np.uint64, numbers)))
"""
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    command = [sys.executable, "-W", "error::RuntimeWarning", "-c", script]
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    want = [plain.uniform(*n) for n in ((1, 2, 3), (2**64 - 1, 2**16, 2**40), (0, 0, 0))]
    assert shown.stdout.split() == [str(u) for u in want], shown.stderr


@settings(max_examples=100, deadline=None)
@given(row=rows(), k=st.integers(1, 20))
def test_the_largest_logits(row: np.ndarray, k: int) -> None:
    best = np.argsort(-row, kind="stable")[:k]
    assert Drawing(len(row)).largest(row, k).tolist() == best.tolist()
    got = top_logprobs(row, k, RowScratch(len(row)))
    assert [token for token, _ in got] == best.tolist()
    norm = plain.log_normalizer(row)
    np.testing.assert_allclose([p for _, p in got], row[best].astype(float) - norm, atol=1e-5)


def test_exponentials_to_the_last_places() -> None:
    row = np.linspace(-86.9, 0, 100_000).astype(np.float32)
    kernels = Drawing(len(row))
    kernels.exp_row(row, np.float32(0))
    exps, sums = kernels.room.exps, kernels.room.sums
    want = np.exp(row.astype(np.float64))
    assert np.abs(exps / want - 1).max() < 2e-7
    assert math.isclose(sums.sum(), math.fsum(want), rel_tol=1e-7)
    kernels.exp_row(np.full(len(row), -np.inf, np.float32), np.float32(0))
    assert (exps == 0).all()


def test_draws_follow_the_distribution() -> None:
    """Every slice of the unit interval is as wide as its token's probability."""
    row = np.log(np.array([0.1, 0.0, 0.4, 0.2, 0.3, 0.0]) + 1e-300).astype(np.float32)
    row[[1, 5]] = -np.inf
    scratch = RowScratch(6)
    scratch.fill(row)
    counts = np.zeros(6)
    for u in (np.arange(10_000) + 0.5) / 10_000:
        counts[scratch.kernels.draw(row, scratch.top, 0, 1.0, u)] += 1
    np.testing.assert_allclose(counts / 10_000, [0.1, 0, 0.4, 0.2, 0.3, 0], atol=2e-4)


@pytest.mark.parametrize("u", [0.0, 1 - 2**-53])
def test_the_ends_of_the_interval(u: float) -> None:
    row = np.full(5000, -np.inf, np.float32)
    row[[700, 3000]] = [0.0, -1.0]
    scratch = RowScratch(5000)
    scratch.fill(row)
    for top_p in (1.0, 0.999):
        token = scratch.kernels.draw(row, scratch.top, 0, top_p, u)
        assert token == (700 if u == 0.0 else 3000)


def test_nan_is_an_error_as_in_the_plain_sampler() -> None:
    row = np.zeros(10, np.float32)
    row[3] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        CompiledSampler(SamplingParams(seed=1), 0, RowScratch(10)).pick(row)


def test_a_look_is_of_the_time_before_the_pick() -> None:
    """Penalties count what was drawn until then; the mask and the place of the draw are in it."""
    rng = np.random.default_rng(5)
    params = SamplingParams(0.8, 20, 0.9, seed=11, frequency_penalty=1.5)
    sampler = CompiledSampler(params, 2, RowScratch(500))
    wanted = TraceParams(candidates=4, stages=True, logits=3)
    row = rng.normal(0, 2, 500).astype(np.float32)  # the same each time: penalties move the draw
    for index in range(6):
        allowed = rng.random(500) < 0.5 if index % 2 else None
        before = Distribution(row, sampler.fork(), allowed=allowed)
        pick = sampler.pick(row, allowed)
        seen = look(wanted, row, sampler, allowed, pick)
        assert seen.stages == tuple((s.name, s.n_kept, s.mass) for s in before.stages)
        assert list(seen.candidates) == before.best_and(pick.token, 4)
        assert len(seen.candidates) == 4 + (seen.candidates[-1].rank >= 4)
        assert next(c for c in seen.candidates if c.token == pick.token).cut_by is None
        assert (seen.entropy, seen.chosen_by) == (before.entropy, "sample")
        assert seen.uniform == plain.uniform(11, 2, index)
        assert (seen.logits is not None) == (index < 3)
    assert look(TraceParams(), row, sampler, None, pick).stages is None


def test_a_look_keeps_the_logits_whatever_becomes_of_the_row() -> None:
    row = np.arange(10, dtype=np.float32)
    sampler = CompiledSampler(SamplingParams(temperature=0), 0, RowScratch(10))
    seen = look(TraceParams(logits=1), row, sampler, None, sampler.pick(row))
    row[:] = 0
    assert seen.logits is not None
    assert seen.logits.tolist() == list(range(10))
