"""Times each operation of a forward pass by itself, on one thread, over a model's own weights."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tinyllm.kernels.build import uncached
from tinyllm.kernels.dispatch import matmul, n_blocks, n_matrices
from tinyllm.kernels.layout import BLOCK, GROUP, TILE

if TYPE_CHECKING:
    from tinyllm.compiled import CompiledModel

STEP = 4  # blocks of outputs a call, about what the forward pass takes


@uncached
def all_layers(w: Any, n_layers: int, rows: Any, n: int, out: NDArray[Any]) -> None:
    """One matrix product of every layer."""
    count = n_blocks(w)
    for layer in range(n_layers):
        for first in range(0, count, STEP):
            matmul(w, layer, first, min(STEP, count - first), rows, 0, n, out, 0, 0)


def time_operations(
    model: CompiledModel, bandwidth: float, peak: float | None, repeats: int = 5
) -> list[dict[str, Any]]:
    """Each matrix product of the model, for 1 row and for a tile of 8; best of `repeats`.

    Experts' are those of all experts.

    Args:
        model: whose weights are used.
        bandwidth: bytes a second of the machine, all threads; shares are given of one thread's.
        peak: operations a second likewise, or None.
    """
    out = np.zeros((TILE, STEP * BLOCK), np.float32)
    scratch, arrays = model.scratch, model.arrays
    inputs = {
        "qkv": (arrays.qkv, scratch.normed),
        "out": (arrays.out, scratch.mixed),
        "gate_up": (arrays.gate_up, scratch.normed),
        "down": (arrays.down, scratch.hidden),
        "head": (arrays.head, scratch.normed),
    }
    if arrays.experts is not None:
        own, at = arrays.experts, scratch.experts
        inputs |= {"experts' gate_up": (own.gate_up, at.gathered),
                   "experts' down": (own.down, at.hidden)}  # fmt: skip
    found = []
    for name, (w, rows) in inputs.items():
        if w is None:  # every layer has experts
            continue
        nbytes = sum(array.nbytes for array in w)
        n_layers = n_matrices(w)
        width = rows.values.shape[1] * GROUP
        for n in (1, TILE):
            all_layers(w, n_layers, rows, n, out)
            best = float("inf")
            for _ in range(repeats):
                start = time.perf_counter()
                all_layers(w, n_layers, rows, n, out)
                best = min(best, time.perf_counter() - start)
            operations = 2 * n_layers * n_blocks(w) * BLOCK * width * n
            op = {
                "operation": name,
                "rows": n,
                "microseconds": best * 1e6,
                "gb_per_s": nbytes / best / 1e9,
                "share_of_bandwidth": nbytes / best / bandwidth,
                "gop_per_s": operations / best / 1e9,
            }
            if peak is not None:
                op["share_of_peak"] = operations / best / peak
            found.append(op)
    return found
