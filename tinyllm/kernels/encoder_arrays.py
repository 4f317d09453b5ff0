"""The arrays of an image encoder's pass by name, as `encode.py` reads and writes them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinyllm.kernels.layout import BLOCK, F32, TILE, F32Rows, empty_f32_rows

Array = NDArray[Any]

OUT_BLOCKS = 4  # blocks of 16 outputs in a chunk of a matrix product
PANEL = 32  # inputs that a matrix kernel takes at a time
GELU, GELU_TANH, QUICK_GELU = 0, 1, 2  # activations

# Regions by number: three before the layers, these of each layer, and the last norm. A call may
# leave some out.
NORM1, QKV, ATTEND, OUT, NORM2, FC1, FC2, KEEP = range(8)
LAYER_REGIONS = 8


def n_regions(n_layers: int) -> int:
    """The most regions that a call of `run` goes through."""
    return 3 + LAYER_REGIONS * n_layers + 1


class EncoderArrays(NamedTuple):
    """Weights in the kernels' layout (`layout.py`); biases and norms (n_layers, …)."""

    patches: F32  # one matrix, (dim, 3 · patch²)
    qkv: F32  # a matrix a layer: every head of Q, of K, of V, each padded to whole blocks
    out: F32
    fc1: F32
    fc2: F32
    qkv_bias: Array
    out_bias: Array
    fc1_bias: Array
    fc2_bias: Array
    norm1: Array  # (n_layers, 2, dim): weight and bias
    norm2: Array
    pre_norm: Array  # (0 or 1, 2, dim)
    final_norm: Array  # (0 or 1, 2, dim)
    n_heads: int
    head_dim: int
    n_class: int  # rows before the patches
    eps: float
    activation: int


class EncoderInput(NamedTuple):
    """What to compute: an image, and how far to go with it."""

    counts: Array  # (3,) int64: rows, layers to run, whether to norm at the end
    keep: Array  # (n_layers + 1,) int64: where in `streams` to copy what is behind a layer, or -1
    start: Array  # (T, dim): positions, biases and class token, which every image begins with
    squares: F32Rows  # the patches' pixels
    streams: Array  # (kept, T, dim)


class EncoderScratch(NamedTuple):
    """What all threads write on the way; zeros where padding is read."""

    x: Array  # (T, dim), the residual stream
    normed: F32Rows
    q: F32Rows  # tiles of head 0, then of head 1, …
    keys: F32  # a matrix a head: (T, head_dim)
    values: F32  # a matrix a head: (head_dim, T)
    mixed: F32Rows
    hidden: F32Rows
    weights: F32Rows  # a tile a thread: attention weights
    row: Array  # (threads, widest row)
    lanes: Array  # (threads, 16): sums of every sixteenth number of a row
    out: Array  # (threads, 8, widest product)


def padded(n: int, to: int) -> int:
    """n rounded up to a multiple."""
    return -(-n // to) * to


def as_matrix(weight: Array) -> F32:
    """(L, out, in) float32 in the kernels' layout: outputs in blocks of 16, inputs padded."""
    n_layers, n_out, n_in = weight.shape
    room = np.zeros((n_layers, padded(n_out, BLOCK), padded(n_in, PANEL)), np.float32)
    room[:, :n_out, :n_in] = weight
    blocks = room.reshape(n_layers, -1, BLOCK, room.shape[2]).transpose(0, 1, 3, 2)
    return F32(np.ascontiguousarray(blocks))


def empty_matrix(n_layers: int, n_out: int, n_in: int) -> F32:
    """Zeros in that layout."""
    shape = (n_layers, padded(n_out, BLOCK) // BLOCK, padded(n_in, PANEL), BLOCK)
    return F32(np.zeros(shape, np.float32))


def empty_rows(n_tiles: int, width: int) -> F32Rows:
    """Zeros for activations of that width."""
    return empty_f32_rows(n_tiles * TILE, width)
