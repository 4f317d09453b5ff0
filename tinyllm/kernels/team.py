"""A team of threads that share one forward pass, as Python sees it: helpers that sleep until a job.

What they do in a job is `threads.py`, compiled; the words by which they agree there are laid out
here.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

WORD = 16  # int64s a counter: 128 bytes apart, so that counters never share a cache line
COUNT_BITS = 24
COUNT_MASK = (1 << COUNT_BITS) - 1
PR_SET_TIMERSLACK = 29  # of Linux's prctl; the slack is in nanoseconds
QOS_CLASS_USER_INITIATED = 0x19  # of macOS

# The words of `control`. From REGIONS on a region has one a thread, how many of the chunks that are
# that thread's own are claimed, and one more, how many of all are done.
JOB = 0  # even: that job is running; odd: none is
REGIONS = 1
# In the rest of the job's line of the cache, which isn't written while one runs:
N_REGIONS = 1  # how many regions there are words for
TIMES = 2  # where times are written, 0: nowhere

# What is written of a region, int64s: nanoseconds when a thread came, when it had no more to do and
# when the region was over, and how many of its chunks it did. Thread by thread, region by region.
CAME, DID, LEFT, CHUNKS = range(4)
NOTES = 4


def be_prompt() -> None:
    """Have this thread's sleeps end when they should, and its work done on quick cores.

    Linux adds 50 microseconds to a sleep unless told; macOS may move a thread to an efficiency
    core, for which the others then wait, unless it says that somebody waits (`pthread/qos.h`).
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, ctypes.c_ulong(1), 0, 0, 0)
    elif sys.platform == "darwin":
        ctypes.CDLL(None).pthread_set_qos_class_self_np(QOS_CLASS_USER_INITIATED, 0)


Work = Callable[[int, int], int]
"""work(thread, job): thread 0 runs job `job`; others run jobs later than it until none comes for
some milliseconds, and return the last one."""


class Team:
    """`n_threads` - 1 helper threads that join whichever thread calls `run`.

    Args:
        n_threads: all together, at least 1.
        n_regions: the most regions that a job has.
    """

    def __init__(self, n_threads: int, n_regions: int) -> None:
        if n_threads < 1:
            raise ValueError(f"threads must be at least 1, not {n_threads}")
        self.n_threads = n_threads
        times = (REGIONS + (n_threads + 1) * n_regions) * WORD
        self.control = np.zeros(times + n_threads * n_regions * NOTES, np.int64)
        self.control[JOB * WORD] = 1
        self.control[N_REGIONS] = n_regions
        self._times = self.control[times:].reshape(n_threads, n_regions, NOTES)
        self._job = 0
        self._called = threading.Condition()
        self._callers = threading.local()
        self._closed = False

    def start(self, work: Work) -> None:
        """Start the helpers. They keep `work` alive until `close`."""
        self._work = work
        for thread in range(1, self.n_threads):
            name = f"tinyllm-kernels-{thread}"
            threading.Thread(target=self._help, args=(thread,), name=name, daemon=True).start()

    def run(self) -> None:
        """Run a job, together with the helpers that have time. One caller at a time."""
        if not hasattr(self._callers, "is_prompt"):
            be_prompt()
            self._callers.is_prompt = True
        with self._called:
            self._job += 2
            self._called.notify_all()
        self._work(0, self._job)

    def note_times(self, noted: bool) -> Array:
        """From now on, or no longer, write down when threads come to regions, and leave them.

        Returns:
            (threads, regions, NOTES) int64, all zeros; what is written stands there. A region that
            a job leaves out stays as it was.
        """
        self.control[TIMES] = self.control.size - self._times.size if noted else 0
        self._times[:] = 0
        return self._times

    def close(self) -> None:
        """Let the helpers end."""
        with self._called:
            self._closed = True
            self._called.notify_all()

    def _help(self, thread: int) -> None:
        be_prompt()
        last = 0
        while not self._closed:
            last = self._work(thread, last)
            with self._called:
                while self._job <= last and not self._closed:
                    self._called.wait()
