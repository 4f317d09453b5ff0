"""Every kernel against loops in float64: compiled, in vectors, and once more as plain Python."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba.core.errors import TypingError

from tests import kernels_oracle as oracle
from tests import naive
from tinyllm.config import ModelConfig
from tinyllm.kernels import dispatch, jit, jit_attention, numbers, quantize
from tinyllm.kernels.arrays import make_softmax
from tinyllm.kernels.build import kernel, uncached
from tinyllm.kernels.formats import FORMATS, Dtype, format_of
from tinyllm.kernels.layout import (
    F32,
    GROUP,
    NOTHING_YET,
    TILE,
    AttendScratch,
    Int8Rows,
    Keys,
    check_arrays,
    empty_f32_rows,
    empty_int8_rows,
    empty_int16_rows,
)
from tinyllm.kernels.paged import PagePool
from tinyllm.kernels.processor import JIT

IMPLEMENTATIONS: list[ModuleType] = [jit]
ATTENTION: list[ModuleType] = [jit_attention]
if JIT:
    from tinyllm.kernels import simd, simd_attention, vectors

    IMPLEMENTATIONS.append(simd)
    ATTENTION.append(simd_attention)

EXAMPLES = 25 if JIT else 3  # plain Python takes a thousand times as long
EXTREMES = [0.0, 1e-42, -1e-39, 3e38, -3e38, np.inf, -np.inf, np.nan]

both = pytest.mark.parametrize("kernels", IMPLEMENTATIONS, ids=lambda m: m.__name__.split(".")[-1])


@pytest.fixture(autouse=True)
def _float_warnings() -> Any:
    """Extremes overflow on purpose; only numpy scalars (plain Python) would warn of it."""
    with np.errstate(all="ignore"):
        yield


def stacked(weight: np.ndarray, kind: str, layers: int = 2) -> Any:
    form = FORMATS[kind]
    other = [form.matrix(np.zeros_like(weight))] * (layers - 1)
    return form.stack([*other, form.matrix(weight)], layers)


def make_rows(kernels: ModuleType, x: np.ndarray, kind: str) -> Any:
    """x (n, K) as activations in tile 1 of 2."""
    form = FORMATS[kind]
    put = kernel_of(kernels, form.put)
    rows = form.empty_rows(2 * TILE, x.shape[1])
    for i, row in enumerate(x):
        put(rows, 1, i, 0, np.ascontiguousarray(row), 0, x.shape[1])
    return rows


def kernel_of(kernels: ModuleType, name: str) -> Any:
    """A kernel as loops or in vectors, where it is in a module beside `jit` or `simd`, too."""
    modules = dispatch.LOOPS if kernels is jit else dispatch.VECTORS + dispatch.LOOPS
    return next(vars(module)[name] for module in modules if name in vars(module))


def matmul(kernels: ModuleType, w: Any, rows: Any, n: int, n_rows: int) -> np.ndarray:
    form = next(f for f in FORMATS.values() if f.packed is type(w) and f.activations is type(rows))
    kernel = kernel_of(kernels, f"matmul_{form.name}")
    blocks = -(-n_rows // 16)
    out = np.zeros((TILE + 1, 16 * blocks + 3), np.float32)
    kernel(w, 1, 0, blocks, rows, 1, n, out, 1, 2)
    return out[1 : 1 + n, 2 : 2 + n_rows]


# --- matrices -----------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("kind", list(FORMATS))
@settings(max_examples=EXAMPLES, deadline=None)
@given(data=st.data())
def test_matmul(kernels: ModuleType, kind: str, data: st.DataObject) -> None:
    n, groups = data.draw(st.integers(1, TILE)), data.draw(st.integers(1, 3))
    n_rows = data.draw(st.integers(1, 20))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    weight = rng.standard_normal((n_rows, groups * GROUP)).astype(np.float32)
    x = rng.standard_normal((n, groups * GROUP)).astype(np.float32) * 10
    w, rows = stacked(weight, kind), make_rows(kernels, x, kind)
    want = oracle.matmul(w, 1, n_rows, groups * GROUP, rows, 1, n)
    got = matmul(kernels, w, rows, n, n_rows)
    assert np.abs(got - want).max() <= 1e-5 * max(1.0, np.abs(want).max())
    # … and the format itself is near what it stands for.
    near = {"f32": 1e-5, "bf16": 0.02, "q8": 0.04, "gguf": 0.04, "q4": 0.3}[FORMATS[kind].weights]
    exact = x.astype(np.float64) @ weight.astype(np.float64).T
    assert np.abs(got - exact).max() <= near * np.sqrt(groups * GROUP) * 30


@both
@pytest.mark.parametrize("kind", list(FORMATS))
def test_a_token_has_the_same_bits_in_any_tile(kernels: ModuleType, kind: str) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((16, 64)).astype(np.float32)
    x = rng.standard_normal((TILE, 64)).astype(np.float32)
    w = stacked(weight, kind)
    whole = matmul(kernels, w, make_rows(kernels, x, kind), TILE, 16)
    for n in range(1, TILE):
        part = matmul(kernels, w, make_rows(kernels, x[:n], kind), n, 16)
        assert np.array_equal(part, whole[:n])


@pytest.mark.skipif(not JIT, reason="there is only one implementation here")
@pytest.mark.parametrize("kind", ["q8a8", "q4a8"])
def test_integer_arithmetic_agrees_to_the_bit(kind: str) -> None:
    """Scales of 1 leave integers alone, which float32 holds exactly: no rounding to differ by."""
    rng = np.random.default_rng(1)
    for _ in range(20):
        x = rng.integers(-127, 128, (3, 96)).astype(np.float32)
        x[:, ::GROUP] = 127  # so that every group's scale is 1
        if kind == "q8a8":
            values = rng.integers(-127, 128, (16, 96)).astype(np.int8)
            packed: Any = quantize.pack_q8(values, np.ones((16, 3), np.float16))
        else:
            nibbles = rng.integers(0, 16, (16, 96)).astype(np.uint8)
            low = np.full((16, 3), -8, np.float16)
            packed = quantize.pack_q4(nibbles, np.ones((16, 3), np.float16), low)
            values = (nibbles.astype(np.int16) - 8).astype(np.int8)
        w = type(packed)(*(np.stack([a, a]) for a in packed))
        want = x.astype(np.int64) @ values.astype(np.int64).T
        for kernels in IMPLEMENTATIONS:
            got = matmul(kernels, w, make_rows(kernels, x, kind), 3, 16)
            assert np.array_equal(got, want)


@pytest.mark.skipif(not JIT, reason="there is only one implementation here")
@pytest.mark.parametrize("kind", ["q8", "q4"])
@pytest.mark.parametrize("edge", [False, True], ids=["random", "at the edge"])
def test_sixteen_bits_are_exact(kind: str, edge: bool) -> None:
    """One group, weights' scale 1: what comes out is the integer dot product times one scale."""
    rng = np.random.default_rng(1)
    for _ in range(20):
        x = rng.standard_normal((5, GROUP)).astype(np.float32)
        low, high = (-128, 127) if kind == "q8" else (0, 15)
        values = rng.integers(low, high + 1, (16, GROUP))
        if edge:  # the largest sums that there are
            values = rng.choice([low, high], (16, GROUP))
            x = np.where(values[:5] == low, -1, 1).astype(np.float32)
        one = np.ones((16, 1), np.float16)
        packed: Any = (
            quantize.pack_q8(values.astype(np.int8), one)
            if kind == "q8"
            else quantize.pack_q4(values.astype(np.uint8), one, 0 * one)
        )
        w = type(packed)(*(np.stack([a, a]) for a in packed))
        for kernels in IMPLEMENTATIONS:
            rows = make_rows(kernels, x, kind)
            stands = 254 * rows.values[1, 0, :5].astype(np.int64) + rows.rest[1, 0, :5]
            dots = (stands @ values.T).astype(np.float32)
            got = matmul(kernels, w, rows, 5, 16)
            assert np.array_equal(got, dots * rows.scales[1, 0, :5, None])


