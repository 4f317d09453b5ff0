"""The hot kernels of `jit.py` again, in vectors of sixteen lanes.

Same names, arguments and meaning as there; only how they are computed differs. A *bundle* is one
vector of 16 outputs for each of N tokens, held in registers while the inputs stream past
(`bundles.py`). Whatever N is, each output is summed in the same order, so a token's result has
the same bits alone and in any batch, and on any kind of processor (`processor.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyllm.kernels.build import inlined, kernel, part
from tinyllm.kernels.bundles import (
    add_each,
    fma_each,
    q4_dots,
    q8_dots,
    q8_starts,
    repeat,
    scale_each,
    store_each,
    zeros,
)
from tinyllm.kernels.layout import (
    BLOCK,
    GROUP,
    Q4_BYTES,
    Q4_MINIMUMS,
    Q4_SCALES,
    Q8_BYTES,
    Q8_SCALES,
    TILE,
    TILES,
    F32Rows,
    Int8Rows,
)
from tinyllm.kernels.numbers import (
    C0,
    C1,
    C2,
    C3,
    C4,
    C5,
    EXP_HIGHEST,
    EXP_LOWEST,
    LN2_HIGH,
    LN2_LOW,
    LOG2_E,
    ROUNDER,
)
from tinyllm.kernels.processor import KIND, PREFETCH_DISTANCE
from tinyllm.kernels.vectors import (
    add,
    at,
    clip,
    div,
    first_lane,
    fma,
    high_bf16,
    horizontal_sum,
    largest_magnitude,
    load,
    load_bytes,
    load_halves,
    low_bf16,
    mul,
    prefetch,
    splat,
    store,
    store_int8,
    sub,
    sum_integers,
    times_power_of_two,
    zero_below,
)

Array = NDArray[Any]
Tile = Callable[..., None]

WHOLE_TILES = KIND.sums >= TILE
LINE = 64  # bytes of a cache line
PANEL = 32  # inputs summed before they join the rest: short sums keep float32's rounding small


# --- numbers ------------------------------------------------------------------------------------


@kernel
def exp(x: Any) -> Any:
    """eˣ of sixteen floats; see `numbers.exp`."""
    clipped = clip(x, EXP_LOWEST, EXP_HIGHEST)
    shifted = fma(clipped, splat(LOG2_E), splat(ROUNDER))
    n = sub(shifted, splat(ROUNDER))
    r = fma(n, splat(-LN2_HIGH), clipped)
    r = fma(n, splat(-LN2_LOW), r)
    p = fma(splat(C5), r, splat(C4))
    p = fma(p, r, splat(C3))
    p = fma(p, r, splat(C2))
    p = fma(p, r, splat(C1))
    p = fma(p, r, splat(C0))
    p = add(fma(mul(p, r), r, r), splat(np.float32(1.0)))
    return zero_below(times_power_of_two(p, shifted), x, EXP_LOWEST)


@kernel
def exp_one(x: np.float32) -> np.float32:
    """The same of one float, by the same instructions."""
    one: np.float32 = first_lane(exp(splat(np.float32(x))))
    return one


# --- activations --------------------------------------------------------------------------------


@kernel
def norm_row(x: Array, row: int, weight: Array, layer: int, eps: float, out: Array) -> None:
    """As `jit.norm_row`."""
    dim = x.shape[1]
    squares = splat(np.float32(0.0))
    for k in range(0, dim, BLOCK):
        v = load(x, row * dim + k)
        squares = fma(v, v, squares)
    mean = horizontal_sum(squares) / dim
    scale = splat(np.float32(1.0 / math.sqrt(mean + eps)))
    for k in range(0, dim, BLOCK):
        v = mul(load(x, row * dim + k), scale)
        store(out, k, mul(v, load(weight, layer * dim + k)))


@kernel
def rope(
    values: Array, lane: int, cos: Array, sin: Array, position: int, scale: float, out: Array,
    row: int,
) -> None:  # fmt: skip
    """As `jit.rope`."""
    half = cos.shape[1]
    of, to, angle = lane * values.shape[1], row * out.shape[1], position * half
    factor = splat(np.float32(scale))
    for i in range(0, half, BLOCK):
        a, b = load(values, of + i), load(values, of + half + i)
        c, s = load(cos, angle + i), load(sin, angle + i)
        store(out, to + i, mul(sub(mul(a, c), mul(b, s)), factor))
        store(out, to + half + i, mul(add(mul(b, c), mul(a, s)), factor))


@kernel
def put_int8(
    rows: Int8Rows, tile: int, lane: int, column: int, values: Array, start: int, n: int
) -> None:
    """As `jit.put_int8`."""
    n_groups = rows.scales.shape[1]
    rounder = splat(ROUNDER)
    for g in range(n // GROUP):
        a = load(values, start + g * GROUP)
        b = load(values, start + g * GROUP + BLOCK)
        scale = np.float32(largest_magnitude(a, b) * np.float32(1 / 127))
        inverse = np.float32(0.0)
        if not scale < np.float32(1.1754944e-38):
            inverse = np.float32(1.0) / scale
        begin = ((tile * n_groups + column // GROUP + g) * TILE + lane) * GROUP
        a, b = add(mul(a, splat(inverse)), rounder), add(mul(b, splat(inverse)), rounder)
        first = store_int8(a, rows.values, begin)
        total = sum_integers(first, store_int8(b, rows.values, begin + BLOCK))
        rows.scales[tile, column // GROUP + g, lane] = scale
        rows.starts[tile, column // GROUP + g, lane] = -128 * total
        rows.sums[tile, column // GROUP + g, lane] = scale * np.float32(total)


@kernel
def swiglu(pairs: Array, row: int, out: Array) -> None:
    """As `jit.swiglu`."""
    one, zero = splat(np.float32(1.0)), splat(np.float32(0.0))
    at = row * pairs.shape[1]
    for half in range(2):
        gate, up = load(pairs, at + 32 * half), load(pairs, at + 32 * half + BLOCK)
        silu = div(gate, add(one, exp(sub(zero, gate))))
        store(out, BLOCK * half, mul(silu, up))


@kernel
def add_row(x: Array, row: int, column: int, out: Array, lane: int, n: int) -> None:
    """As `jit.add_row`; n is a multiple of 16."""
    to, of = row * x.shape[1] + column, lane * out.shape[1]
    for k in range(0, n, BLOCK):
        store(x, to + k, add(load(x, to + k), load(out, of + k)))


@kernel
def divide_row(value: Array, row: int, divisor: np.float32, out: Array, to: int) -> None:
    """As `jit.divide_row`."""
    width = value.shape[1]
    for d in range(0, width, BLOCK):
        store(out, to + d, div(load(value, row * width + d), splat(divisor)))


# --- matrices: a block of 16 outputs for n tokens, then all blocks ------------------------------
#
# A tile's `weights`, `out` and every array of `inputs` are pointers to where it begins; `out` gets
# token i's 16 outputs at i · stride. The `first` of the tiles that go through a block reads it from
# memory; the others find it in the cache.


@part
def prefetch_weights(weights: Any, begin: int, n_bytes: int) -> None:
    """Ask for as many bytes of weights as are read now, `PREFETCH_DISTANCE` bytes on."""
    if PREFETCH_DISTANCE > 0:
        for line in range(0, n_bytes, LINE):
            prefetch(weights, begin + PREFETCH_DISTANCE + line)


def _make_f32_tile(n: int) -> Tile:
    @part
    def f32_tile(weights: Any, width: int, inputs: Any, out: Any, stride: int, first: bool) -> None:
        (tokens,) = inputs
        acc = zeros(n)
        for start in range(0, width, PANEL):
            part = zeros(n)
            for k in range(start, start + PANEL):
                x = start * TILE + k - start
                if PREFETCH_DISTANCE > 0 and first:
                    prefetch(weights, k * BLOCK + PREFETCH_DISTANCE // 4)
                part = fma_each(part, load(weights, k * BLOCK), tokens, x, GROUP)
            acc = add_each(acc, part)
        store_each(acc, 1, out, 0, stride)

    return f32_tile


def _make_bf16_tile(n: int) -> Tile:
    @part
    def bf16_tile(
        weights: Any, n_pairs: int, inputs: Any, out: Any, stride: int, first: bool
    ) -> None:
        (tokens,) = inputs
        acc = zeros(n)
        for start in range(0, n_pairs, PANEL // 2):
            part = zeros(n)
            for k in range(start, start + PANEL // 2):
                pairs = load_bytes(weights, k * 2 * BLOCK)
                if PREFETCH_DISTANCE > 0 and first:
                    prefetch(weights, k * 2 * BLOCK + PREFETCH_DISTANCE // 2)
                x = start * 2 * TILE + (k - start) * 2
                part = fma_each(part, low_bf16(pairs), tokens, x, GROUP)
                part = fma_each(part, high_bf16(pairs), tokens, x + 1, GROUP)
            acc = add_each(acc, part)
        store_each(acc, 1, out, 0, stride)

    return bf16_tile


def _make_q8_tile(n: int) -> Tile:
    @part
    def q8_tile(
        weights: Any, n_groups: int, inputs: Any, out: Any, stride: int, first: bool
    ) -> None:
        tokens, token_scales, starts, _ = inputs
        acc = zeros(n)
        for g in range(n_groups):
            begin = g * Q8_BYTES
            if first:
                prefetch_weights(weights, begin, Q8_BYTES)
            dots = q8_starts(n, starts, g * TILE)
            dots = q8_dots(dots, weights, begin, tokens, g * GROUP * TILE)
            scales = load_halves(weights, begin + Q8_SCALES)
            acc = scale_each(acc, dots, scales, token_scales, g * TILE)
        store_each(acc, 1, out, 0, stride)

    return q8_tile


def _make_q4_tile(n: int) -> Tile:
    @part
    def q4_tile(
        weights: Any, n_groups: int, inputs: Any, out: Any, stride: int, first: bool
    ) -> None:
        tokens, token_scales, _, sums = inputs
        acc = zeros(n)
        for g in range(n_groups):
            begin = g * Q4_BYTES
            if first:
                prefetch_weights(weights, begin, Q4_BYTES)
            dots = repeat(n, splat(np.int32(0)))
            dots = q4_dots(dots, weights, begin, tokens, g * GROUP * TILE)
            scales = load_halves(weights, begin + Q4_SCALES)
            minimums = load_halves(weights, begin + Q4_MINIMUMS)
            acc = scale_each(acc, dots, scales, token_scales, g * TILE)
            acc = fma_each(acc, minimums, sums, g * TILE, 1)
        store_each(acc, 1, out, 0, stride)

    return q4_tile


# Pointers to the activations of a tile's tokens from `lane` on.


@part
def _f32_inputs(rows: F32Rows, tile: int, lane: int) -> Any:
    begin = tile * rows.values.shape[1] * TILE + lane
    return (at(rows.values, begin * GROUP),)


@part
def _int8_inputs(rows: Int8Rows, tile: int, lane: int) -> Any:
    begin = tile * rows.values.shape[1] * TILE + lane
    return (
        at(rows.values, begin * GROUP),
        at(rows.scales, begin),
        at(rows.starts, begin),
        at(rows.sums, begin),
    )


def make_matmul(
    make_tile: Callable[[int], Tile], inputs_of: Callable[[Any, int, int], Any]
) -> Callable[..., None]:
    """The product of a format, from its tiles; `inputs_of` points at a tile's activations.

    With 3 tokens, say, the tile for 4 is used; the fourth lane's leftovers are computed too and
    land in row 3 of `out`, which must have room for them. More than 4 tokens are one tile of 8
    where the registers hold that many sums, and two of 4 where they don't.
    """
    tile_1, tile_2, tile_4, tile_8 = (make_tile(n) for n in (1, 2, 4, 8))

    @inlined
    def matmul(
        w: Any, layer: int, first: int, count: int, rows: Any, tile: int, n: int,
        out: Array, out_row: int, column: int,
    ) -> None:  # fmt: skip
        n_blocks, n_steps = w.values.shape[1], w.values.shape[2]
        size = w.values.strides[1] // w.values.itemsize  # of a block
        stride = out.shape[1]
        inputs = inputs_of(rows, tile, 0)
        first_tile = n < TILE or tile % TILES == 0
        for b in range(count):
            weights = at(w.values, (layer * n_blocks + first + b) * size)
            begin = out_row * stride + column + b * BLOCK
            if n == 1:
                tile_1(weights, n_steps, inputs, at(out, begin), stride, first_tile)
            elif n == 2:
                tile_2(weights, n_steps, inputs, at(out, begin), stride, first_tile)
            elif n <= 4:
                tile_4(weights, n_steps, inputs, at(out, begin), stride, first_tile)
            elif WHOLE_TILES:
                tile_8(weights, n_steps, inputs, at(out, begin), stride, first_tile)
            else:
                tile_4(weights, n_steps, inputs, at(out, begin), stride, first_tile)
                later = inputs_of(rows, tile, 4)
                tile_4(weights, n_steps, later, at(out, begin + 4 * stride), stride, False)

    return matmul


# As their namesakes in `jit.py`.
matmul_f32 = make_matmul(_make_f32_tile, _f32_inputs)
matmul_bf16 = make_matmul(_make_bf16_tile, _f32_inputs)
matmul_q8a8 = make_matmul(_make_q8_tile, _int8_inputs)
matmul_q4a8 = make_matmul(_make_q4_tile, _int8_inputs)
