"""How many threads numpy's own matrix products take, while the readable path computes.

BLAS takes a thread a core, and its threads wait for one another in a loop. On a busy machine one of
them always has no core, and each of a forward's hundreds of products waits for it: several times
the time of one thread alone. So there is one thread while a forward runs, and as many as before
when it is over: what a program does with numpy besides is not touched, nor is its environment.

Two cores, medians in ms of a prompt of 43 tokens and of one token behind it (SmolLM2-135M, float32;
tests/scripts/bench_blas.py, three ways in turn, 5 rounds quiet and 3 beside two busy processes):

    BLAS threads                      quiet        busy
    one, in the whole process         235, 50      354, 65
    one, around our own forwards      226, 48      279, 61
    one a core                        166, 38      564, 137

So a quiet machine could have a quarter less with two, and a busy one pays two times for it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from threadpoolctl import ThreadpoolController

THREADS = 1

_lock = threading.Lock()  # the limit is the process's: guards what follows
_blocks = 0  # that compute now
_limited: Any = None  # what the first of them set, and gives back what held before


@lru_cache(maxsize=1)
def _controller() -> ThreadpoolController:
    """The BLAS libraries of this process; finding them takes a millisecond, so it is done once."""
    return ThreadpoolController().select(user_api="blas")


@contextmanager
def few_threads() -> Iterator[None]:
    """In the block, and as a decorator, BLAS computes with THREADS threads.

    The first block sets the limit, and the last one that ends gives back what held before: a sum's
    last bits may hang on the number of threads, so it must not change while any block computes.
    """
    global _blocks, _limited
    with _lock:
        _blocks += 1
        if _blocks == 1:
            _limited = _controller().limit(limits=THREADS)
    try:
        yield
    finally:
        with _lock:
            _blocks -= 1
            if not _blocks:
                _let_any_thread_set()
                _limited.restore_original_limits()
                _let_any_thread_set()


def _let_any_thread_set() -> None:
    """threadpoolctl leaves a limit to the thread that set it, but another one may end last."""
    for library in _controller().lib_controllers:
        clear = getattr(library, "clear_controlling_thread", None)  # OpenBLAS has it
        if clear is not None:
            clear(force=True)