@pytest.mark.skipif(not JIT, reason="only vectors assume a layout")
def test_vectors_refuse_what_they_would_read_wrong() -> None:
    weight = np.ones((16, 64), np.float32)
    w = stacked(weight, "f32")
    rows = make_rows(simd, np.ones((1, 64), np.float32), "f32")
    out = np.zeros((TILE, 32), np.float32)
    turned = F32(np.asfortranarray(w.values))
    with pytest.raises(TypingError, match="C-contiguous"):
        simd.matmul_f32(turned, 1, 0, 1, rows, 1, 1, out, 0, 0)
    every_other = F32(np.repeat(w.values, 2, axis=1)[:, ::2])
    with pytest.raises(TypingError, match="C-contiguous"):
        simd.matmul_f32(every_other, 1, 0, 1, rows, 1, 1, out, 0, 0)
    wrong = F32(w.values.astype(np.float64))
    with pytest.raises(TypingError, match="float32"):
        simd.matmul_f32(wrong, 1, 0, 1, rows, 1, 1, out, 0, 0)


def test_arrays_are_checked_before_kernels_see_them() -> None:
    raw = np.zeros(4 * 32 + 1, np.uint8)
    with pytest.raises(ValueError, match=r"weights.0.values is not aligned"):
        check_arrays((F32(raw[1:].view(np.float32)), 3), "weights")
    with pytest.raises(ValueError, match=r"weights.1 is not C-contiguous"):
        check_arrays((3, np.zeros((4, 4))[:, ::2]), "weights")


