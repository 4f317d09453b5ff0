"""What the matrix kernels live by, with nothing around it: two instructions, and reading memory."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyllm.kernels.build import lean
from tinyllm.kernels.layout import BLOCK, TILE
from tinyllm.kernels.vectors import (
    add_each,
    dot4_each,
    fma_each,
    load,
    load_bytes,
    repeat,
    splat,
    store_bytes,
    store_each,
    to_float_each,
    xor,
    zeros,
)

Array = NDArray[Any]


@lean
def dot_loop(weights: Array, rows: Array, rounds: int, out: Array) -> None:
    """4 · 8 `vpdpbusd` a round, their second operand from the nearest cache."""
    acc = repeat(TILE, splat(np.int32(0)))
    for _ in range(rounds):
        w = load_bytes(weights, 0)
        acc = dot4_each(acc, w, rows, 0, 4)
        acc = dot4_each(acc, w, rows, 4 * TILE, 4)
        acc = dot4_each(acc, w, rows, 8 * TILE, 4)
        acc = dot4_each(acc, w, rows, 12 * TILE, 4)
    store_each(to_float_each(acc), 1, out, 0, BLOCK)


@lean
def fma_loop(rows: Array, rounds: int, out: Array) -> None:
    """4 · 8 float32 `fma` a round."""
    acc = zeros(TILE)
    for _ in range(rounds):
        w = load(rows, 0)
        acc = fma_each(acc, w, rows, 0, 1)
        acc = fma_each(acc, w, rows, TILE, 1)
        acc = fma_each(acc, w, rows, 2 * TILE, 1)
        acc = fma_each(acc, w, rows, 3 * TILE, 1)
    store_each(add_each(acc, acc), 1, out, 0, BLOCK)


@lean
def read_loop(words: Array, start: int, stop: int) -> None:
    """Read words[start : stop], int64, a multiple of 32 of them; the first 8 are overwritten."""
    a = b = c = d = splat(np.int32(0))
    for i in range(start, stop, 32):
        a = xor(a, load_bytes(words, i))
        b = xor(b, load_bytes(words, i + 8))
        c = xor(c, load_bytes(words, i + 16))
        d = xor(d, load_bytes(words, i + 24))
    store_bytes(words, start, xor(xor(a, b), xor(c, d)))  # or the loop would be optimised away
