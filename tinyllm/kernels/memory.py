"""Memory for what is large and read once a token: on pages of 2 MB where the system has them."""

from __future__ import annotations

import contextlib
import math
import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


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
