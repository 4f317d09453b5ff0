"""Products with a GGUF file's own blocks, in vectors: as their namesakes in `jit_mixture.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types as _types
from numpy.typing import NDArray

from tinyllm.kernels import emit, processor
from tinyllm.kernels.build import kernel, part, uncached
from tinyllm.kernels.bundles import (
    _check_dots,
    _dots_of_both,
    _q4_weights,
    fma_each,
    q4_dots_of_both,
    q8_dots_of_both,
    q8_starts,
    repeat,
    scale_each,
    start_each,
    store_each,
    zeros,
)
from tinyllm.kernels.emit import F32X16, I8, I32X16, LANES, constant
from tinyllm.kernels.jit_mixture import sum_halves
from tinyllm.kernels.layout import BLOCK, GROUP, Q8_BYTES, Q8_SCALES, TILE, TILES
from tinyllm.kernels.mixture import (
    GROUP_BYTES,
    HIGH,
    NIBBLES,
    Q4,
    Q4K,
    Q5,
    Q5K,
    Q6K,
    Q6K_BYTES,
    Q6K_SCALES,
    Q8,
    SUPER_BYTES,
    SUPER_GROUPS,
    TO_D,
    TO_D_MIN,
    TO_MINIMUMS,
    HalvedRows,
    Mixture,
)
from tinyllm.kernels.simd import WHOLE_TILES, Tile, prefetch_weights
from tinyllm.kernels.simd_int16 import put_int16
from tinyllm.kernels.vectors import at, f32x16, literal, load_halves, mul, op, operation, splat

Array = NDArray[Any]
types: Any = _types  # numba is typed in parts, differently from release to release

NOTHING = np.int32(0)


@kernel
def put_halved(
    rows: HalvedRows, tile: int, lane: int, column: int, values: Array, start: int, n: int
) -> None:
    """As `jit_mixture.put_halved`."""
    put_int16(rows, tile, lane, column, values, start, n)  # type: ignore[arg-type]
    sum_halves(rows, tile, lane, column, n)


# --- integers of five and six bits, and scales of a byte ------------------------------------------


def _add_bits(builder: Any, vectors: list[Any], packed: Any, begin: Any, bits: int) -> list[Any]:
    """Byte vectors of nibbles, each with its one or two higher bits from what lies behind them."""
    mask, whole = constant(I32X16, 0x10101010 if bits == 1 else 0x30303030), []
    for j, vector in enumerate(vectors):
        run, place = divmod(j * bits, 8)
        behind = builder.add(begin, ir.Constant(begin.type, NIBBLES + HIGH * run))
        high = emit.load(builder, packed, behind, I32X16)
        if place < 4:
            high = builder.shl(high, constant(I32X16, 4 - place))
        elif place > 4:
            high = builder.lshr(high, constant(I32X16, place - 4))
        whole.append(builder.or_(vector, builder.and_(high, mask)))
    return whole


@operation
def q5_dots_of_both(typing_context, acc, weights, begin, values, rest, offset):  # type: ignore[no-untyped-def]
    """As `bundles.q4_dots_of_both`, for a group of nibbles and fifth bits."""
    del typing_context
    _check_dots(acc, weights, values)
    _check_dots(acc, weights, rest)
    dot4 = processor.KIND.dot4_nibbles  # up to 63 fits as well: 2 · 63 · 127 < 2¹⁵

    def code(b: Any, sums: Any, packed: Any, at: Any, *of_tokens: Any) -> Any:
        vectors = _add_bits(b, _q4_weights(b, packed, at), packed, at, 1)
        return _dots_of_both(b, sums, acc.count, dot4, vectors, *of_tokens)

    return op(acc, [acc, weights, begin, values, rest, offset], code)


@operation
def q6_dots_of_both(typing_context, acc, weights, begin, half, values, rest, offset):  # type: ignore[no-untyped-def]
    """The same for half a group (a constant, 0 or 1) of nibbles and two higher bits."""
    del typing_context
    _check_dots(acc, weights, values)
    _check_dots(acc, weights, rest)
    dot4, first = processor.KIND.dot4_nibbles, 4 * literal(half)

    def code(b: Any, sums: Any, packed: Any, at: Any, _: Any, v: Any, r: Any, to: Any) -> Any:
        vectors = _add_bits(b, _q4_weights(b, packed, at), packed, at, 2)[first : first + 4]
        to = b.add(to, ir.Constant(to.type, 4 * first))
        return _dots_of_both(b, sums, acc.count, dot4, vectors, v, r, to)

    return op(acc, [acc, weights, begin, half, values, rest, offset], code)


def _load_small(array: Any, offset: Any, widen: str) -> Any:
    def code(builder: Any, data: Any, at: Any) -> Any:
        narrow = emit.load(builder, data, at, ir.VectorType(I8, LANES))
        return builder.sitofp(getattr(builder, widen)(narrow, I32X16), F32X16)

    return op(f32x16, [array, offset], code)


@operation
def load_bytes_as_floats(typing_context, array, offset):  # type: ignore[no-untyped-def]
    """Sixteen unsigned bytes as floats."""
    del typing_context
    return _load_small(array, offset, "zext")


@operation
def load_signed_as_floats(typing_context, array, offset):  # type: ignore[no-untyped-def]
    """Sixteen bytes, read as signed, as floats."""
    del typing_context
    return _load_small(array, offset, "sext")


# --- a block of 16 outputs for n tokens, by its kind ----------------------------------------------


def _make_halves_tile(n: int, dots_of_both: Any, kind: int) -> Tile:
    size = GROUP_BYTES[kind]
    step = size + 4 * BLOCK

    @part
    def tile(weights: Any, n_groups: int, inputs: Any, out: Any, stride: int, first: bool) -> None:
        tokens, rest, token_scales, _, sums, _ = inputs
        acc = zeros(n)
        for g in range(n_groups):
            begin, x = g * step, g * GROUP * TILE
            if first:
                prefetch_weights(weights, begin, step)
            dots = dots_of_both(repeat(n, splat(NOTHING)), weights, begin, tokens, rest, x)
            scales = load_halves(weights, begin + size)
            minimums = load_halves(weights, begin + size + 2 * BLOCK)
            acc = scale_each(acc, dots, scales, token_scales, g * TILE)
            acc = fma_each(acc, minimums, sums, g * TILE, 1)
        store_each(acc, 1, out, 0, stride)

    return tile


def _make_q8_tile(n: int) -> Tile:
    @part
    def tile(weights: Any, n_groups: int, inputs: Any, out: Any, stride: int, first: bool) -> None:
        tokens, rest, token_scales, starts, _, _ = inputs
        acc = zeros(n)
        for g in range(n_groups):
            begin, x = g * Q8_BYTES, g * GROUP * TILE
            if first:
                prefetch_weights(weights, begin, Q8_BYTES)
            dots = q8_starts(n, starts, g * TILE)
            dots = q8_dots_of_both(dots, weights, begin, tokens, rest, x)
            scales = load_halves(weights, begin + Q8_SCALES)
            acc = scale_each(acc, dots, scales, token_scales, g * TILE)
        store_each(acc, 1, out, 0, stride)

    return tile


def _make_super_tile(n: int, dots_of_both: Any, kind: int) -> Tile:
    size, whole = GROUP_BYTES[kind], SUPER_BYTES[kind]
    to_scales, share = SUPER_GROUPS * size, whole // SUPER_GROUPS

    @part
    def tile(weights: Any, n_groups: int, inputs: Any, out: Any, stride: int, first: bool) -> None:
        tokens, rest, token_scales, _, sums, _ = inputs
        acc = zeros(n)
        for block in range(n_groups // SUPER_GROUPS):
            start = block * whole
            behind = start + to_scales
            d = load_halves(weights, behind + TO_D)
            d_min = load_halves(weights, behind + TO_D_MIN)
            for j in range(SUPER_GROUPS):
                g = block * SUPER_GROUPS + j
                begin, x = start + j * size, g * GROUP * TILE
                if first:
                    prefetch_weights(weights, start + j * share, share)
                dots = dots_of_both(repeat(n, splat(NOTHING)), weights, begin, tokens, rest, x)
                of_group = behind + j * BLOCK
                scales = mul(d, load_bytes_as_floats(weights, of_group))
                minimums = mul(d_min, load_bytes_as_floats(weights, of_group + TO_MINIMUMS))
                acc = scale_each(acc, dots, scales, token_scales, g * TILE)
                acc = fma_each(acc, minimums, sums, g * TILE, 1)
        store_each(acc, 1, out, 0, stride)

    return tile


def _make_q6k_tile(n: int) -> Tile:
    size, share = GROUP_BYTES[Q6K], Q6K_BYTES // SUPER_GROUPS

    @part
    def tile(weights: Any, n_groups: int, inputs: Any, out: Any, stride: int, first: bool) -> None:
        tokens, rest, token_scales, _, _, halves = inputs
        acc = zeros(n)
        for block in range(n_groups // SUPER_GROUPS):
            start = block * Q6K_BYTES
            behind = start + Q6K_SCALES
            d = load_halves(weights, behind + TO_D)
            for j in range(SUPER_GROUPS):
                g = block * SUPER_GROUPS + j
                begin, x = start + j * size, g * GROUP * TILE
                if first:
                    prefetch_weights(weights, start + j * share, share)
                of_group, of_tokens = behind + 2 * j * BLOCK, 2 * g * TILE
                dots = start_each(n, halves, of_tokens)
                dots = q6_dots_of_both(dots, weights, begin, 0, tokens, rest, x)
                scales = mul(d, load_signed_as_floats(weights, of_group))
                acc = scale_each(acc, dots, scales, token_scales, g * TILE)
                dots = start_each(n, halves, of_tokens + TILE)
                dots = q6_dots_of_both(dots, weights, begin, 1, tokens, rest, x)
                scales = mul(d, load_signed_as_floats(weights, of_group + BLOCK))
                acc = scale_each(acc, dots, scales, token_scales, g * TILE)
        store_each(acc, 1, out, 0, stride)

    return tile


def _make_block(make_tile: Callable[[int], Tile]) -> Callable[..., None]:
    """A block for any n; see `simd.make_matmul`."""
    tile_1, tile_2, tile_4, tile_8 = (make_tile(n) for n in (1, 2, 4, 8))

    @part
    def block(
        weights: Any, n_groups: int, inputs: Any, later: Any, n: int, out: Array, begin: int,
        first: bool,
    ) -> None:  # fmt: skip
        stride = out.shape[1]
        if n == 1:
            tile_1(weights, n_groups, inputs, at(out, begin), stride, first)
        elif n == 2:
            tile_2(weights, n_groups, inputs, at(out, begin), stride, first)
        elif n <= 4:
            tile_4(weights, n_groups, inputs, at(out, begin), stride, first)
        elif WHOLE_TILES:
            tile_8(weights, n_groups, inputs, at(out, begin), stride, first)
        else:
            tile_4(weights, n_groups, inputs, at(out, begin), stride, first)
            tile_4(weights, n_groups, later, at(out, begin + 4 * stride), stride, False)

    return block


_q4 = _make_block(lambda n: _make_halves_tile(n, q4_dots_of_both, Q4))
_q5 = _make_block(lambda n: _make_halves_tile(n, q5_dots_of_both, Q5))
_q8 = _make_block(_make_q8_tile)
_q4k = _make_block(lambda n: _make_super_tile(n, q4_dots_of_both, Q4K))
_q5k = _make_block(lambda n: _make_super_tile(n, q5_dots_of_both, Q5K))
_q6k = _make_block(_make_q6k_tile)


@part
def _inputs(rows: HalvedRows, tile: int, lane: int) -> Any:
    begin = tile * rows.values.shape[1] * TILE
    return (
        at(rows.values, (begin + lane) * GROUP),
        at(rows.rest, (begin + lane) * GROUP),
        at(rows.scales, begin + lane),
        at(rows.starts, begin + lane),
        at(rows.sums, begin + lane),
        at(rows.halves, 2 * begin + lane),
    )


@uncached
def matmul_gguf(
    w: Mixture,
    layer: int,
    first: int,
    count: int,
    rows: HalvedRows,
    tile: int,
    n: int,
    out: Array,
    out_row: int,
    column: int,
) -> None:
    """As `jit_mixture.matmul_gguf`."""
    n_groups = rows.scales.shape[1]
    inputs, later = _inputs(rows, tile, 0), _inputs(rows, tile, TILE // 2)
    first_tile = n < TILE or tile % TILES == 0
    for b in range(count):
        kind = w.kinds[layer, first + b]
        weights = at(w.values, w.starts[layer, first + b])
        begin = out_row * out.shape[1] + column + b * BLOCK
        if kind == Q4K:
            _q4k(weights, n_groups, inputs, later, n, out, begin, first_tile)
        elif kind == Q6K:
            _q6k(weights, n_groups, inputs, later, n, out, begin, first_tile)
        elif kind == Q5K:
            _q5k(weights, n_groups, inputs, later, n, out, begin, first_tile)
        elif kind == Q8:
            _q8(weights, n_groups, inputs, later, n, out, begin, first_tile)
        elif kind == Q5:
            _q5(weights, n_groups, inputs, later, n, out, begin, first_tile)
        else:
            _q4(weights, n_groups, inputs, later, n, out, begin, first_tile)
