"""A fused multiply-add where a processor has none: every bit of one that is rounded once."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tinyllm.kernels import processor
from tinyllm.kernels.build import uncached
from tinyllm.kernels.bundles import fma_each, load_each, store_each
from tinyllm.kernels.vectors import fma, load, store

Floats = NDArray[np.float32]
N = 4  # vectors of a bundle
LARGEST = Fraction(2**128 - 2**103)  # from half a step above float32's largest on it is infinite

pytestmark = pytest.mark.skipif(not processor.JIT, reason="nothing is compiled")


@pytest.fixture(scope="module")
def sums() -> Callable[[Floats, Floats, Floats], Floats]:
    """a · b + c of any number of float32s, compiled as for a processor without the instruction."""

    @uncached
    def one_by_one(a: Any, b: Any, c: Any, out: Any) -> None:
        for i in range(0, len(a), 16):
            store(out, i, fma(load(a, i), load(b, i), load(c, i)))

    def run(a: Floats, b: Floats, c: Floats) -> Floats:
        a, b, c = (np.resize(np.asarray(v, np.float32), -(-len(a) // 16) * 16) for v in (a, b, c))
        out = np.zeros_like(a)
        one_by_one(a, b, c, out)
        return out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processor, "_HAS_FMA", False)
        run(np.ones(1, np.float32), np.ones(1, np.float32), np.ones(1, np.float32))
    return run


def rounded(a: np.float32, b: np.float32, c: np.float32) -> np.float32:
    """a · b + c by whole numbers, to nearest, ties to even."""
    exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
    if abs(exact) >= LARGEST:
        return np.float32(np.inf if exact > 0 else -np.inf)
    with np.errstate(over="ignore"):
        near = np.float32(float(exact))
        around = [near, *(np.nextafter(near, np.float32(to)) for to in (-np.inf, np.inf))]
    finite = [x for x in around if np.isfinite(x)]
    return min(finite, key=lambda x: (abs(Fraction(float(x)) - exact), int(x.view(np.uint32)) & 1))


def check(sums: Any, a: Any, b: Any, c: Any) -> None:
    a, b, c = (np.asarray(v, np.float32) for v in (a, b, c))
    got = sums(a, b, c)[: len(a)]
    want = np.array([rounded(*three) for three in zip(a, b, c, strict=True)])
    wrong = np.flatnonzero(got != want)
    assert not len(wrong), [(a[i], b[i], c[i], got[i], want[i]) for i in wrong[:5]]


STEP = 2.0**-23


def test_half_way_is_told_from_nearly_half_way(sums: Any) -> None:
    """Rounded to 53 bits first, the sum would be a tie, and go up to the even neighbour."""
    odd = np.float32(1 + STEP)
    below = np.float32((1 - STEP) * 2.0**-24)  # odd · below = 2⁻²⁴ - 2⁻⁷⁰
    assert float(odd) * float(below) + float(odd) == 1 + STEP + 2.0**-24
    assert sums(np.array([odd]), np.array([below]), np.array([odd]))[0] == odd
    assert sums(np.array([odd]), np.array([-below]), np.array([-odd]))[0] == -odd
    exactly = np.float32(2.0**-24)
    ones = np.ones(1, np.float32)
    assert sums(ones, ones * exactly, ones * odd)[0] == 1 + 2 * STEP  # a tie: to even
    assert sums(ones, ones * exactly, ones)[0] == 1


def test_ties_of_every_size_and_sign(sums: Any) -> None:
    """c and half of its last bit, but for what (1 + k)(1 - k) lacks to 1, or with it."""
    rng, n = np.random.default_rng(1), 20_000
    size = 2.0 ** rng.integers(-148, 128, n)  # of c; below 2⁻¹²⁶ its last bit is 2⁻¹⁴⁹
    c = np.float32(size * (1 + rng.integers(0, 64, n) * STEP)) * rng.choice([-1, 1], n)
    half = np.maximum(size, 2.0**-126) * STEP / 2
    k = rng.integers(-8, 9, n) * STEP
    scale = 2.0 ** rng.integers(-20, 21, n)
    scale = np.where(half / scale < 2.0**-120, np.maximum(half * 2.0**120, 2.0**-100), scale)
    b = (1 - k) * half / scale * rng.choice([-1, 1], n)
    check(sums, (1 + k) * scale, b, c)


def test_below_the_smallest_normal_number(sums: Any) -> None:
    rng, n = np.random.default_rng(2), 20_000
    c = np.float32(rng.integers(-(2**24), 2**24, n) * 2.0**-149)
    a = np.float32(rng.uniform(1, 2, n) * 2.0 ** rng.integers(-90, -60, n))
    b = np.float32(rng.uniform(-2, 2, n) * 2.0 ** rng.integers(-90, -60, n))
    check(sums, a, b, c)
    # Less than half of the last bit there, by too little for 53 bits.
    odd = np.float32((2**22 + 1) * 2.0**-149)
    less = np.float32([(1 + STEP) * 2.0**-75]), np.float32([(1 - STEP) * 2.0**-75])
    assert sums(*less, np.array([odd]))[0] == odd
    k = rng.integers(-8, 9, n) * STEP
    c = np.float32(rng.integers(-(2**23), 2**23, n) * 2.0**-149)  # no tie of a larger one beside it
    check(sums, (1 + k) * 2.0**-75, (1 - k) * 2.0**-75 * rng.choice([-1, 1], n), c)


@settings(max_examples=100)
@given(st.integers(0, 2**32 - 1))
def test_any_bits_at_all(sums: Any, seed: int) -> None:
    """Numbers of all sizes, some with few bits, some that nearly cancel."""
    rng, n = np.random.default_rng(seed), 64
    a, b, c = (rng.integers(0, 2**32, n, np.uint64).astype(np.uint32) for _ in "abc")
    masks = np.array([0xFFFFFFFF, 0xFFFF0000, 0xFFFFE000], np.uint32)
    a, b, c = (np.where(np.isfinite(x.view(np.float32)), x, 0) & rng.choice(masks, n)
               for x in (a, b, c))  # fmt: skip
    a, b, c = (x.astype(np.uint32).view(np.float32) for x in (a, b, c))
    with np.errstate(all="ignore"):
        near = (a * b * np.float32(1 + STEP)).astype(np.float32)
    c = np.where(np.isfinite(near) & (rng.random(n) < 0.5), -near, c)
    check(sums, a, b, c)


def test_what_is_no_number_and_what_is_endless(sums: Any) -> None:
    inf, nan = np.inf, np.nan
    a, b, c = np.float32(
        [(inf, 2, 1), (inf, 0, 1), (inf, 1, -inf), (1, 1, inf), (nan, 1, 1), (1, 1, nan),
         (2.0**127, 2, 0), (2.0**127, 2, -(2.0**127)), (0, -1, 0), (-0.0, 1, -0.0)]
    ).T  # fmt: skip
    got = sums(np.ascontiguousarray(a), np.ascontiguousarray(b), np.ascontiguousarray(c))[:10]
    want = np.float32([inf, nan, nan, inf, nan, nan, inf, 2.0**127, 0, -0.0])
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(np.signbit(got[-2:]), [False, True])


def test_a_bundle_is_as_its_vectors(sums: Any) -> None:
    """Where one lane of one vector needs care, all others come out right, too."""

    @uncached
    def bundle(weights: Any, tokens: Any, before: Any, out: Any) -> None:
        acc = load_each(N, 1, before, 0, 16)
        for k in range(len(weights) // 16):
            acc = fma_each(acc, load(weights, 16 * k), tokens, k, len(tokens) // N)
        store_each(acc, 1, out, 0, 16)

    rng, width = np.random.default_rng(3), 64
    # Few bits: ties are frequent.
    w = np.float32(rng.integers(-200, 200, (width, 16)) / 64 + 2.0**-9)
    x = rng.standard_normal((N, width)).astype(np.float16).astype(np.float32)
    out = np.zeros((N, 16), np.float32)
    first = np.float32(rng.standard_normal((N, 16)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processor, "_HAS_FMA", False)
        bundle(w.reshape(-1), x.reshape(-1), first.reshape(-1), out.reshape(-1))
    want = first
    for k in range(width):
        want = sums(np.tile(w[k], N), np.repeat(x[:, k], 16), want.reshape(-1)).reshape(N, 16)
    np.testing.assert_array_equal(out, want)
