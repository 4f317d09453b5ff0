"""What bounds the matrix kernels, with nothing around it: two instructions, and reading memory."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyllm.kernels.build import kernel
from tinyllm.kernels.bundles import fma_each, q8_dots, repeat, scale_each, store_each, zeros
from tinyllm.kernels.layout import BLOCK, TILE
from tinyllm.kernels.processor import KIND
from tinyllm.kernels.vectors import add, load, splat, store

Array = NDArray[Any]

SUMS = min(TILE, KIND.sums)  # as many as the kernels keep


@kernel
def dot_loop(weights: Array, rows: Array, rounds: int, out: Array) -> None:
    """A Q8's group times `SUMS` tokens a round, all from the nearest cache."""
    acc = repeat(SUMS, splat(np.int32(0)))
    for _ in range(rounds):
        acc = q8_dots(acc, weights, 0, rows, 0)
    one = splat(np.float32(1.0))
    store_each(scale_each(zeros(SUMS), acc, one, out, 0), 1, out, 0, BLOCK)


@kernel
def fma_loop(rows: Array, rounds: int, out: Array) -> None:
    """4 · `SUMS` float32 `fma` a round."""
    acc = zeros(SUMS)
    for _ in range(rounds):
        w = load(rows, 0)
        acc = fma_each(acc, w, rows, 0, 1)
        acc = fma_each(acc, w, rows, TILE, 1)
        acc = fma_each(acc, w, rows, 2 * TILE, 1)
        acc = fma_each(acc, w, rows, 3 * TILE, 1)
    store_each(acc, 1, out, 0, BLOCK)


@kernel
def read_loop(words: Array, start: int, stop: int) -> None:
    """Read words[start : stop], float32, a multiple of 64 of them; the first 16 are overwritten."""
    a = b = c = d = splat(np.float32(0.0))
    for i in range(start, stop, 64):
        a = add(a, load(words, i))
        b = add(b, load(words, i + 16))
        c = add(c, load(words, i + 32))
        d = add(d, load(words, i + 48))
    store(words, start, add(add(a, b), add(c, d)))  # or the loop would be optimised away
