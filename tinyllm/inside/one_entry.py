"""The compiled kernels asked for one number at a time, for `explain` to put beside the formula.

The fused forward pass never stops to show an intermediate value. Each function here runs the same
kernel on the same inputs by itself.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyllm.kernels import dispatch, jit, numbers
from tinyllm.kernels.arrays import make_softmax
from tinyllm.kernels.formats import FORMATS
from tinyllm.kernels.layout import BLOCK, CHUNK, GROUP, PAGE, AttendScratch, Keys

Array = NDArray[np.float32]


def embedding(table: Array, token: int, dim: int, dtype: str) -> float:
    """Entry `dim` of a token's row, from the packed embedding."""
    first = token // BLOCK * BLOCK
    out = np.zeros((1, table.shape[1]), np.float32)
    dispatch.embed(_packed(table, first, FORMATS[dtype].table), token - first, out, 0)
    return float(out[0, dim])


def product(weight: Array, row: int, x: Array, dtype: str) -> float:
    """weight[row] · x: weight (rows, in), x (in,)."""
    first = row // BLOCK * BLOCK
    packed = _packed(weight, first, dtype)
    rows = FORMATS[dtype].empty_rows(1, len(x))
    dispatch.put(rows, 0, 0, 0, np.ascontiguousarray(x, np.float32), 0, len(x))
    out = np.zeros((8, BLOCK), np.float32)
    dispatch.matmul(packed, 0, 0, 1, rows, 0, 1, out, 0, 0)
    return float(out[0, row - first])


def norm(x: Array, weight: Array, eps: float, dim: int) -> float:
    """Entry `dim` of the RMS norm of x, (dim,)."""
    out = np.zeros(len(x), np.float32)
    dispatch.norm_row(_row(x), 0, _row(weight), 0, eps, out)
    return float(out[dim])


def turned(x: Array, cos: Array, sin: Array, dim: int) -> float:
    """Entry `dim` of a head, (head_dim,), rotated by a position's angles, (head_dim / 2,)."""
    out = np.zeros((1, len(x)), np.float32)
    dispatch.rope(_row(x), 0, _row(cos), _row(sin), 0, 1.0, out, 0)
    return float(out[0, dim])


def added(a: float, b: float) -> float:
    """What the residual stream holds, and what a layer adds to it."""
    x, out = np.full((1, 1), a, np.float32), np.full((1, 1), b, np.float32)
    jit.add_row(x, 0, 0, out, 0, 1)
    return float(x[0, 0])


def weight_of(q: Array, keys: Array, values: Array, key: int, dtype: str) -> tuple[float, float]:
    """(score, softmax weight) of one key: the fused kernel forms both, but keeps neither."""
    score, _, _ = attention(q, keys[key : key + 1], values[key : key + 1], dtype)
    top, total, _ = attention(q, keys, values, dtype)
    return score, float(numbers.exp(np.float32(score - top))) / total


def gated(gate: float, up: float) -> float:
    """silu(gate) · up."""
    pairs, out = np.zeros((1, 4 * BLOCK), np.float32), np.zeros(GROUP, np.float32)
    pairs[0, 0], pairs[0, BLOCK] = gate, up
    dispatch.swiglu(pairs, 0, out)
    return float(out[0])


def attention(q: Array, keys: Array, values: Array, dtype: str) -> tuple[float, float, Array]:
    """One query's online softmax over S keys and values, (S, head_dim): maximum, sum, mix.

    The mix is divided by the sum: (head_dim,). `dtype` is the weights'; the cache is float16 for
    quantised ones, as `CompiledModel` has it.
    """
    n_keys, head_dim = keys.shape
    n_pages = -(-n_keys // PAGE)
    stored = np.float32 if FORMATS[dtype].kv_dtype == "f32" else np.uint16
    cells = np.zeros((n_pages, 1, 1, 2, PAGE * head_dim), stored)
    half = np.zeros(head_dim, stored)
    for i in range(n_keys):
        dispatch.append_key(cells, i // PAGE, 0, 0, i % PAGE, _row(keys[i]), 0, half)
        dispatch.append_value(cells, i // PAGE, 0, 0, i % PAGE, _row(values[i]), 0)
    queries = np.zeros((8, head_dim), np.float32)
    queries[0] = q * np.float32(1.0 / math.sqrt(head_dim))
    visible = np.full(8, n_keys, np.int64)
    pages = np.arange(n_pages, dtype=np.int32)[None]
    scratch = AttendScratch(
        np.zeros((8, PAGE), np.float32), np.zeros((8, BLOCK), np.float32), np.zeros(8, np.float32)
    )
    chunks = [make_softmax((8,), head_dim) for _ in range(0, n_keys, CHUNK)]
    for i, state in enumerate(chunks):
        run = Keys(cells, pages, 0, 0, 0, i * CHUNK, min((i + 1) * CHUNK, n_keys))
        dispatch.attend(queries, 0, 1, visible, run, scratch, state, 0)
        if i:
            dispatch.merge(chunks[0], 0, state, 0)
    first = chunks[0]
    return float(first.top[0]), float(first.total[0]), first.mixed[0] / first.total[0]


def _packed(weight: Array, first: int, dtype: str) -> Any:
    """The block of 16 rows that begins at `first`, packed as a matrix of its own."""
    block = np.zeros((BLOCK, weight.shape[1]), np.float32)
    rows = weight[first : first + BLOCK]
    block[: len(rows)] = rows
    form = FORMATS[dtype]
    return form.stack([form.matrix(block)], 1)


def _row(x: Array) -> Array:
    return np.ascontiguousarray(x, np.float32)[None]
