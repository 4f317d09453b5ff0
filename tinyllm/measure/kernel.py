"""`python -m tinyllm.measure.kernel [q8]`: one matrix kernel, three ways, beside the machine.

The reference is numpy on the dequantised weights; then the plain loops of `jit.py`, and the vectors
of `simd.py`. Each runs on one thread over weights too large for any
cache.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from tinyllm.kernels import processor, reference
from tinyllm.kernels.build import uncached
from tinyllm.kernels.dispatch import LOOPS, VECTORS, n_blocks, put
from tinyllm.kernels.formats import FORMATS
from tinyllm.kernels.layout import BLOCK, TILE
from tinyllm.measure import machine

STEP = 4  # blocks of 16 outputs a call, about what the forward pass takes


def implementations(kernel: str) -> dict[str, Callable[..., None]]:
    """Name → the product as loops, and in vectors."""
    found: dict[str, Callable[..., None]] = {}
    for words, modules in (
        ("loops (%s.py)", LOOPS),
        (f"vectors (%s.py), {processor.NAME}", VECTORS),
    ):
        for module in modules:
            if hasattr(module, kernel):
                found[words % module.__name__.rpartition(".")[2]] = getattr(module, kernel)
    return found


def looped(kernel: Callable[..., None]) -> Callable[..., None]:
    """The kernel over all blocks of a matrix, compiled, so that Python isn't timed."""

    @uncached
    def run(w: Any, blocks: int, rows: Any, n: int, out: Any) -> None:
        for first in range(0, blocks, STEP):
            count = min(STEP, blocks - first)
            kernel(w, 0, first, count, rows, 0, n, out, 0, first * BLOCK)

    return run


def best_of(run: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest run."""
    run()
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best


def main() -> None:
    """Read the options, measure, print a table."""
    parser = argparse.ArgumentParser(prog="python -m tinyllm.measure.kernel", description=__doc__)
    parser.add_argument("format", nargs="?", choices=tuple(FORMATS), default="q8")
    parser.add_argument("--outputs", type=int, default=49152, help="rows of the matrix")
    parser.add_argument("--inputs", type=int, default=576, help="a multiple of 32")
    parser.add_argument("--tokens", type=int, choices=range(1, TILE + 1), default=1)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()

    rng = np.random.default_rng(0)
    weight = rng.standard_normal((options.outputs, options.inputs), np.float32) * np.float32(0.02)
    x = rng.standard_normal((options.tokens, options.inputs), np.float32)
    form = FORMATS[options.format]
    packed = form.matrix(weight)
    exact = form.stands_for(packed, options.outputs)
    w = form.stack([packed], 1)
    rows = form.empty_rows(TILE, options.inputs)
    for lane, token in enumerate(x):
        put(rows, 0, lane, 0, token, 0, options.inputs)

    limit = machine.read_bandwidth(1)
    peak = machine.peaks(1).get(form.arithmetic)
    nbytes = sum(array.nbytes for array in w)
    operations = 2 * form.products * options.tokens * weight.size
    want = reference.linear(x.astype(np.float64), exact.astype(np.float64))
    table = Table("", "largest error", "ms", "GB/s", "of bandwidth", "Gop/s", "of peak")

    def add(name: str, got: NDArray[Any], seconds: float, read: int) -> None:
        error = np.abs(got - want).max() / np.abs(want).max()
        share = f"{operations / seconds / peak:.0%}" if peak else ""
        table.add_row(
            name, f"{error:.1e}", f"{seconds * 1e3:.3f}", f"{read / seconds / 1e9:.1f}",
            f"{read / seconds / limit:.0%}", f"{operations / seconds / 1e9:.1f}", share,
        )  # fmt: skip

    seconds = best_of(lambda: reference.linear(x, exact), options.repeats)
    add("numpy (reference.py)", reference.linear(x, exact), seconds, exact.nbytes)
    blocks = n_blocks(w)
    for name, kernel in implementations(f"matmul_{form.name}").items():
        run = looped(kernel)
        out = np.zeros((TILE, blocks * BLOCK), np.float32)
        seconds = best_of(partial(run, w, blocks, rows, options.tokens, out), options.repeats)
        add(name, out[: options.tokens, : options.outputs], seconds, nbytes)
    console = Console()
    console.print(
        f"{options.format}: {options.outputs} × {options.inputs} weights, {nbytes / 1e6:.0f} MB, "
        f"{options.tokens} token(s), one thread of {machine.name()}; memory reads "
        f"{limit / 1e9:.1f} GB/s" + (f", peak {peak / 1e9:.0f} Gop/s" if peak else "")
    )
    console.print(table)
    console.print(
        "The error is relative to the largest output, against float64 on the same weights"
        + (": what rounding the activations costs." if form.arithmetic == "int8" else ".")
    )


if __name__ == "__main__":
    main()