# --- activations --------------------------------------------------------------------------------


INTEGERS = {"put_int8": (empty_int8_rows, 127), "put_int16": (empty_int16_rows, 127 * 254)}
integers = pytest.mark.parametrize("put", list(INTEGERS))


@both
@integers
def test_put_integers(kernels: ModuleType, put: str) -> None:
    rng = np.random.default_rng(2)
    empty, largest = INTEGERS[put]
    for scale in (1.0, 1e-30, 1e30):
        x = (rng.standard_normal(3 * GROUP) * scale).astype(np.float32)
        rows = empty(16, 4 * GROUP)
        kernel_of(kernels, put)(rows, 1, 5, GROUP, x, 0, 3 * GROUP)
        back = [oracle.activation(rows, 1, 5, k) for k in range(4 * GROUP)]
        assert not np.any(back[:GROUP])
        worst = np.abs(np.array(back[GROUP:]) - x).reshape(3, -1).max(axis=1)
        # Float32's own rounding of x / step is as large as 16 bits' last places.
        bound = np.abs(x).reshape(3, -1).max(axis=1) / largest * (0.5001 if largest < 128 else 0.52)
        assert np.all(worst <= bound)
        for g in range(3):
            total = int(rows.values[1, g + 1, 5].astype(np.int64).sum())
            if put == "put_int16":
                total = 254 * total + int(rows.rest[1, g + 1, 5].astype(np.int64).sum())
            assert rows.starts[1, g + 1, 5] == -128 * total
            assert rows.sums[1, g + 1, 5] == rows.scales[1, g + 1, 5] * np.float32(total)


@both
@integers
@pytest.mark.parametrize("extreme", EXTREMES)
def test_put_integers_of_extremes(kernels: ModuleType, put: str, extreme: float) -> None:
    x = np.full(GROUP, 0.0, np.float32)
    x[7] = extreme
    rows = INTEGERS[put][0](8, GROUP)
    kernel_of(kernels, put)(rows, 0, 0, 0, x, 0, GROUP)
    got = oracle.activation(rows, 0, 0, 7)
    if np.isfinite(extreme):
        assert got == pytest.approx(extreme, rel=0.01, abs=1e-36)
    else:
        assert not np.isfinite(rows.scales[0, 0, 0])  # and so not what is computed from it


@pytest.mark.skipif(not JIT, reason="there is only one implementation here")
@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=GROUP, max_size=GROUP))
def test_put_integers_agrees_to_the_bit(numbers: list[float]) -> None:
    x = np.array(numbers, np.float32)
    for put, (empty, _) in INTEGERS.items():
        plain, vectors = empty(8, GROUP), empty(8, GROUP)
        kernel_of(jit, put)(plain, 0, 3, 0, x, 0, GROUP)
        kernel_of(simd, put)(vectors, 0, 3, 0, x, 0, GROUP)
        assert all(np.array_equal(a, b) for a, b in zip(plain, vectors, strict=True))


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.integers(0, 100), st.integers(1, 100), st.integers(0, 2**32))
def test_put_f32_anywhere(column: int, n: int, seed: int) -> None:
    x = np.random.default_rng(seed).standard_normal(n + 3).astype(np.float32)
    rows = empty_f32_rows(16, 224)
    jit.put_f32(rows, 1, 6, column, x, 3, n)
    want = np.zeros(224, np.float32)
    want[column : column + n] = x[3:]
    assert np.array_equal(rows.values[1, :, 6].reshape(-1), want)
    assert np.count_nonzero(rows.values) == n


