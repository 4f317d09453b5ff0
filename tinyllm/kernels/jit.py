"""Every kernel as plain loops: what `simd.py` does, readable line by line.

This is the oracle that the vectors are held to, and what runs as ordinary Python under
NUMBA_DISABLE_JIT=1. Integer arithmetic is exact, so there both agree to the bit; float sums run in
another order here, so they agree to rounding. (`embed_…` and `put_f32` only move numbers: of those
there is no other form.)

Shapes and names as in `layout.py`. `tile` and `lane` name a token of an activation, `layer` one
matrix of a stack, `first` and `count` a run of its 16-row blocks.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyllm.kernels.build import kernel
from tinyllm.kernels.layout import (
    BF16,
    BLOCK,
    F32,
    GROUP,
    Q4,
    Q4_MINIMUMS,
    Q4_SCALES,
    Q8,
    Q8_SCALES,
    F32Rows,
    Int8Rows,
)
from tinyllm.kernels.numbers import ROUNDER, bf16_to_float, exp, half_to_float

Array = NDArray[Any]


@kernel
def half_at(values: Array, layer: int, block: int, group: int, at: int) -> np.float32:
    """The float16 in bytes `at` and `at` + 1 of a group, low byte first."""
    low, high = values[layer, block, group, at], values[layer, block, group, at + 1]
    return half_to_float(int(low) | (int(high) << 8))


# --- activations --------------------------------------------------------------------------------


@kernel
def norm_row(x: Array, row: int, weight: Array, layer: int, eps: float, out: Array) -> None:
    """RMS norm of x[row], (dim,), times weight[layer], into out[:dim]."""
    total = np.float32(0.0)
    for k in range(x.shape[1]):
        total += x[row, k] * x[row, k]
    scale = np.float32(1.0 / math.sqrt(total / x.shape[1] + eps))
    for k in range(x.shape[1]):
        out[k] = x[row, k] * scale * weight[layer, k]


@kernel
def put_f32(
    rows: F32Rows, tile: int, lane: int, column: int, values: Array, start: int, n: int
) -> None:
    """Inputs column … column + n of one token := values[start : start + n]."""
    done = 0
    while done < n:
        group, first = (column + done) // GROUP, (column + done) % GROUP
        size = min(GROUP - first, n - done)
        for k in range(size):
            rows.values[tile, group, lane, first + k] = values[start + done + k]
        done += size


@kernel
def put_int8(
    rows: Int8Rows, tile: int, lane: int, column: int, values: Array, start: int, n: int
) -> None:
    """The same in 8 bits: each group of 32 scaled so that its largest magnitude becomes 127.

    `column` and `n` are multiples of 32. A group too small to have a normal scale becomes zeros;
    one that holds inf or NaN gets that for a scale, so what is computed from it isn't finite.
    """
    for g in range(n // GROUP):
        at = start + g * GROUP
        largest = np.float32(0.0)
        for k in range(GROUP):
            magnitude = abs(values[at + k])
            if magnitude > largest or magnitude != magnitude:  # a NaN stays
                largest = magnitude
        scale = np.float32(largest * np.float32(1 / 127))
        inverse = np.float32(0.0)
        if not scale < np.float32(1.1754944e-38):
            inverse = np.float32(1.0) / scale
        group = column // GROUP + g
        total = 0
        for k in range(GROUP):
            shifted = np.float32(np.float32(values[at + k] * inverse) + ROUNDER)
            value = np.int8(np.float32(shifted).view(np.int32) & 0xFF)
            rows.values[tile, group, lane, k] = value
            total += int(value)
        rows.scales[tile, group, lane] = scale
        rows.starts[tile, group, lane] = -128 * total
        rows.sums[tile, group, lane] = scale * np.float32(total)


@kernel
def swiglu(pairs: Array, row: int, out: Array) -> None:
    """silu(gate) · up of 32 values; pairs[row] holds 16 gates, their 16 ups, and so once more."""
    for half in range(2):
        for i in range(BLOCK):
            gate, up = pairs[row, 32 * half + i], pairs[row, 32 * half + BLOCK + i]
            out[BLOCK * half + i] = gate / (np.float32(1.0) + exp(-gate)) * up


@kernel
def add_row(x: Array, row: int, column: int, out: Array, lane: int, n: int) -> None:
    """x[row, column : column + n] += out[lane, :n]: what a layer adds to the residual stream."""
    for k in range(n):
        x[row, column + k] += out[lane, k]


@kernel
def divide_row(value: Array, row: int, divisor: np.float32, out: Array, to: int) -> None:
    """out[to : to + width] = value[row] / divisor."""
    for d in range(value.shape[1]):
        out[to + d] = value[row, d] / divisor


@kernel
def rope(
    values: Array, lane: int, cos: Array, sin: Array, position: int, scale: float, out: Array,
    row: int,
) -> None:  # fmt: skip
    """out[row, :head_dim] = values[lane], rotated by its position's angles, times `scale`.

    The pairs are half a head apart. `out` may be `values`.
    """
    half = cos.shape[1]
    for i in range(half):
        a, b = values[lane, i], values[lane, half + i]
        c, s = cos[position, i], sin[position, i]
        out[row, i] = (a * c - b * s) * np.float32(scale)
        out[row, half + i] = (b * c + a * s) * np.float32(scale)


# --- matrices -----------------------------------------------------------------------------------


@kernel
def matmul_f32(
    w: F32,
    layer: int,
    first: int,
    count: int,
    rows: F32Rows,
    tile: int,
    n: int,
    out: Array,
    out_row: int,
    column: int,
) -> None:
    """out[out_row + i, column + 16b + r] = row r of block first + b, times token i of the tile.

    For i < n tokens and b < count blocks; as all matmul kernels below.
    """
    for i in range(n):
        for b in range(count):
            for r in range(BLOCK):
                total = np.float32(0.0)
                for k in range(w.values.shape[2]):
                    x = rows.values[tile, k // GROUP, i, k % GROUP]
                    total += w.values[layer, first + b, k, r] * x
                out[out_row + i, column + BLOCK * b + r] = total


@kernel
def matmul_bf16(
    w: BF16,
    layer: int,
    first: int,
    count: int,
    rows: F32Rows,
    tile: int,
    n: int,
    out: Array,
    out_row: int,
    column: int,
) -> None:
    """As matmul_f32."""
    for i in range(n):
        for b in range(count):
            for r in range(BLOCK):
                total = np.float32(0.0)
                for k in range(2 * w.values.shape[2]):
                    weight = bf16_to_float(w.values[layer, first + b, k // 2, r, k % 2])
                    total += weight * rows.values[tile, k // GROUP, i, k % GROUP]
                out[out_row + i, column + BLOCK * b + r] = total


@kernel
def matmul_q8a8(
    w: Q8,
    layer: int,
    first: int,
    count: int,
    rows: Int8Rows,
    tile: int,
    n: int,
    out: Array,
    out_row: int,
    column: int,
) -> None:
    """As matmul_f32, with an exact integer dot product a group."""
    for i in range(n):
        for b in range(count):
            for r in range(BLOCK):
                total = np.float32(0.0)
                for g in range(w.values.shape[2]):
                    dot = int(rows.starts[tile, g, i])
                    for k in range(GROUP):
                        byte = int(w.values[layer, first + b, g, 64 * (k // 4) + 4 * r + k % 4])
                        dot += byte * int(rows.values[tile, g, i, k])
                    scale = half_at(w.values, layer, first + b, g, Q8_SCALES + 2 * r)
                    total += np.float32(dot) * (scale * rows.scales[tile, g, i])
                out[out_row + i, column + BLOCK * b + r] = total


@kernel
def matmul_q4a8(
    w: Q4,
    layer: int,
    first: int,
    count: int,
    rows: Int8Rows,
    tile: int,
    n: int,
    out: Array,
    out_row: int,
    column: int,
) -> None:
    """As matmul_q8a8, plus each group's minimum times the sum of its activations."""
    for i in range(n):
        for b in range(count):
            for r in range(BLOCK):
                total = np.float32(0.0)
                for g in range(w.values.shape[2]):
                    dot = 0
                    for k in range(GROUP // 2):
                        byte = int(w.values[layer, first + b, g, 64 * (k // 4) + 4 * r + k % 4])
                        dot += (byte & 15) * int(rows.values[tile, g, i, k])
                        dot += (byte >> 4) * int(rows.values[tile, g, i, 16 + k])
                    scale = half_at(w.values, layer, first + b, g, Q4_SCALES + 2 * r)
                    total += np.float32(dot) * (scale * rows.scales[tile, g, i])
                    minimum = half_at(w.values, layer, first + b, g, Q4_MINIMUMS + 2 * r)
                    total += minimum * rows.sums[tile, g, i]
                out[out_row + i, column + BLOCK * b + r] = total


# --- embeddings: one row of a packed matrix ---------------------------------------------------


@kernel
def embed_f32(w: F32, token: int, x: Array, row: int) -> None:
    """x[row] = row `token` of the (only) matrix."""
    for k in range(x.shape[1]):
        x[row, k] = w.values[0, token // BLOCK, k, token % BLOCK]


@kernel
def embed_bf16(w: BF16, token: int, x: Array, row: int) -> None:
    """x[row] = row `token` of the (only) matrix."""
    for k in range(x.shape[1]):
        x[row, k] = bf16_to_float(w.values[0, token // BLOCK, k // 2, token % BLOCK, k % 2])


@kernel
def embed_q8(w: Q8, token: int, x: Array, row: int) -> None:
    """x[row] = row `token` of the (only) matrix."""
    block, r = token // BLOCK, token % BLOCK
    for g in range(w.values.shape[2]):
        scale = half_at(w.values, 0, block, g, Q8_SCALES + 2 * r)
        for k in range(GROUP):
            value = int(w.values[0, block, g, 64 * (k // 4) + 4 * r + k % 4]) - 128
            x[row, g * GROUP + k] = np.float32(value) * scale


@kernel
def embed_q4(w: Q4, token: int, x: Array, row: int) -> None:
    """x[row] = row `token` of the (only) matrix."""
    block, r = token // BLOCK, token % BLOCK
    for g in range(w.values.shape[2]):
        scale = half_at(w.values, 0, block, g, Q4_SCALES + 2 * r)
        minimum = half_at(w.values, 0, block, g, Q4_MINIMUMS + 2 * r)
        for k in range(GROUP // 2):
            byte = int(w.values[0, block, g, 64 * (k // 4) + 4 * r + k % 4])
            x[row, g * GROUP + k] = np.float32(byte & 15) * scale + minimum
            x[row, g * GROUP + 16 + k] = np.float32(byte >> 4) * scale + minimum
