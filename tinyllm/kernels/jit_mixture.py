"""Products with a GGUF file's own blocks, as plain loops: what `simd_mixture.py` does.

Activations have 16 bits, as in `jit_int16.py`: with integers of weights their products are exact.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyllm.kernels.build import kernel
from tinyllm.kernels.jit_int16 import put_int16
from tinyllm.kernels.layout import BLOCK, GROUP, Q8_SCALES, REST
from tinyllm.kernels.mixture import (
    BEHIND,
    FIRST_SUPER,
    GROUP_BYTES,
    NIBBLES,
    Q5,
    Q5K,
    Q6K,
    Q8,
    SUPER_BYTES,
    SUPER_GROUPS,
    TO_D,
    TO_D_MIN,
    TO_MINIMUMS,
    HalvedRows,
    Mixture,
)
from tinyllm.kernels.numbers import half_to_float

Array = NDArray[Any]


@kernel
def sum_halves(rows: HalvedRows, tile: int, lane: int, column: int, n: int) -> None:
    """Fill `halves` of what has been put into inputs column … column + n of a token."""
    for group in range(column // GROUP, (column + n) // GROUP):
        for half in range(2):
            total = 0
            for k in range(half * BLOCK, half * BLOCK + BLOCK):
                total += REST * int(rows.values[tile, group, lane, k])
                total += int(rows.rest[tile, group, lane, k])
            rows.halves[tile, group, half, lane] = -32 * total


@kernel
def put_halved(
    rows: HalvedRows, tile: int, lane: int, column: int, values: Array, start: int, n: int
) -> None:
    """As `jit_int16.put_int16`, and the sums of halves."""
    put_int16(rows, tile, lane, column, values, start, n)  # type: ignore[arg-type]
    sum_halves(rows, tile, lane, column, n)


@kernel
def begin_of(kind: Any, start: Any, g: int) -> Any:
    """Where a group's integers begin in a block that begins at `start`."""
    if kind < FIRST_SUPER:
        return start + g * (GROUP_BYTES[kind] + BEHIND[kind])
    return start + g // SUPER_GROUPS * SUPER_BYTES[kind] + g % SUPER_GROUPS * GROUP_BYTES[kind]


@kernel
def integer_at(values: Array, kind: Any, begin: Any, r: int, k: int) -> Any:
    """Row r's k-th integer of a group, from 0 up."""
    j, at = k // 4, 4 * r + k % 4  # the byte vector, and where in one
    if kind == Q8:
        return np.int64(values[0, begin + 64 * j + at])
    both = np.int64(values[0, begin + 64 * (j % 4) + at])
    q = both >> 4 if j >= 4 else both & 15
    if kind in (Q5, Q5K):
        q |= (np.int64(values[0, begin + NIBBLES + at]) >> j & 1) << 4
    elif kind == Q6K:
        q |= (np.int64(values[0, begin + NIBBLES + 64 * (j // 4) + at]) >> 2 * (j % 4) & 3) << 4
    return q


@kernel
def half_in(values: Array, at: int) -> np.float32:
    """The float16 in bytes `at` and `at` + 1."""
    return half_to_float(int(np.int64(values[0, at]) | (np.int64(values[0, at + 1]) << 8)))


@kernel
def scale_of(values: Array, kind: Any, start: Any, g: int, r: int, half: int) -> np.float32:
    """What a row's integers of a group, or of half a group, are multiplied by."""
    if kind == Q8:
        return half_in(values, begin_of(kind, start, g) + Q8_SCALES + 2 * r)
    if kind < FIRST_SUPER:
        return half_in(values, begin_of(kind, start, g) + GROUP_BYTES[kind] + 2 * r)
    end = start + g // SUPER_GROUPS * SUPER_BYTES[kind] + SUPER_GROUPS * GROUP_BYTES[kind]
    d = half_in(values, end + TO_D + 2 * r)
    if kind == Q6K:
        byte = np.int64(values[0, end + BLOCK * (2 * (g % SUPER_GROUPS) + half) + r])
        return np.float32(d * np.float32(byte - 256 if byte > 127 else byte))
    return np.float32(d * np.float32(values[0, end + BLOCK * (g % SUPER_GROUPS) + r]))


@kernel
def minimum_of(values: Array, kind: Any, start: Any, g: int, r: int) -> np.float32:
    """What a row's weights of a group begin at; kinds other than Q8 and Q6K."""
    if kind < FIRST_SUPER:
        return half_in(values, begin_of(kind, start, g) + GROUP_BYTES[kind] + 2 * BLOCK + 2 * r)
    end = start + g // SUPER_GROUPS * SUPER_BYTES[kind] + SUPER_GROUPS * GROUP_BYTES[kind]
    minimum = values[0, end + TO_MINIMUMS + BLOCK * (g % SUPER_GROUPS) + r]
    return np.float32(half_in(values, end + TO_D_MIN + 2 * r) * np.float32(minimum))


@kernel
def dot(values: Array, kind: Any, begin: Any, r: int, rows: HalvedRows, tile: int, g: int, i: int,
        first: int, last: int) -> Any:  # fmt: skip
    """Σ integer · activation over inputs first … last of a group."""
    total = 0
    for k in range(first, last):
        q = integer_at(values, kind, begin, r, k)
        total += q * (REST * int(rows.values[tile, g, i, k]) + int(rows.rest[tile, g, i, k]))
    return total


@kernel
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
    """As `jit_int16.matmul_q4`, each block of 16 rows by its kind."""
    for i in range(n):
        for b in range(count):
            kind, start = np.int64(w.kinds[layer, first + b]), w.starts[layer, first + b]
            for r in range(BLOCK):
                total = np.float32(0.0)
                for g in range(rows.scales.shape[1]):
                    begin, size = begin_of(kind, start, g), rows.scales[tile, g, i]
                    if kind == Q6K:
                        for half in range(2):
                            to = BLOCK * half
                            found = int(rows.halves[tile, g, half, i]) + dot(
                                w.values, kind, begin, r, rows, tile, g, i, to, to + BLOCK
                            )
                            scale = scale_of(w.values, kind, start, g, r, half)
                            total += np.float32(found) * (scale * size)
                        continue
                    found = dot(w.values, kind, begin, r, rows, tile, g, i, 0, GROUP)
                    if kind == Q8:
                        found += int(rows.starts[tile, g, i])
                    total += np.float32(found) * (scale_of(w.values, kind, start, g, r, 0) * size)
                    if kind != Q8:
                        minimum = minimum_of(w.values, kind, start, g, r)
                        total += minimum * rows.sums[tile, g, i]
                out[out_row + i, column + BLOCK * b + r] = total


@kernel
def embed_gguf(w: Mixture, token: int, x: Array, row: int) -> None:
    """x[row] = row `token` of the (only) matrix."""
    kind, start = np.int64(w.kinds[0, token // BLOCK]), w.starts[0, token // BLOCK]
    r = token % BLOCK
    for g in range(x.shape[1] // GROUP):
        begin = begin_of(kind, start, g)
        for half in range(2):
            scale = scale_of(w.values, kind, start, g, r, half)
            for k in range(BLOCK * half, BLOCK * half + BLOCK):
                q = integer_at(w.values, kind, begin, r, k)
                at = g * GROUP + k
                if kind == Q8:
                    x[row, at] = np.float32(q - 128) * scale
                elif kind == Q6K:
                    x[row, at] = np.float32(q - 32) * scale
                else:
                    minimum = minimum_of(w.values, kind, start, g, r)
                    x[row, at] = np.float32(q) * scale + minimum
