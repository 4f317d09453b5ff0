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
    n_out, n_in = weight.shape
    fits = min(len(x), n_out) >= ROWS and n_in % BLOCK == 0 and n_in <= LONGEST
    plain = x.dtype == weight.dtype == np.float32 and weight.flags.c_contiguous
    if not (fits and plain and ENOUGH_REGISTERS):
        return reference.linear(x, weight)
    out = np.empty((len(x), n_out), np.float32)
    _kernel()(_aligned(x), weight, out)
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


def _aligned(x: Array) -> Array:
    """A copy that begins where a line of the cache does: no load of sixteen then takes two lines.

    They are loaded again for every four outputs, and with them there it takes a fifth less.
    """
    room = np.empty(x.size + LINE, np.float32)
    start = -room.ctypes.data % (4 * LINE) // 4
    copy = room[start : start + x.size].reshape(x.shape)
    copy[:] = x
    return copy
