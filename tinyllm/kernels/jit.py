"""Every kernel as plain loops, compiled by numba: what `simd.py` does, readable line by line.

These run where the processor lacks the vector instructions (or `TINYLLM_SIMD=off` is set), and as
ordinary Python under NUMBA_DISABLE_JIT=1. Integer arithmetic is exact, so there both agree to the
bit; float sums run in another order here, so they agree to rounding.

Shapes and names as in `layout.py`. `tile` and `lane` name a token of an activation, `layer` one
matrix of a stack, `first` and `count` a run of its 16-row blocks.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyllm.kernels.build import lean
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
    SplitRows,
)

Array = NDArray[Any]

LOG2_E = np.float32(1.4426950408889634)
LN2_HIGH = np.float32(0.693359375)  # exact in few bits, so that n · LN2_HIGH is exact too
LN2_LOW = np.float32(-2.12194440e-4)
ROUNDER = np.float32(12582912.0)  # 1.5 · 2²³: adding it leaves no bits behind the point
EXP_LOWEST = np.float32(-87.0)
EXP_HIGHEST = np.float32(88.0)


# --- numbers ------------------------------------------------------------------------------------


@lean
def half_to_float(half: int) -> np.float32:
    """float16, given as its bits, to float32."""
    sign, exponent, mantissa = half >> 15, (half >> 10) & 31, half & 1023
    if exponent == 31:
        bits = 0x7F800000 | (mantissa << 13)
    elif exponent:
        bits = ((exponent + 112) << 23) | (mantissa << 13)
    else:  # zero and denormals
        value = np.float32(mantissa) * np.float32(2.0**-24)
        return -value if sign else value
    magnitude = np.int32(bits).view(np.float32)
    return -magnitude if sign else magnitude


@lean
def bf16_to_float(bits: Any) -> np.float32:
    """A bfloat16, given as its bits, to float32: it is the upper half of one."""
    return np.int32(np.int32(bits) << 16).view(np.float32)


@lean
def half_at(values: Array, layer: int, block: int, group: int, at: int) -> np.float32:
    """The float16 in bytes `at` and `at` + 1 of a group, low byte first."""
    low, high = values[layer, block, group, at], values[layer, block, group, at + 1]
    return half_to_float(int(low) | (int(high) << 8))


@lean
def float_to_half(value: np.float32) -> np.int64:
    """float32 to the bits of the nearest float16, ties to even."""
    bits = np.int64(np.float32(value).view(np.int32))
    sign = (bits >> 16) & 0x8000
    magnitude = bits & 0x7FFFFFFF
    if magnitude > 0x7F800000:  # NaN
        return sign | 0x7E00
    if magnitude >= 0x477FF000:  # from 65520 on the nearest is infinity
        return sign | 0x7C00
    if magnitude < 0x38800000:  # below 2⁻¹⁴: denormal, a count of 2⁻²⁴
        count = np.float32(abs(value) * np.float32(2.0**24)) + ROUNDER
        return sign | (np.int64(np.float32(count).view(np.int32)) & 0x7FF)
    rounded = magnitude + 0xFFF + ((magnitude >> 13) & 1)
    return sign | ((rounded >> 13) - (112 << 10))


@lean
def exp(x: np.float32) -> np.float32:
    """eˣ to 2 units in the last place; exactly 1 at 0, and 0 below -87.

    2ⁿ · eʳ with |r| <= ln 2 / 2; the polynomial is Cephes' expf
    (https://www.netlib.org/cephes/).
    """
    if x < EXP_LOWEST:
        return np.float32(0.0)
    x = EXP_HIGHEST if x > EXP_HIGHEST else x
    shifted = np.float32(x * LOG2_E + ROUNDER)
    n = np.float32(shifted - ROUNDER)
    r = np.float32(np.float32(x - n * LN2_HIGH) - n * LN2_LOW)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * r * r + r + np.float32(1.0)
    if n != n:
        return n  # NaN
    return np.float32(math.ldexp(p, int(n)))


# --- activations --------------------------------------------------------------------------------


@lean
def norm_row(x: Array, row: int, weight: Array, layer: int, eps: float, out: Array) -> None:
    """RMS norm of x[row], (dim,), times weight[layer], into out[:dim]."""
    total = np.float32(0.0)
    for k in range(x.shape[1]):
        total += x[row, k] * x[row, k]
    scale = np.float32(1.0 / math.sqrt(total / x.shape[1] + eps))
    for k in range(x.shape[1]):
        out[k] = x[row, k] * scale * weight[layer, k]


@lean
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


@lean
def put_split(
    rows: SplitRows, tile: int, lane: int, column: int, values: Array, start: int, n: int
) -> None:
    """The same as two bfloat16s, of which the first is cut off: value + rest = 16 bits of each.

    `column` and `n` are multiples of 32.
    """
    for g in range(n // GROUP):
        for k in range(GROUP):
            value = np.float32(values[start + g * GROUP + k])
            upper = (np.int32(value.view(np.int32)) >> 16) & 0xFFFF
            rest = np.float32(value - bf16_to_float(upper))
            bits = np.int32(rest.view(np.int32))
            rounded = bits + 0x7FFF + ((bits >> 16) & 1)
            rows.values[tile, column // GROUP + g, lane, k] = upper
            rows.rest[tile, column // GROUP + g, lane, k] = (rounded >> 16) & 0xFFFF


@lean
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


@lean
def swiglu(pairs: Array, row: int, out: Array) -> None:
    """silu(gate) · up of 32 values; pairs[row] holds 16 gates, their 16 ups, and so once more."""
    for half in range(2):
        for i in range(BLOCK):
            gate, up = pairs[row, 32 * half + i], pairs[row, 32 * half + BLOCK + i]
            out[BLOCK * half + i] = gate / (np.float32(1.0) + exp(-gate)) * up


@lean
def add_row(x: Array, row: int, column: int, out: Array, lane: int, n: int) -> None:
    """x[row, column : column + n] += out[lane, :n]: what a layer adds to the residual stream."""
    for k in range(n):
        x[row, column + k] += out[lane, k]


@lean
def divide_row(value: Array, row: int, divisor: np.float32, out: Array, to: int) -> None:
    """out[to : to + width] = value[row] / divisor."""
    for d in range(value.shape[1]):
        out[to + d] = value[row, d] / divisor


@lean
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


@lean
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


@lean
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


@lean
def matmul_bf16_split(
    w: BF16,
    layer: int,
    first: int,
    count: int,
    rows: SplitRows,
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
                    value = bf16_to_float(rows.values[tile, k // GROUP, i, k % GROUP])
                    rest = bf16_to_float(rows.rest[tile, k // GROUP, i, k % GROUP])
                    total += weight * (value + rest)
                out[out_row + i, column + BLOCK * b + r] = total


@lean
def matmul_q8(
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


@lean
def matmul_q4(
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
    """As matmul_q8, plus each group's minimum times the sum of its activations."""
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


@lean
def embed_f32(w: F32, token: int, x: Array, row: int) -> None:
    """x[row] = row `token` of the (only) matrix."""
    for k in range(x.shape[1]):
        x[row, k] = w.values[0, token // BLOCK, k, token % BLOCK]


@lean
def embed_bf16(w: BF16, token: int, x: Array, row: int) -> None:
    """x[row] = row `token` of the (only) matrix."""
    for k in range(x.shape[1]):
        x[row, k] = bf16_to_float(w.values[0, token // BLOCK, k // 2, token % BLOCK, k % 2])


@lean
def embed_q8(w: Q8, token: int, x: Array, row: int) -> None:
    """x[row] = row `token` of the (only) matrix."""
    block, r = token // BLOCK, token % BLOCK
    for g in range(w.values.shape[2]):
        scale = half_at(w.values, 0, block, g, Q8_SCALES + 2 * r)
        for k in range(GROUP):
            value = int(w.values[0, block, g, 64 * (k // 4) + 4 * r + k % 4]) - 128
            x[row, g * GROUP + k] = np.float32(value) * scale


@lean
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
