"""Kernels that take arguments of every type, for `test_machine_code.py`."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinyllm.kernels.apart import apart
from tinyllm.kernels.build import kernel


class Inner(NamedTuple):
    """A tuple in a tuple."""

    halves: NDArray[np.uint16]
    missing: Any
    scale: float


class Outer(NamedTuple):
    """What has all types in it."""

    cube: NDArray[np.float32]
    inner: Inner
    turned: bool
    row: NDArray[np.int64]


@kernel
def weigh(n: int, x: np.float32, big: np.uint64, o: Outer, out: NDArray[np.float64]) -> float:
    """Each argument goes into `out` and into the sum, and each place of an array counts."""
    total = 0.0
    for i in range(o.cube.shape[0]):
        for j in range(o.cube.shape[1]):
            for k in range(o.cube.shape[2]):
                total += o.cube[i, j, k] * (100 * i + 10 * j + k)
    out[0] = n
    out[1] = x
    out[2] = np.float64(big >> np.uint64(60))
    out[3] = o.inner.halves[1, 2] * o.inner.scale
    out[4] = o.row[o.row.shape[0] - 1]
    out[5] = 1.0 if o.turned else 2.0
    out[6] = 3.0 if o.inner.missing is None else 4.0
    return total


@kernel
def fail(n: int) -> int:
    """An error in a kernel."""
    if n > 1:
        raise ValueError("too many")
    return n


@apart
def fill(o: Outer, value: float, out: NDArray[np.float64]) -> None:
    """Compiled apart from its callers."""
    if value < 0:
        raise ValueError("too small")
    for i in range(out.shape[0]):
        out[i] = np.exp(value) * o.row[0] + i


@kernel
def filled(times: int, o: Outer, out: NDArray[np.float64]) -> float:
    """It calls `fill` for arguments of two types."""
    fill(o, 2, out)
    total = float(out[0])
    for i in range(times):
        fill(o, 0.5 * i, out)
        total += out[1]
    fill(o, float(3 - times), out)
    return total
