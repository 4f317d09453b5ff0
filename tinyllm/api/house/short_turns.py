"""Have Linux run the event loop's thread as soon as it wakes up, even with all cores computing.

The loop is woken at every token, by the engine, for a quarter of a millisecond of work, while the
kernels' threads hold every core. By default it then waits for one of them to use up its turn, about
three milliseconds, or for the pause between two forward passes: there it takes the interpreter's
lock from the engine, and the next pass starts late. A thread that asks for short turns gets them
early instead (Linux from 6.12 on: https://docs.kernel.org/scheduler/sched-eevdf.html), and the
kernels make good for it: what one thread can't do meanwhile, another does (`kernels/threads.py`).
"""

from __future__ import annotations

import ctypes
import platform
import struct

TURN = 200_000  # nanoseconds
SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}  # the system call's number, by machine
SCHED_OTHER, RESET_ON_FORK = 0, 1


def take_short_turns() -> bool:
    """For the calling thread, not for those that it starts; returns whether the system took it."""
    number = SCHED_SETATTR.get(platform.machine())
    if platform.system() != "Linux" or number is None:
        return False
    # struct sched_attr: size, policy, flags, nice, priority, runtime, deadline, period.
    attributes = struct.pack("IIQiIQQQ", 48, SCHED_OTHER, RESET_ON_FORK, 0, 0, TURN, 0, 0)
    return bool(ctypes.CDLL(None).syscall(number, 0, attributes, 0) == 0)
