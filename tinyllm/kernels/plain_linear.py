"""How Python calls the kernel of `plain_rows.py`, where the processor and the shapes are for it.

Elsewhere, with too few registers for its sums, say, the product is `reference.linear`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyllm.kernels import reference
from tinyllm.kernels.layout import BLOCK
from tinyllm.kernels.machine_code import Calls, Kernel
from tinyllm.kernels.machine_code import prepare as prepare_all
from tinyllm.kernels.processor import JIT, KIND

ROWS = 4  # of each factor that are worked on together
LINE = 16  # numbers in a line of the cache
LONGEST = 4096  # inputs of four rows that stay in the first cache while tokens pass by

Array = NDArray[Any]

ENOUGH_REGISTERS = JIT and KIND.sums >= ROWS * ROWS

ROWS_TIMES_ROWS = Kernel("tinyllm.kernels.plain_rows", "rows_times_rows")
EXAMPLES = (np.zeros((1, 1), np.float32),) * 3


def linear(x: Array, weight: Array) -> Array:
    """x Wᵀ, (T, in) → (T, out), as `reference.linear` but for rounding."""
    if min(len(x), len(weight)) < ROWS or not _fits(x, weight):
        return reference.linear(x, weight)
    return _product(_aligned(x, len(x)), weight)


def row_by_row(x: Array, weight: Array) -> Array:
    """As `linear`, and each row has the bits that it has alone, whatever rows stand beside it.

    Where the kernel does it, one row to four take the same time.
    """
    if len(weight) < ROWS or not _fits(x, weight):
        return np.concatenate([reference.linear(row[None], weight) for row in x])
    return _product(_aligned(x, max(len(x), ROWS)), weight)[: len(x)]


def _fits(x: Array, weight: Array) -> bool:
    """Whether the kernel is for these matrices, if they have rows enough."""
    n_in = weight.shape[1]
    plain = x.dtype == weight.dtype == np.float32 and weight.flags.c_contiguous
    return ENOUGH_REGISTERS and plain and n_in % BLOCK == 0 and n_in <= LONGEST


def _product(x: Array, weight: Array) -> Array:
    out = np.empty((len(x), len(weight)), np.float32)
    _kernel()(x, weight, out)
    return out


@lru_cache(maxsize=1)
def _kernel() -> Callable[[Array, Array, Array], None]:
    prepare()
    return ROWS_TIMES_ROWS.bind(EXAMPLES, ())


def prepare() -> None:
    """Load the kernel from disk, or compile it, so that no look has to wait for that."""
    prepare_all("look", calls())


def calls() -> Calls:
    """The kernel, if it is used here, with arguments of the types that it is called with."""
    return {ROWS_TIMES_ROWS: EXAMPLES} if ENOUGH_REGISTERS else {}


def _aligned(x: Array, n_rows: int) -> Array:
    """A copy that begins where a line of the cache does: no load of sixteen then takes two lines.

    They are loaded again for every four outputs, and with them there it takes a fifth less. Where
    rows are lacking, they are zeros.
    """
    width = x.shape[1]
    room = np.empty(n_rows * width + LINE, np.float32)
    start = -room.ctypes.data % (4 * LINE) // 4
    copy = room[start : start + n_rows * width].reshape(n_rows, width)
    copy[: len(x)] = x
    copy[len(x) :] = 0
    return copy
