"""Whether a grammar can be compiled at all, found out where it can be stopped.

Thirty patterns that must hold at once (`allOf` of `^.*a.{n}$`, 1.4 kB of schema) keep the compiler
busy for ever, and its memory grows by gigabytes: states multiply. Nothing ends a thread that is
inside the library. So each new grammar is compiled by a process first, with a limit of memory, that
is killed when its time is over or its client has gone. What comes through is compiled again by
whoever asked, in the time that it has just been seen to take.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path

SECONDS = 5  # that a grammar may take to compile
MEMORY = 1 << 30  # bytes of address space that it may take
START = 60.0  # seconds until a process is ready, at most
POLL = 0.05  # seconds between two looks whether the client is still there
MOST_TRIALS = 64  # of one process, which then makes place for a fresh one
WORKER = Path(__file__).with_name("trial_worker.py")
AVAILABLE = os.name == "posix"  # elsewhere there are no limits to set


class TooComplex(Exception):
    """The grammar takes more time or memory than anybody gets."""


class GivenUp(Exception):
    """Nobody waits for the grammar any more."""


def never() -> bool:
    return False


class Trials:
    """The processes: idle ones are kept, and one is started when none is. Safe from any thread."""

    def __init__(self, seconds: float = SECONDS, memory: int = MEMORY) -> None:
        self.seconds, self.memory = seconds, memory
        self._idle: list[_Process] = []
        self._lock = threading.Lock()
        weakref.finalize(self, _kill_all, self._idle)  # at the interpreter's end at the latest

    def compile(self, grammar: str, gone: Callable[[], bool] = never) -> str:
        """Try it: the compiler's error, or "" if it compiles. Blocks: use a thread.

        Args:
            grammar: as llguidance reads it.
            gone: whether nobody waits for it any more; asked all the while.

        Raises TooComplex, GivenUp.
        """
        if not AVAILABLE:
            return ""
        with self._lock:
            process = self._idle.pop() if self._idle else None
        process = process or _Process(self.seconds, self.memory)
        try:
            error = process.compile(grammar, self.seconds, gone)
        except BaseException:
            process.kill()
            raise
        if process.trials >= MOST_TRIALS:
            process.kill()
        else:
            with self._lock:
                self._idle.append(process)
        return error


def _kill_all(processes: list[_Process]) -> None:
    for process in processes:
        process.kill()


class _Process:
    """One process, and one grammar at a time."""

    def __init__(self, seconds: float, memory: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(WORKER), str(max(1, round(seconds))), str(memory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is the server's affair
            env={**os.environ, "MALLOC_ARENA_MAX": "1"},  # else threads reserve memory for nothing
        )
        self._begun = False
        self.trials = 0

    def compile(self, grammar: str, seconds: float, gone: Callable[[], bool]) -> str:
        if not self._begun:
            self._answer(START, gone)
            self._begun = True
        self.trials += 1
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(grammar).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise TooComplex from None
        return self._answer(seconds, gone)

    def _answer(self, seconds: float, gone: Callable[[], bool]) -> str:
        assert self._process.stdout is not None
        end = time.monotonic() + seconds
        while not select.select([self._process.stdout], [], [], POLL)[0]:
            if gone():
                raise GivenUp
            if time.monotonic() > end:
                raise TooComplex
        line = self._process.stdout.readline()
        if not line:  # it ran into a limit, and was ended
            raise TooComplex
        error: str = json.loads(line)
        return error

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
