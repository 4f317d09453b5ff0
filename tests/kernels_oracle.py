"""Loop oracles for the packed formats: the definition of each in float64, one number at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyllm.kernels import mixture
from tinyllm.kernels.layout import (
    BF16,
    F32,
    GROUP,
    Q4,
    Q4_MINIMUMS,
    Q4_SCALES,
    Q8,
    Q8_SCALES,
    F32Rows,
    Int8Rows,
    Int16Rows,
)

F64 = NDArray[np.float64]


def weight(w: Any, layer: int, row: int, k: int) -> float:
    """Input k of a row of one packed matrix, by the formulas in `layout.py`."""
    block, r = row // 16, row % 16
    if isinstance(w, F32):
        return float(w.values[layer, block, k, r])
    if isinstance(w, BF16):
        bits = np.array([int(w.values[layer, block, k // 2, r, k % 2]) << 16], np.uint32)
        return float(bits.view(np.float32)[0])
    group, inside = k // GROUP, k % GROUP
    of_group = w.values[layer, block, group]
    if isinstance(w, Q8):
        scale = float(of_group[Q8_SCALES:].view(np.float16)[r])
        return scale * (int(of_group[64 * (inside // 4) + 4 * r + inside % 4]) - 128)
    assert isinstance(w, Q4)
    scale = float(of_group[Q4_SCALES:Q4_MINIMUMS].view(np.float16)[r])
    minimum = float(of_group[Q4_MINIMUMS:].view(np.float16)[r])
    byte = int(of_group[64 * (inside % 16 // 4) + 4 * r + inside % 4])
    nibble = byte & 15 if inside < 16 else byte >> 4
    return scale * nibble + minimum


def mixture_row(w: Any, layer: int, row: int) -> NDArray[np.float32]:
    """A row by `mixture.unpack` and `restore`, which are held to the `gguf` package."""
    block, r = row // 16, row % 16
    start = int(w.starts[layer, block])
    end = min([int(s) for s in w.starts.flat if s > start], default=w.values.size)
    one = mixture.Mixture(w.values[0, start:end], w.kinds[layer, block, None], np.zeros(1, int))
    return mixture.restore(*mixture.unpack(one, 16))[r]


def activation(rows: Any, tile: int, lane: int, k: int) -> float:
    """Input k of one token."""
    if isinstance(rows, F32Rows):
        return float(rows.values[tile, k // GROUP, lane, k % GROUP])
    if isinstance(rows, (Int16Rows, mixture.HalvedRows)):
        scale = float(rows.scales[tile, k // GROUP, lane])
        value, rest = (a[tile, k // GROUP, lane, k % GROUP] for a in (rows.values, rows.rest))
        return scale * (254 * int(value) + int(rest))
    assert isinstance(rows, Int8Rows)
    scale = float(rows.scales[tile, k // GROUP, lane])
    return scale * int(rows.values[tile, k // GROUP, lane, k % GROUP])


def matmul(w: Any, layer: int, n_rows: int, width: int, rows: Any, tile: int, n: int) -> F64:
    """(n, n_rows): every token with every row of the matrix."""
    out = np.zeros((n, n_rows))
    for row in range(n_rows):
        if isinstance(w, mixture.Mixture):
            weights = mixture_row(w, layer, row).astype(np.float64).tolist()
        else:
            weights = [weight(w, layer, row, k) for k in range(width)]
        for i in range(n):
            for k in range(width):
                out[i, row] += weights[k] * activation(rows, tile, i, k)
    return out