@both
def test_norm_row(kernels: ModuleType) -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((4, 96)).astype(np.float32)
    x[1] *= 1e-25
    x[2] = 0
    weight = rng.standard_normal((2, 96)).astype(np.float32)
    want = naive.rms_norm(x, weight[1], 1e-5)
    for row in range(4):
        out = np.zeros(96, np.float32)
        kernels.norm_row(x, row, weight, 1, 1e-5, out)
        assert np.allclose(out, want[row], rtol=1e-5, atol=1e-30)


@both
def test_norm_row_passes_on_what_is_not_finite(kernels: ModuleType) -> None:
    for extreme in (np.inf, -np.inf, np.nan):
        x = np.ones((1, 32), np.float32)
        x[0, 3] = extreme
        out = np.zeros(32, np.float32)
        kernels.norm_row(x, 0, np.ones((1, 32), np.float32), 0, 1e-5, out)
        assert not np.isfinite(out[3])


@both
def test_swiglu(kernels: ModuleType) -> None:
    rng = np.random.default_rng(4)
    gate = np.concatenate([rng.standard_normal(26) * 8, [0, -0.0, 1e-42, -90, 90, -200]])
    gate, up = gate.astype(np.float32), rng.standard_normal(32).astype(np.float32)
    pairs = np.zeros((2, 64), np.float32)
    pairs[1] = np.concatenate([gate[:16], up[:16], gate[16:], up[16:]])
    out = np.zeros(32, np.float32)
    kernels.swiglu(pairs, 1, out)
    assert np.allclose(out, naive.swiglu(gate, up), rtol=1e-5, atol=1e-30)


@both
def test_exp(kernels: ModuleType) -> None:
    if kernels is jit:
        values = np.linspace(-86.9, 88, 500, dtype=np.float32)
        got = np.array([numbers.exp(np.float32(x)) for x in values])
    else:
        values = np.linspace(-86.9, 88, 512, dtype=np.float32)
        got = np.zeros_like(values)
        exp_all(values, got)
    want = np.exp(values.astype(np.float64))
    assert np.abs(got / want - 1).max() < 4e-7


@both
def test_exp_of_extremes(kernels: ModuleType) -> None:
    exp = numbers.exp if kernels is jit else kernels.exp_one
    assert exp(np.float32(0)) == 1  # exactly: a row that sees nothing new must not change
    assert exp(np.float32(-np.inf)) == 0
    assert exp(np.float32(-1e30)) == 0
    assert np.isnan(exp(np.float32(np.nan)))


if JIT:

    @kernel
    def exp_all(values: Any, out: Any) -> None:
        for i in range(0, len(values), 16):
            vectors.store(out, i, simd.exp(vectors.load(values, i)))

    @uncached
    def largest(values: Any) -> float:
        best: float = vectors.horizontal_max(vectors.load(values, 0))
        return best


@pytest.mark.skipif(not JIT, reason="nothing is compiled")
def test_the_largest_lane_wherever_it_is() -> None:
    values = np.linspace(-3, -1, 16, dtype=np.float32)
    values[[2, 11]] = -np.inf
    for at in range(16):
        assert largest(np.roll(values, at)) == -1
    assert largest(np.full(16, -np.inf, np.float32)) == -np.inf


@pytest.mark.skipif(not JIT, reason="nothing is compiled")
def test_lanes_are_compared_by_halves() -> None:
    """Lane by lane takes 130 cycles, at every page of keys."""
    largest(np.zeros(16, np.float32))
    (text,) = largest.inspect_asm().values()
    of_single_lanes = re.findall(r"\bv?(?:max|ucomi|cmp\w*)ss\b|\bf(?:maxn?m?|cmpe?)\s+s", text)
    assert len(of_single_lanes) <= 2  # the last step; there were 15 steps


