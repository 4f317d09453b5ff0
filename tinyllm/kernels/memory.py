"""Memory for what is large and read once a token: on pages of 2 MB where the system has them."""

from __future__ import annotations

import contextlib
import math
import mmap
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
LINE = 64  # bytes of a line of the cache
STRETCH = 64 << 20  # bytes that are taken for arrays at a time


def huge_memory(nbytes: int) -> NDArray[np.uint8]:
    """Fresh memory, page-aligned, on 2 MB pages where the system has them.

    Decoding reads all weights once a token: with 4 kB pages it would wait for page-table walks, and
    vectors that cross a cache line would cost double.
    """
    if hasattr(mmap, "MAP_PRIVATE"):
        # Private, since Linux gives shared memory no huge pages.
        memory = mmap.mmap(-1, max(nbytes, 1), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    else:
        memory = mmap.mmap(-1, max(nbytes, 1))
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8)[:nbytes]


def huge_zeros(shape: tuple[int, ...], dtype: Any) -> Array:
    """An array of zeros in such memory; it takes room only where something is written."""
    nbytes = math.prod(shape) * np.dtype(dtype).itemsize
    array: Array = huge_memory(nbytes).view(dtype).reshape(shape)
    return array


def on_huge_pages(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Arrays in such memory, each at the beginning of a cache line.

    They are asked for one after the other, so that one that is made only then is in memory twice no
    longer than it takes to copy it. What is mapped from a file stays where it is: other processes
    share it, and what nobody reads takes no memory.
    """
    moved: dict[str, Array] = {}
    room = huge_memory(0)
    for name in arrays:
        old = arrays[name]
        if not _is_own(old):
            moved[name] = old
            continue
        taken = -(-old.nbytes // LINE) * LINE
        if taken > len(room):
            room = huge_memory(max(taken, STRETCH))
        new = room[: old.nbytes].view(old.dtype).reshape(old.shape)
        room = room[taken:]
        new[...] = old
        new.flags.writeable = old.flags.writeable
        moved[name] = new
        del old  # before the next one is made
    return moved


def _is_own(array: Array) -> bool:
    """Whether an array's memory was allocated, by numpy."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array.base is None
