"""How weights and activations lie in memory, chosen so that kernels only ever read forward.

**Weights.** The rows of a matrix (its outputs) are taken 16 at a time, a *block*, and interleaved:
the 16 rows' first inputs side by side, then their second ones, and so on. One vector register then
holds 16 rows, each lane sums its own row, and no sum across lanes is needed. The matrices of all
layers are stacked, so that a model is a handful of arrays.

**Activations.** The rows of a batch (its tokens) are taken 8 at a time, a *tile*, and interleaved
likewise: a matrix kernel reads one operand of 8 tokens from 32 neighbouring bytes.

Quantised formats share a scale among 32 neighbouring inputs, a *group*. Shapes below: L layers,
B blocks (rows / 16), K inputs a row, G groups (K / 32).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

BLOCK = 16  # rows of a matrix in one vector
TILE = 8  # tokens in one register-blocked product
GROUP = 32  # inputs that share a scale

Array = NDArray[Any]


class F32(NamedTuple):
    """float32."""

    values: Array  # (L, B, K, 16) float32


class BF16(NamedTuple):
    """The upper halves of float32, two inputs side by side: a 64-byte load holds 16 rows × 2."""

    values: Array  # (L, B, K / 2, 16, 2) uint16


class Q8(NamedTuple):
    """weight = scale · (byte - 128).

    Bytes are stored unsigned since `vpdpbusd` multiplies unsigned by signed ones; the offset is
    paid back per token and group (`Int8Rows.starts`), exactly.
    """

    values: Array  # (L, B, G, 8, 64) uint8: [.., j, 4·row + i] is input 4·j + i of the group
    scales: Array  # (L, B, G, 16) float16 as uint16


class Q4(NamedTuple):
    """weight = scale · nibble + minimum, GGML's Q4_1."""

    values: Array  # (L, B, G, 4, 64) uint8: low nibbles inputs 4·j + i, high ones 16 + 4·j + i
    scales: Array  # (L, B, G, 16) float16 as uint16
    minimums: Array  # (L, B, G, 16) float16 as uint16


class F32Rows(NamedTuple):
    """Activations for F32 and BF16 weights."""

    values: Array  # (tiles, K, 8) float32


class Int8Rows(NamedTuple):
    """Activations for Q8 and Q4: scale · value, one scale per token and group."""

    values: Array  # (tiles, K / 4, 8, 4) int8
    scales: Array  # (tiles, G, 8) float32
    starts: Array  # (tiles, G, 8) int32: -128 · Σ values, where a Q8 dot product starts
    sums: Array  # (tiles, G, 8) float32: scale · Σ values, what a Q4 minimum is multiplied by


class AttendScratch(NamedTuple):
    """What attention over one bundle of 8 query rows writes down between its three passes."""

    scores: Array  # (8, 64) float32: a page's scores, then its weights
    sums: Array  # (8, 16) float32: Σ weights, still one sum a lane
    shrink: Array  # (8,) float32: by how much a new maximum scales down what came before


def empty_f32_rows(n_rows: int, width: int) -> F32Rows:
    """Room for `n_rows` tokens of `width` inputs; zeros."""
    return F32Rows(np.zeros((-(-n_rows // TILE), width, TILE), np.float32))


def empty_int8_rows(n_rows: int, width: int) -> Int8Rows:
    """Room for `n_rows` tokens of `width` inputs; zeros."""
    tiles = -(-n_rows // TILE)
    groups = (tiles, width // GROUP, TILE)
    return Int8Rows(
        np.zeros((tiles, width // 4, TILE, 4), np.int8),
        np.zeros(groups, np.float32),
        np.zeros(groups, np.int32),
        np.zeros(groups, np.float32),
    )


def check_arrays(arrays: Any, name: str) -> None:
    """Raise ValueError for an array, however deep in NamedTuples, that kernels would read wrong.

    They take whole rows of numbers from where an array begins: it must be C-contiguous and aligned.
    """
    if isinstance(arrays, tuple):
        fields = getattr(arrays, "_fields", range(len(arrays)))
        for field, value in zip(fields, arrays, strict=True):
            check_arrays(value, f"{name}.{field}")
    elif isinstance(arrays, np.ndarray):
        if not arrays.flags.c_contiguous:
            raise ValueError(f"{name} is not C-contiguous: pass np.ascontiguousarray of it")
        if not arrays.flags.aligned:
            raise ValueError(f"{name} is not aligned to its {arrays.itemsize}-byte items: copy it")
