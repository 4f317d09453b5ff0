"""How weights and activations lie in memory, chosen so that kernels only ever read forward.

**Weights.** The rows of a matrix (its outputs) are taken 16 at a time, a *block*, and interleaved:
the 16 rows' first inputs side by side, then their second ones, and so on. One vector register then
holds 16 rows, each lane sums its own row, and no sum across lanes is needed. The matrices of all
layers are stacked, so that a model is a handful of arrays.

Quantised formats share a scale among 32 neighbouring inputs, a *group*. A group's scales stand
right behind its weights, so that a kernel reads one stream of memory from front to back: a
processor fetches one such stream ahead of its use at the memory's full speed, but not two.

**Activations.** The rows of a batch (its tokens) are taken 8 at a time, a *tile*, group by group:
32 inputs of the first token, the same 32 of the second, and so on. A lone token then touches few
cache lines, and leaves the others to the weights that stream past.

Shapes below: L layers, B blocks (rows / 16), K inputs a row, G groups (K / 32).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

BLOCK = 16  # rows of a matrix in one vector
TILE = 8  # tokens in one register-blocked product
TILES = 8  # tiles of 8 rows that a chunk of a matrix product goes through
GROUP = 32  # inputs that share a scale

REST = 254  # parts of a step of 8 bits that `Int16Rows.rest` counts

# Where in a group's bytes things begin.
Q8_SCALES = GROUP * BLOCK
Q8_BYTES = Q8_SCALES + 2 * BLOCK
Q4_SCALES = GROUP * BLOCK // 2
Q4_MINIMUMS = Q4_SCALES + 2 * BLOCK
Q4_BYTES = Q4_MINIMUMS + 2 * BLOCK

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
    taken off per token and group (`Int8Rows.starts`), exactly.
    """

    values: Array  # (L, B, G, 544) uint8. In a group's bytes, 64·j + 4·row + i is input 4·j + i of
    # a row, and from Q8_SCALES on are the rows' scales, 16 float16s.


class Q4(NamedTuple):
    """weight = scale · nibble + minimum, GGML's Q4_1."""

    values: Array  # (L, B, G, 320) uint8. In a group's bytes, 64·j + 4·row + i holds inputs 4·j + i
    # (the low nibble) and 16 + 4·j + i (the high one) of a row; then come the rows' scales and
    # minimums, 16 float16s each.


class F32Rows(NamedTuple):
    """Activations for F32 and BF16 weights."""

    values: Array  # (tiles, G, 8, 32) float32


class Int16Rows(NamedTuple):
    """Activations for Q8 and Q4 in 16 bits, as two signed bytes: scale · (254 · value + rest).

    A product with 8-bit weights is then two exact dot products of bytes. `rest` is what rounding to
    `value` left, in 254ths, so that both are -127 … 127: some processors need the room at the edge.
    """

    values: Array  # (tiles, G, 8, 32) int8
    rest: Array  # (tiles, G, 8, 32) int8
    scales: Array  # (tiles, G, 8) float32
    starts: Array  # (tiles, G, 8) int32: -128 · Σ (254 · values + rest)
    sums: Array  # (tiles, G, 8) float32: scale · Σ (254 · values + rest)


class Int8Rows(NamedTuple):
    """Activations for Q8 and Q4 in 8 bits: scale · value, one scale per token and group.

    Half the products of `Int16Rows`; most greedy answers part from float32's within 40 tokens.
    """

    values: Array  # (tiles, G, 8, 32) int8
    scales: Array  # (tiles, G, 8) float32
    starts: Array  # (tiles, G, 8) int32: -128 · Σ values, where a Q8 dot product starts
    sums: Array  # (tiles, G, 8) float32: scale · Σ values, what a Q4 minimum is multiplied by


def empty_f32_rows(n_rows: int, width: int) -> F32Rows:
    """Room for `n_rows` tokens of `width` inputs; zeros."""
    return F32Rows(np.zeros((-(-n_rows // TILE), -(-width // GROUP), TILE, GROUP), np.float32))


def empty_int16_rows(n_rows: int, width: int) -> Int16Rows:
    """Room for `n_rows` tokens of `width` inputs; zeros."""
    rows = empty_int8_rows(n_rows, width)
    return Int16Rows(rows.values, np.zeros_like(rows.values), *rows[1:])


def empty_int8_rows(n_rows: int, width: int) -> Int8Rows:
    """Room for `n_rows` tokens of `width` inputs; zeros."""
    groups = (-(-n_rows // TILE), width // GROUP, TILE)
    return Int8Rows(
        np.zeros((*groups, GROUP), np.int8),
        np.zeros(groups, np.float32),
        np.zeros(groups, np.int32),
        np.zeros(groups, np.float32),
    )


# --- the KV cache -------------------------------------------------------------------------------
#
# A page holds 64 tokens of every layer and key/value head: keys turned, (head_dim, 64), so that 16
# keys' scores come out of one vector of sums, and right behind them their values, (64, head_dim).

PAGE = 64  # tokens in a page of the KV cache, and in one step of the online softmax
KEYS, VALUES = 0, 1  # the halves of a head's part of a page
CHUNK = 512  # keys whose softmax is computed from scratch; chunks are then merged in order
NOTHING_YET = np.float32(-1e30)  # the running maximum before any key; finite, so that 0·x stays 0


class Keys(NamedTuple):
    """A run of keys and values in the cache: positions start … stop of one sequence."""

    cells: Array  # (n_pages, n_layers, n_kv_heads, 2, 64 · head_dim) float32, or float16 as uint16
    pages: Array  # (sequences, …) int32 page numbers
    sequence: int  # the row of `pages` to use
    layer: int
    head: int  # a key head
    start: int  # a multiple of 64
    stop: int


class Softmax(NamedTuple):
    """What an online softmax has come to, query by query (https://arxiv.org/abs/1805.02867)."""

    top: Array  # (queries,) float32: the largest score so far
    total: Array  # (queries,) float32: Σ exp(score - top)
    mixed: Array  # (queries, head_dim) float32: Σ exp(score - top) · value


class AttendScratch(NamedTuple):
    """What attention over a bundle of 8 queries writes down between its three passes."""

    scores: Array  # (8, 64) float32: a page's scores, then its weights
    sums: Array  # (8, 16) float32: Σ weights, still one sum a lane
    shrink: Array  # (8,) float32: by how much a new maximum scales down what came before


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
