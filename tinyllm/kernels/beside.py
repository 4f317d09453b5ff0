"""A process beside this one, for what Python does on one core only."""

from __future__ import annotations

import atexit
import os
import subprocess
import sys


def start(
    code: str, reads: int = subprocess.DEVNULL, writes: int = subprocess.DEVNULL
) -> subprocess.Popen[bytes] | None:
    """Run this code, which finds the same modules; it ends with this process at the latest.

    It is silent: where kernels are kept, say, is told once, by this process. None if the system
    starts no other process: it is short of memory, say, or Python itself runs under an emulator.
    """
    paths = os.pathsep.join(path or "." for path in sys.path)
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": paths},
            stdin=reads,
            stdout=writes,
            stderr=subprocess.DEVNULL,
        )
    except OSError:
        return None
    atexit.register(process.kill)
    return process
