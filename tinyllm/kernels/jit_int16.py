"""Products with activations in 16 bits, as plain loops: what `simd_int16.py` does, line by line.

An activation is two signed bytes, 254 · value + rest (`layout.Int16Rows`), so that its products
with bytes of weights are exact integers: two dot products of bytes a group, which every kind of
processor has an instruction for. With the weights of a 4-bit checkpoint, which are exact, what is
left of the error is float32's own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyllm.kernels.build import kernel
from tinyllm.kernels.jit import half_at
from tinyllm.kernels.layout import (
    BLOCK,
    GROUP,
    Q4,
    Q4_MINIMUMS,
    Q4_SCALES,
    Q8,
    Q8_SCALES,
    REST,
    Int16Rows,
)
from tinyllm.kernels.numbers import ROUNDER

Array = NDArray[Any]


@kernel
def put_int16(
    rows: Int16Rows, tile: int, lane: int, column: int, values: Array, start: int, n: int
) -> None:
    """As `jit.put_int8`, and what rounding left of each value in 254ths.

    (t - value) is exact, since it is no larger than a half; so only its own rounding is lost.
    """
    for g in range(n // GROUP):
        at = start + g * GROUP
        largest = np.float32(0.0)
        for k in range(GROUP):
            magnitude = abs(values[at + k])
            if magnitude > largest or magnitude != magnitude:  # a NaN stays
                largest = magnitude
        step = np.float32(largest * np.float32(1 / 127))
        inverse = np.float32(0.0)
        if not step < np.float32(1.1754944e-38):
            inverse = np.float32(1.0) / step
        group = column // GROUP + g
        total = 0
        for k in range(GROUP):
            t = np.float32(values[at + k] * inverse)
            shifted = np.float32(t + ROUNDER)
            value = np.int8(np.float32(shifted).view(np.int32) & 0xFF)
            left = np.float32(t - np.float32(shifted - ROUNDER))
            shifted = np.float32(np.float32(left * np.float32(REST)) + ROUNDER)
            rest = np.int8(np.float32(shifted).view(np.int32) & 0xFF)
            rows.values[tile, group, lane, k] = value
            rows.rest[tile, group, lane, k] = rest
            total += REST * int(value) + int(rest)
        scale = np.float32(step * np.float32(1 / REST))
        rows.scales[tile, group, lane] = scale
        rows.starts[tile, group, lane] = -128 * total
        rows.sums[tile, group, lane] = scale * np.float32(total)


@kernel
def matmul_q8(
    w: Q8,
    layer: int,
    first: int,
    count: int,
    rows: Int16Rows,
    tile: int,
    n: int,
    out: Array,
    out_row: int,
    column: int,
) -> None:
    """As `jit.matmul_f32`; a group's sum is below 32 · 255 · 32,385 < 2³¹."""
    for i in range(n):
        for b in range(count):
            for r in range(BLOCK):
                total = np.float32(0.0)
                for g in range(w.values.shape[2]):
                    dot = int(rows.starts[tile, g, i])
                    for k in range(GROUP):
                        byte = int(w.values[layer, first + b, g, 64 * (k // 4) + 4 * r + k % 4])
                        dot += byte * REST * int(rows.values[tile, g, i, k])
                        dot += byte * int(rows.rest[tile, g, i, k])
                    scale = half_at(w.values, layer, first + b, g, Q8_SCALES + 2 * r)
                    total += np.float32(dot) * (scale * rows.scales[tile, g, i])
                out[out_row + i, column + BLOCK * b + r] = total


@kernel
def matmul_q4(
    w: Q4,
    layer: int,
    first: int,
    count: int,
    rows: Int16Rows,
    tile: int,
    n: int,
    out: Array,
    out_row: int,
    column: int,
) -> None:
    """As matmul_q8, plus each group's minimum times the sum of its activations."""
    for i in range(n):
        for b in range(count):
            for r in range(BLOCK):
                total = np.float32(0.0)
                for g in range(w.values.shape[2]):
                    dot = 0
                    for k in range(GROUP):
                        half, j = k // (GROUP // 2), k % (GROUP // 2)
                        byte = int(w.values[layer, first + b, g, 64 * (j // 4) + 4 * r + j % 4])
                        nibble = byte >> 4 if half else byte & 15
                        dot += nibble * REST * int(rows.values[tile, g, i, k])
                        dot += nibble * int(rows.rest[tile, g, i, k])
                    scale = half_at(w.values, layer, first + b, g, Q4_SCALES + 2 * r)
                    total += np.float32(dot) * (scale * rows.scales[tile, g, i])
                    minimum = half_at(w.values, layer, first + b, g, Q4_MINIMUMS + 2 * r)
                    total += minimum * rows.sums[tile, g, i]
                out[out_row + i, column + BLOCK * b + r] = total
