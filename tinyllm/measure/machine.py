"""What this machine can do: bytes read and operations a second, the limits kernels are held to.

Measured, with the same instructions and threads as the kernels use; taken again beside each
benchmark, since the figures of shared machines move by the hour.
"""

from __future__ import annotations

import platform
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyllm.kernels.layout import BLOCK, GROUP, Q8_BYTES, TILE
from tinyllm.kernels.memory import huge_memory
from tinyllm.kernels.processor import JIT

Array = NDArray[Any]

READ_BYTES = 256 << 20  # well beyond any cache


def name() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line[:10] == "model name")
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    return model


def read_bandwidth(threads: int, repeats: int = 5) -> float:
    """Bytes a second that `threads` threads read from memory together; the best of `repeats`."""
    words = huge_memory(READ_BYTES).view(np.float32)
    words[:] = 0
    step = len(words) // threads // 64 * 64
    read: Callable[[Array, int, int], object] = lambda w, start, stop: w[start:stop].sum()  # noqa: E731
    if JIT:
        from tinyllm.measure import peak

        read = peak.read_loop
        read(words, 0, 64)
    seconds = together(
        threads, lambda thread: read(words, thread * step, (thread + 1) * step), repeats
    )
    return step * threads * words.itemsize / seconds


def peaks(threads: int, repeats: int = 5) -> dict[str, float]:
    """Operations a second on data in the nearest cache: 8-bit dot products, and float32.

    A multiply and an add are two operations. Kernels that aren't compiled have no limit to be held
    to, and the dictionary is empty.
    """
    if not JIT:
        return {}
    from tinyllm.measure import peak

    rounds = 200_000
    weights, rows = np.zeros(Q8_BYTES, np.uint8), np.zeros(TILE * GROUP, np.int8)
    floats, out = np.zeros(4 * TILE, np.float32), np.zeros((TILE, BLOCK), np.float32)
    peak.dot_loop(weights, rows, 1, out)
    peak.fma_loop(floats, 1, out)
    dot = together(
        threads,
        lambda thread: peak.dot_loop(weights, rows, rounds, np.zeros_like(out)),
        repeats,
    )
    fma = together(
        threads, lambda thread: peak.fma_loop(floats, rounds, np.zeros_like(out)), repeats
    )
    sums = rounds * peak.SUMS * BLOCK * threads
    return {"int8": sums * GROUP * 2 / dot, "f32": sums * 4 * 2 / fma}


def together(threads: int, work: Callable[[int], object], repeats: int) -> float:
    """Seconds that `work(thread)` takes on all threads at once; the best of `repeats`."""
    best = float("inf")
    for _ in range(repeats):
        others = [threading.Thread(target=work, args=(i,)) for i in range(1, threads)]
        start = time.perf_counter()
        for other in others:
            other.start()
        work(0)
        for other in others:
            other.join()
        best = min(best, time.perf_counter() - start)
    return best
