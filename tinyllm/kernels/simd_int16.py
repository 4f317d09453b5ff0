"""Products with activations in 16 bits, in vectors: as their namesakes in `jit_int16.py`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyllm.kernels.build import kernel, uncached
from tinyllm.kernels.bundles import (
    fma_each,
    q4_dots_of_both,
    q8_dots_of_both,
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
    REST,
    TILE,
    Int16Rows,
)
from tinyllm.kernels.numbers import ROUNDER
from tinyllm.kernels.simd import Tile, make_matmul, prefetch_weights
from tinyllm.kernels.vectors import (
    add,
    at,
    largest_magnitude,
    load,
    load_halves,
    mul,
    splat,
    store_int8,
    sub,
    sum_integers,
    whole_integers,
)

Array = NDArray[Any]


@kernel
def put_int16(
    rows: Int16Rows, tile: int, lane: int, column: int, values: Array, start: int, n: int
) -> None:
    """As `jit_int16.put_int16`."""
    n_groups = rows.scales.shape[1]
    rounder, parts = splat(ROUNDER), splat(np.float32(REST))
    for g in range(n // GROUP):
        a = load(values, start + g * GROUP)
        b = load(values, start + g * GROUP + BLOCK)
        step = np.float32(largest_magnitude(a, b) * np.float32(1 / 127))
        inverse = np.float32(0.0)
        if not step < np.float32(1.1754944e-38):
            inverse = np.float32(1.0) / step
        begin = ((tile * n_groups + column // GROUP + g) * TILE + lane) * GROUP
        a, b = mul(a, splat(inverse)), mul(b, splat(inverse))
        whole_a, whole_b = add(a, rounder), add(b, rounder)
        value_a = store_int8(whole_a, rows.values, begin)
        value_b = store_int8(whole_b, rows.values, begin + BLOCK)
        a, b = sub(a, sub(whole_a, rounder)), sub(b, sub(whole_b, rounder))
        rest_a = store_int8(add(mul(a, parts), rounder), rows.rest, begin)
        rest_b = store_int8(add(mul(b, parts), rounder), rows.rest, begin + BLOCK)
        total = sum_integers(
            whole_integers(REST, value_a, rest_a), whole_integers(REST, value_b, rest_b)
        )
        scale = np.float32(step * np.float32(1 / REST))
        rows.scales[tile, column // GROUP + g, lane] = scale
        rows.starts[tile, column // GROUP + g, lane] = -128 * total
        rows.sums[tile, column // GROUP + g, lane] = scale * np.float32(total)


def _make_q8_tile(n: int) -> Tile:
    @kernel
    def q8_tile(
        weights: Any, n_groups: int, inputs: Any, out: Any, stride: int, first: bool
    ) -> None:
        tokens, rest, token_scales, starts, _ = inputs
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

    return q8_tile


def _make_q4_tile(n: int) -> Tile:
    @kernel
    def q4_tile(
        weights: Any, n_groups: int, inputs: Any, out: Any, stride: int, first: bool
    ) -> None:
        tokens, rest, token_scales, _, sums = inputs
        acc = zeros(n)
        for g in range(n_groups):
            begin, x = g * Q4_BYTES, g * GROUP * TILE
            if first:
                prefetch_weights(weights, begin, Q4_BYTES)
            dots = repeat(n, splat(np.int32(0)))
            dots = q4_dots_of_both(dots, weights, begin, tokens, rest, x)
            scales = load_halves(weights, begin + Q4_SCALES)
            minimums = load_halves(weights, begin + Q4_MINIMUMS)
            acc = scale_each(acc, dots, scales, token_scales, g * TILE)
            acc = fma_each(acc, minimums, sums, g * TILE, 1)
        store_each(acc, 1, out, 0, stride)

    return q4_tile


@uncached
def _int16_inputs(rows: Int16Rows, tile: int, lane: int) -> Any:
    begin = tile * rows.values.shape[1] * TILE + lane
    return (
        at(rows.values, begin * GROUP),
        at(rows.rest, begin * GROUP),
        at(rows.scales, begin),
        at(rows.starts, begin),
        at(rows.sums, begin),
    )


matmul_q8 = make_matmul(_make_q8_tile, _int16_inputs)
matmul_q4 = make_matmul(_make_q4_tile, _int16_inputs)