def test_halves_like_numpy() -> None:
    step = 1 if JIT else 97
    bits = np.arange(0, 65536, step).astype(np.uint16)
    want = bits.view(np.float16).astype(np.float32)
    got = np.array([numbers.half_to_float(int(b)) for b in bits], np.float32)
    assert np.array_equal(got, want, equal_nan=True)
    rng = np.random.default_rng(5)
    values = (rng.standard_normal(2000) * 10.0 ** rng.integers(-9, 6, 2000)).astype(np.float32)
    values = np.concatenate([values, want, [65519.99, 65520, 1e38, -1e38, 6e-8, 2e-8]])
    values = values[: len(values) // step].astype(np.float32)
    back = np.array([numbers.float_to_half(v) for v in values], np.uint16)
    expected = values.astype(np.float16)
    assert np.array_equal(back.view(np.float16), expected, equal_nan=True)


# --- attention ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kernels", ATTENTION, ids=lambda m: m.__name__.split(".")[-1])
@pytest.mark.parametrize("kv_dtype", ["f32", "f16"])
@pytest.mark.parametrize("n_keys", [1, 15, 16, 63, 64, 65, 130] if JIT else [1, 17])
@pytest.mark.parametrize("head_dim", [32, 64])  # vectors take 64 elements at once where they can
def test_attend_and_merge(kernels: ModuleType, kv_dtype: str, n_keys: int, head_dim: int) -> None:
    config = ModelConfig(64, 64, 2, 4, 2, head_dim, 64, 256, 1e4, 1e-5, True)
    pool = PagePool(config, kv_dtype, 8)
    # What was never written, or belongs to an earlier sequence, must not matter: poison it.
    for array in pool.arrays:
        array[...] = np.float32(np.nan) if kv_dtype == "f32" else np.float16(np.nan).view(np.uint16)
    rng = np.random.default_rng(6)
    keys, values = rng.standard_normal((2, n_keys, head_dim)).astype(np.float32)
    if kv_dtype == "f16":
        keys, values = (a.astype(np.float16).astype(np.float32) for a in (keys, values))
    pages = np.array([[0, 0, 0, 0], [5, 2, 7, 1]], np.int32)
    half = np.zeros(head_dim, pool.arrays.cells.dtype)
    for t in range(n_keys):
        page, slot = int(pages[1, t // 64]), t % 64
        kernels.append_key(pool.arrays.cells, page, 1, 1, slot, keys, t, half)
        kernels.append_value(pool.arrays.cells, page, 1, 1, slot, values, t)

    q = np.zeros((24, head_dim), np.float32)
    q[3:11] = rng.standard_normal((8, head_dim)) * 2
    visible = np.zeros(24, np.int64)
    seen = [max(1, n_keys - i) for i in range(8)]
    visible[2:10] = seen
    scratch = AttendScratch(*(np.zeros(s, np.float32) for s in ((8, 64), (8, 16), 8)))
    state, merged = make_softmax((24,), head_dim), make_softmax((24,), head_dim)
    for n in (3, 4, 8):
        for array in (*merged, *state):
            array[...] = 0
        merged.top[:] = NOTHING_YET
        for start in range(0, n_keys, 64):  # chunks of one page, to have several
            run = Keys(*pool.arrays, pages, 1, 1, 1, start, min(n_keys, start + 64))
            kernels.attend(q, 3, n, visible, run, scratch, state, 2)
            for i in range(n):
                if visible[2 + i] > start:
                    kernels.merge(merged, 2 + i, state, 2 + i)
        for i in range(n):
            got = merged.mixed[2 + i] / merged.total[2 + i]
            scores = keys[: seen[i]].astype(np.float64) @ q[3 + i].astype(np.float64)
            weights = np.exp(scores - scores.max())
            want = weights @ values[: seen[i]] / weights.sum()
            assert np.abs(got - want).max() < 2e-5


def test_claiming_memory_spares_pages_in_use() -> None:
    pool = PagePool(ModelConfig(64, 64, 2, 4, 2, 32, 64, 256, 1e4, 1e-5, True), "f32", 6)
    taken = pool.take(2)
    pool.arrays.cells[...] = 7

    def cleared() -> list[int]:
        for thread in threading.enumerate():
            if thread.name == "tinyllm-claim":
                thread.join()
        return [page for page in range(6) if not pool.arrays.cells[page].any()]

    pool.claim_memory(3 * 64)
    assert cleared() == [2]
    assert pool.take(1) == [2]
    assert cleared() == [2]
    assert pool.take(1) == [3]  # the first beyond them: as many again
    assert cleared() == [2, 4, 5]
    assert pool.take(2) == [4, 5]
    assert (pool.arrays.cells[[*taken, 3]] == 7).all()


@both
def test_rope(kernels: ModuleType) -> None:
    rng = np.random.default_rng(7)
    x = rng.standard_normal((3, 32)).astype(np.float32)
    angles = rng.standard_normal((5, 16))
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    want = naive.apply_rope(x[:, None], np.tile(angles[4], (3, 1)))[:, 0] * 0.25
    out = np.full((5, 32), np.nan, np.float32)
    for lane in range(3):
        kernels.rope(x, lane, cos, sin, 4, 0.25, out, 1 + lane)
    assert np.allclose(out[1:4], want, atol=1e-6)
    assert np.isnan(out[[0, 4]]).all()
    for lane in range(3):
        kernels.rope(x, lane, cos, sin, 4, 0.25, x, lane)  # in place
    assert np.array_equal(x, out[1:4])


# --- formats ------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_rows", [1, 16, 21])
def test_packing_and_back(n_rows: int) -> None:
    rng = np.random.default_rng(8)
    weight = rng.standard_normal((n_rows, 96)).astype(np.float32)
    assert np.array_equal(quantize.unpack_f32(quantize.pack_f32(weight), n_rows), weight)
    rounded = quantize.from_bf16(quantize.to_bf16(weight))
    assert np.array_equal(quantize.unpack_bf16(quantize.pack_bf16(weight), n_rows), rounded)
    q8 = quantize.quantize_q8(weight)
    q4 = quantize.quantize_q4(weight)
    for there, back in (
        (q8, quantize.unpack_q8(quantize.pack_q8(*q8), n_rows)),
        (q4, quantize.unpack_q4(quantize.pack_q4(*q4), n_rows)),
    ):
        assert all(np.array_equal(a, b) for a, b in zip(there, back, strict=True))


def test_rounding_is_to_the_nearest() -> None:
    rng = np.random.default_rng(9)
    weight = rng.standard_normal((8, 64)).astype(np.float32)
    weight[0] = 0
    weight[1] = 1e-42
    for restored, steps in (
        (quantize.dequantize_q8(*quantize.quantize_q8(weight)), 254),
        (quantize.dequantize_q4(*quantize.quantize_q4(weight)), 30),
    ):
        groups = weight.reshape(8, 2, GROUP)
        span = (groups.max(-1) - groups.min(-1)) if steps == 30 else 2 * np.abs(groups).max(-1)
        worst = np.abs(restored - weight).reshape(8, 2, GROUP).max(-1)
        assert np.all(worst <= span / steps * 1.01 + 1e-3 * np.abs(groups).max(-1) + 1e-40)


def test_bf16_rounding() -> None:
    given_ = np.array([1.0, 1.00390625, 1.01171875, -np.inf, np.nan, 3.4e38], np.float32)
    want = [1.0, 1.0, 1.015625, -np.inf, np.nan, np.inf]  # ties go to the even neighbour
    got = quantize.from_bf16(quantize.to_bf16(given_))
    assert np.array_equal(got, np.array(want, np.float32), equal_nan=True)


def test_odd_widths_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 32"):
        FORMATS["q8"].matrix(np.ones((4, 40), np.float32))


def test_formats_are_named_once() -> None:
    assert tuple(FORMATS) == get_args(Dtype)
    with pytest.raises(ValueError, match="must be one of f32, bf16, q8, q4, gguf, q8a8, q4a8, not"):
        format_of("q5")


# --- the same without compiling, and without vectors ----------------------------------------------


@pytest.mark.skipif(not JIT, reason="this is that run")
def test_the_same_as_plain_python() -> None:
    again({"NUMBA_DISABLE_JIT": "1"})


def again(environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__],
        env={**os.environ, **environment},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]


def test_rows_types() -> None:
    assert isinstance(empty_int8_rows(9, 64), Int8Rows)
    assert empty_int8_rows(9, 64).values.shape == (2, 2, 8, 32)
    assert empty_f32_rows(9, 64).values.shape == (2, 2, 8, 32)
