"""kernels/reference.py against loops over single floats, on sizes and values of every kind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests import naive
from tests.llama_folders import LLAMA3_ROPE, small_config
from tinyllm.config import ModelConfig
from tinyllm.kernels import reference as ops

SIZES = st.integers(1, 9)
DTYPES = st.sampled_from([np.float32, np.float64])
# Ordinary values, zeros, denormals and large ones; sums of products of them stay finite.
VALUES = st.one_of(
    st.floats(-8, 8, width=32),
    st.sampled_from([0.0, -0.0, 1e-42, -1e-42, 1e-30, 1e4, -1e4]),
)


def arrays(shape: Any, dtype: Any = np.float32, elements: Any = VALUES) -> Any:
    return hnp.arrays(dtype, shape, elements=elements)


def assert_near(ours: Any, exact: Any, scale: Any = 1.0) -> None:
    """Within a few roundings of `scale`, the size of what was summed; never a wider dtype."""
    tolerance = 16 * float(np.finfo(ours.dtype).eps) * np.maximum(scale, 1e-37)
    assert ours.shape == exact.shape
    gap = np.abs(ours - exact)
    assert np.all(gap <= tolerance), f"off by {gap.max()}, allowed {np.max(tolerance)}"


@given(st.data(), SIZES, SIZES, SIZES, DTYPES)
def test_linear(data: Any, n_tokens: int, n_in: int, n_out: int, dtype: Any) -> None:
    x = data.draw(arrays((n_tokens, n_in), dtype))
    weight = data.draw(arrays((n_out, n_in), dtype))
    out = ops.linear(x, weight)
    assert out.dtype == dtype
    assert_near(out, naive.linear(x, weight), naive.linear(np.abs(x), np.abs(weight)))


@pytest.mark.parametrize("n_in", [70, ops.LONG_SUM + 100])
@pytest.mark.parametrize("n_tokens", [1, 2, ops.FEW_ROWS, ops.FEW_ROWS + 1])
def test_linear_of_few_rows_and_of_many(n_tokens: int, n_in: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n_tokens, n_in)).astype(np.float32)
    weight = rng.standard_normal((9, n_in)).astype(np.float32)
    out = ops.linear(x, weight)
    assert out.flags.c_contiguous
    exact = x.astype(np.float64) @ weight.T.astype(np.float64)
    assert_near(out, exact, np.abs(x) @ np.abs(weight).T)


@given(st.data(), SIZES, SIZES, DTYPES)
def test_rms_norm(data: Any, n_tokens: int, dim: int, dtype: Any) -> None:
    x = data.draw(arrays((n_tokens, dim), dtype))
    weight = data.draw(arrays(dim, dtype))
    out = ops.rms_norm(x, weight, 1e-5)
    assert out.dtype == dtype
    exact = naive.rms_norm(x, weight, 1e-5)
    # Between the two products a tiny x may lose digits, as denormals do.
    assert_near(out, exact, np.maximum(np.abs(exact), np.abs(weight) * 1e-37))


def test_rms_norm_of_huge_values_does_not_overflow() -> None:
    x = np.array([[3e37, -3e37, 0.0, 3e37]], np.float32)  # squares overflow float32
    out = ops.rms_norm(x, np.ones(4, np.float32), 1e-5)
    np.testing.assert_allclose(out, naive.rms_norm(x, np.ones(4), 1e-5), rtol=1e-6)


def test_rms_norm_of_zeros_is_zero() -> None:
    assert not ops.rms_norm(np.zeros((2, 6), np.float32), np.ones(6, np.float32), 1e-5).any()


@pytest.mark.parametrize("rope", [{}, {"rope_type": "linear", "factor": 3.0}, LLAMA3_ROPE])
@pytest.mark.parametrize("head_dim", [2, 10, 64])
def test_rope_frequencies(rope: dict[str, Any], head_dim: int) -> None:
    config = ModelConfig.from_hf(
        small_config(head_dim=head_dim, rope_theta=100_000.0, rope_scaling=rope)
    )
    freqs = ops.rope_frequencies(config)
    assert freqs.dtype == np.float32
    np.testing.assert_allclose(freqs, naive.rope_frequencies(config), rtol=2e-6)


def test_llama3_scaling_keeps_stretches_and_blends() -> None:
    """The three ranges of wavelengths are all there in the test above, not just one of them."""
    plain = ModelConfig.from_hf(small_config(head_dim=64))
    scaled = ModelConfig.from_hf(small_config(head_dim=64, rope_scaling=LLAMA3_ROPE))
    ratio = ops.rope_frequencies(scaled) / ops.rope_frequencies(plain)
    assert np.isclose(ratio, 1.0).any()
    assert np.isclose(ratio, 1 / 8).any()
    assert ((ratio > 0.13) & (ratio < 0.99)).any()


def test_rope_angles_are_float32_products() -> None:
    """Position × frequency is rounded to float32, as models are trained; the cosine is exact."""
    config = ModelConfig.from_hf(small_config(head_dim=64, rope_theta=100_000.0))
    positions = np.array([0, 1, 77, 1_499, 100_003])
    for dtype in (np.float32, np.float64):
        cos, sin = ops.rope_tables(config, positions, dtype)
        assert cos.dtype == sin.dtype == dtype
        assert cos.shape == sin.shape == (5, 32)
        angles = positions.astype(np.float32)[:, None] * ops.rope_frequencies(config)
        assert angles.dtype == np.float32
        tolerance = float(np.finfo(dtype).eps)
        np.testing.assert_allclose(cos, np.cos(angles.astype(np.float64)), atol=tolerance)
        np.testing.assert_allclose(sin, np.sin(angles.astype(np.float64)), atol=tolerance)


@given(st.data(), SIZES, SIZES, st.integers(1, 6), DTYPES)
def test_apply_rope(data: Any, n_tokens: int, n_heads: int, half: int, dtype: Any) -> None:
    x = data.draw(arrays((n_tokens, n_heads, 2 * half), dtype))
    angles = data.draw(arrays((n_tokens, half), np.float64, st.floats(-100, 100)))
    out = ops.apply_rope(x, np.cos(angles).astype(dtype), np.sin(angles).astype(dtype))
    assert out.dtype == dtype
    length = np.hypot(x[..., :half], x[..., half:])
    assert_near(out, naive.apply_rope(x, angles), np.concatenate([length, length], axis=-1))


def test_apply_rope_pairs_halves_not_neighbours() -> None:
    x = np.array([[[1, 2, 3, 4]]], np.float32)
    quarter_turn = np.array([[0.0, 0.0]], np.float32), np.array([[1.0, 1.0]], np.float32)
    np.testing.assert_array_equal(ops.apply_rope(x, *quarter_turn), [[[-3, -4, 1, 2]]])


@pytest.mark.parametrize(("n_tokens", "n_visible"), [(1, 1), (1, 5), (3, 3), (2, 5), (0, 0)])
def test_causal_mask(n_tokens: int, n_visible: int) -> None:
    expected = [[s <= n_visible - n_tokens + t for s in range(n_visible)] for t in range(n_tokens)]
    mask = ops.causal_mask(n_tokens, n_visible)
    np.testing.assert_array_equal(mask, np.array(expected, bool).reshape(n_tokens, n_visible))


@st.composite
def attention_inputs(draw: Any) -> tuple[Any, Any, Any]:
    """q (T, H, d), keys and values (S, KV, d): T new tokens behind S - T cached ones."""
    n_tokens, n_cached = draw(st.integers(1, 6)), draw(st.integers(0, 6))
    n_kv_heads, group, head_dim = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(SIZES)
    dtype = draw(DTYPES)
    values = st.one_of(st.floats(-3, 3, width=32), st.sampled_from([0.0, 1e-42, 100.0, -100.0]))
    q = draw(arrays((n_tokens, n_kv_heads * group, head_dim), dtype, values))
    shape = (n_cached + n_tokens, n_kv_heads, head_dim)
    return q, draw(arrays(shape, dtype, values)), draw(arrays(shape, dtype, values))


@given(attention_inputs())
def test_attention_scores(inputs: tuple[Any, Any, Any]) -> None:
    q, keys, _ = inputs
    scores = ops.attention_scores(q, keys)
    exact = naive.attention_scores(q, keys)
    assert scores.dtype == q.dtype
    np.testing.assert_array_equal(np.isneginf(scores), np.isneginf(exact))
    seen = np.isfinite(exact)
    size = naive.attention_scores(np.abs(q), np.abs(keys))
    assert_near(scores[seen], exact[seen], size[seen])


@given(attention_inputs())
def test_attention(inputs: tuple[Any, Any, Any]) -> None:
    q, keys, values = inputs
    out = ops.attention(q, keys, values)
    assert out.dtype == q.dtype
    assert out.shape == q.shape
    # An error in a score is an error of the same size, relatively, in its weight.
    size = np.abs(naive.attention_scores(np.abs(q), np.abs(keys)))
    largest = 1 + size[np.isfinite(size)].max()
    assert_near(out, naive.attention(q, keys, values), 4 * largest * np.abs(values).max())


@given(attention_inputs())
def test_attention_pattern_is_causal_and_sums_to_one(inputs: tuple[Any, Any, Any]) -> None:
    q, keys, _ = inputs
    pattern = ops.softmax(ops.attention_scores(q, keys))
    allowed = ops.causal_mask(len(q), len(keys))
    assert not pattern[:, ~allowed].any()
    np.testing.assert_allclose(pattern.sum(-1), 1, rtol=0, atol=1e-5)


@given(attention_inputs(), st.randoms(use_true_random=False))
def test_attention_does_not_see_the_future(inputs: tuple[Any, Any, Any], random: Any) -> None:
    q, keys, values = inputs
    if len(q) < 2:
        return
    before = ops.attention(q, keys, values)[0]
    future = len(keys) - len(q) + 1  # the first position that the first query may not see
    keys[future:] = random.uniform(-5, 5)
    values[future:] = random.uniform(-5, 5)
    np.testing.assert_array_equal(ops.attention(q, keys, values)[0], before)


@given(st.data(), st.integers(0, 4), SIZES, DTYPES)
def test_softmax(data: Any, rows: int, width: int, dtype: Any) -> None:
    values = st.one_of(VALUES, st.sampled_from([-np.inf, 1e38, -1e38]))
    scores = data.draw(arrays((rows, width), dtype, values))
    out = ops.softmax(scores)
    assert out.dtype == dtype
    assert_near(out, naive.softmax(scores), 4.0)


def test_softmax_of_rows_that_see_nothing() -> None:
    nothing = np.full((2, 3), -np.inf, np.float32)
    np.testing.assert_array_equal(ops.softmax(nothing), np.zeros((2, 3)))
    assert ops.softmax(np.zeros((4, 0), np.float32)).shape == (4, 0)


@given(st.data(), DTYPES)
def test_attention_mix(data: Any, dtype: Any) -> None:
    n_kv_heads, group, n_tokens, n_visible, head_dim = (
        data.draw(st.integers(1, 4)) for _ in range(5)
    )
    pattern = data.draw(
        arrays((n_kv_heads * group, n_tokens, n_visible), dtype, st.floats(0, 1, width=32))
    )
    values = data.draw(arrays((n_visible, n_kv_heads, head_dim), dtype))
    out = ops.attention_mix(pattern, values)
    assert out.dtype == dtype
    assert_near(
        out, naive.attention_mix(pattern, values), naive.attention_mix(pattern, np.abs(values))
    )


@given(st.data(), SIZES, DTYPES)
def test_silu_and_swiglu(data: Any, width: int, dtype: Any) -> None:
    values = st.one_of(VALUES, st.sampled_from([-3e38, 3e38, -800.0, -90.0]))
    gate = data.draw(arrays((2, width), dtype, values))
    up = data.draw(arrays((2, width), dtype, st.floats(-1, 1, width=32)))
    exact = naive.silu(gate)
    # Around -10, sigmoid by tanh cancels: the error is relative to x, not to silu(x).
    assert ops.silu(gate).dtype == ops.swiglu(gate, up).dtype == dtype
    assert_near(ops.silu(gate), exact, np.abs(gate))
    assert_near(ops.swiglu(gate, up), naive.swiglu(gate, up), np.abs(gate))


def test_no_tokens_at_all() -> None:
    x = np.zeros((0, 6), np.float32)
    assert ops.linear(x, np.ones((4, 6), np.float32)).shape == (0, 4)
    assert ops.rms_norm(x, np.ones(6, np.float32), 1e-5).shape == (0, 6)
    assert ops.swiglu(x, x).shape == (0, 6)
    rope = np.zeros((0, 3), np.float32)
    assert ops.apply_rope(x.reshape(0, 1, 6), rope, rope).shape == (0, 1, 6)
