"""The parts that families add, against loops over Python floats written from the formulas."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tinyllm.config import ModelConfig
from tinyllm.families.parts import RopeScaling
from tinyllm.kernels import reference as ops

RNG = np.random.default_rng(0)
X = RNG.normal(size=(3, 10)) * 3


def test_layer_norm() -> None:
    weight, bias = RNG.normal(size=10), RNG.normal(size=10)
    got = ops.layer_norm(X, weight, bias, 1e-3)
    for t, row in enumerate(X.tolist()):
        mean = math.fsum(row) / 10
        variance = math.fsum((v - mean) ** 2 for v in row) / 10
        for i, v in enumerate(row):
            want = (v - mean) / math.sqrt(variance + 1e-3) * weight[i] + bias[i]
            assert got[t, i] == pytest.approx(want, rel=1e-9)
    np.testing.assert_allclose(ops.layer_norm(X, None, None, 0.0).std(axis=1), 1, rtol=1e-9)


FORMULAS: dict[str, Any] = {
    "gelu": lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi)
                                                    * (x + 0.044715 * x**3))),
    "relu": lambda x: max(x, 0.0),
    "relu2": lambda x: max(x, 0.0) ** 2,
}  # fmt: skip


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_activations(name: str, dtype: Any) -> None:
    got = getattr(ops, name)(X.astype(dtype))
    assert got.dtype == dtype
    want = [[FORMULAS[name](float(dtype(v))) for v in row] for row in X]
    np.testing.assert_allclose(got, want, rtol=1e-5 if dtype == np.float32 else 1e-9, atol=1e-7)


def test_xielu() -> None:
    p, n = np.array([0.3]), np.array([-0.2])
    above, below = math.log1p(math.exp(0.3)), 0.5 + math.log1p(math.exp(-0.2))
    for v, got in zip(X.reshape(-1), ops.xielu(X, p, n).reshape(-1), strict=True):
        want = above * v * v if v > 0 else below * (math.expm1(min(v, -1e-6)) - v)
        assert got == pytest.approx(want + 0.5 * v, rel=1e-9)


def test_clamped_swiglu() -> None:
    gate, up = X, X[:, ::-1]
    got = ops.clamped_swiglu(gate, up, 1.702, 2.0)
    for t in range(3):
        for i in range(10):
            g, u = min(gate[t, i], 2.0), min(max(up[t, i], -2.0), 2.0)
            want = g / (1 + math.exp(-1.702 * g)) * (u + 1)
            assert got[t, i] == pytest.approx(want, rel=1e-9)


def test_soft_cap() -> None:
    np.testing.assert_allclose(ops.soft_cap(X, 2.0), [[2 * math.tanh(v / 2) for v in r] for r in X])


def test_a_sink_takes_weight_and_gives_nothing() -> None:
    scores, sinks = RNG.normal(size=(2, 3, 4)), np.array([0.5, -1.0])
    got = ops.softmax_with_sink(scores, sinks)
    for h in range(2):
        for t in range(3):
            total = math.exp(sinks[h]) + math.fsum(math.exp(s) for s in scores[h, t])
            for s in range(4):
                assert got[h, t, s] == pytest.approx(math.exp(scores[h, t, s]) / total, rel=1e-9)


@pytest.mark.parametrize("normalised", [True, False])
def test_experts_are_the_best_and_the_first_of_equals(normalised: bool) -> None:
    scores = np.array([[1.0, 3.0, 3.0, -1.0], [0.0, 0.0, 0.0, 0.0]])
    chosen, weights = ops.choose_experts(scores, 2, normalised)
    assert chosen.tolist() == [[1, 2], [0, 1]]
    whole = [math.exp(v) for v in scores[0]]
    share = math.exp(3) / math.fsum(whole)
    np.testing.assert_allclose(weights[0], [0.5, 0.5] if normalised else [share, share])
    np.testing.assert_allclose(weights[1], [0.5, 0.5] if normalised else [0.25, 0.25])


def test_neighbours_turn_together_and_the_rest_stays() -> None:
    x = np.arange(12.0).reshape(1, 2, 6)
    angle = np.array([[0.3, 1.1]])
    got = ops.apply_rope_neighbours(x, np.cos(angle), np.sin(angle))
    for h in range(2):
        for i in range(2):
            turned = complex(x[0, h, 2 * i], x[0, h, 2 * i + 1]) * complex(
                math.cos(angle[0, i]), math.sin(angle[0, i])
            )
            assert got[0, h, 2 * i] == pytest.approx(turned.real)
            assert got[0, h, 2 * i + 1] == pytest.approx(turned.imag)
        assert got[0, h, 4:].tolist() == x[0, h, 4:].tolist()


def test_a_part_of_a_head_turns() -> None:
    x = RNG.normal(size=(2, 1, 8))
    angle = np.array([[0.3, 1.1], [0.6, 2.2]])
    whole = ops.apply_rope(x[..., :4], np.cos(angle), np.sin(angle))
    part = ops.apply_rope(x, np.cos(angle), np.sin(angle))
    np.testing.assert_array_equal(part[..., :4], whole)
    np.testing.assert_array_equal(part[..., 4:], x[..., 4:])


def test_a_window_is_what_a_query_sees() -> None:
    mask = ops.window_mask(3, 7, 4)
    for t in range(3):
        for s in range(7):
            assert mask[t, s] == (4 + t - s < 4)
    q, keys = RNG.normal(size=(3, 2, 4)), RNG.normal(size=(7, 1, 4))
    scores = ops.attention_scores(q, keys, 0.7, 2.0, 4)
    for h in range(2):
        for t in range(3):
            for s in range(7):
                seen = s <= 4 + t and 4 + t - s < 4
                dot = 0.7 * math.fsum(a * b for a, b in zip(q[t, h], keys[s, 0], strict=True))
                want = 2 * math.tanh(dot / 2) if seen else -math.inf
                assert scores[h, t, s] == pytest.approx(want)


def test_queries_grow_with_their_position() -> None:
    got = ops.temperature(np.array([0, 7, 8, 25]), 0.1, 8)
    want = [1.0, 1.0, 1 + 0.1 * math.log(2), 1 + 0.1 * math.log(4)]
    np.testing.assert_allclose(got, want)


def config(scaling: RopeScaling | None, max_seq_len: int = 128, dim: int = 16) -> ModelConfig:
    return ModelConfig(8, 8, 1, 1, 1, 16, 9, max_seq_len, 1e4, 1e-5, True, rope_scaling=scaling,
                       rotary_dim=dim)  # fmt: skip


def test_yarn_keeps_fast_pairs_and_stretches_slow_ones() -> None:
    """From the formulas of https://arxiv.org/abs/2309.00071, section 3.2."""
    for truncate in (True, False):
        scaling = RopeScaling("yarn", 4.0, original_max_seq_len=64, beta_fast=8.0, beta_slow=1.0,
                              truncate=truncate, attention_factor=1.3)  # fmt: skip
        got = ops.rope_frequencies(config(scaling))
        ends = []
        for times in (8.0, 1.0):
            ends.append(16 * math.log(64 / (times * 2 * math.pi)) / (2 * math.log(1e4)))
        low, high = (math.floor(ends[0]), math.ceil(ends[1])) if truncate else ends
        low, high = max(low, 0), min(high, 15)
        for i in range(8):
            plain = 1e4 ** (-2 * i / 16)
            stretched = min(max((i - low) / (high - low), 0), 1)
            want = plain / 4 * stretched + plain * (1 - stretched)
            assert got[i] == pytest.approx(want, rel=1e-5)
        cos, sin = ops.rope_tables(config(scaling), np.arange(3), np.float64)
        np.testing.assert_allclose(cos**2 + sin**2, 1.3**2)


def test_dynamic_is_plain_within_the_context() -> None:
    plain = ops.rope_frequencies(config(None))
    np.testing.assert_array_equal(ops.rope_frequencies(config(RopeScaling("dynamic", 8.0))), plain)
