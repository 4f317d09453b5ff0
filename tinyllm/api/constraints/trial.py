"""Whether a grammar can be compiled at all, found out where it can be stopped.

Thirty patterns that must hold at once (`allOf` of `^.*a.{n}$`, 1.4 kB of schema) keep the compiler
busy for ever, and its memory grows by gigabytes: states multiply. Nothing ends a thread that is
inside the library. So each new grammar is compiled by a process first, with limits of processor
time and memory, that is killed when its client has gone. What comes through is compiled again by
whoever asked, in the time that it has just been seen to take.

A large process is slow to start another: seconds on a busy machine, in which nothing else of it
runs. So one small helper is started with the server (`trial_worker`), and forks for each grammar.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path

from tinyllm.api.limits import GRAMMAR_MEMORY, GRAMMAR_PATIENCE, GRAMMAR_SECONDS

POLL = 0.05  # seconds between two looks whether the client is still there
WORKER = Path(__file__).with_name("trial_worker.py")
AVAILABLE = os.name == "posix"  # elsewhere there are no limits to set


class TooComplex(Exception):
    """The grammar takes more time or memory than anybody gets."""


class GivenUp(Exception):
    """Nobody waits for the grammar any more."""


def never() -> bool:
    return False


class Trials:
    """The helper, and what is asked of it. Safe from any thread."""

    def __init__(self, seconds: float = GRAMMAR_SECONDS, memory: int = GRAMMAR_MEMORY) -> None:
        self.seconds, self.memory = seconds, memory
        self._helper: _Helper | None = None
        self._lock = threading.Lock()

    def start(self) -> None:
        """Start the helper, unless it runs. Blocks for as long as that takes."""
        if AVAILABLE:
            with self._lock:
                if self._helper is None or not self._helper.alive:
                    self._helper = _Helper(self.seconds, self.memory)

    def compile(self, grammar: str, gone: Callable[[], bool] = never) -> str:
        """Try it: the compiler's error, or "" if it compiles. Blocks: use a thread.

        Args:
            grammar: as llguidance reads it.
            gone: whether nobody waits for it any more; asked all the while.

        Raises TooComplex, GivenUp.
        """
        if not AVAILABLE:
            return ""
        self.start()
        helper = self._helper
        assert helper is not None
        answer = helper.ask(grammar.encode(), gone)
        if not answer and not helper.alive:  # it was ended by somebody, so no limit was met
            self.start()
            assert self._helper is not None
            answer = self._helper.ask(grammar.encode(), gone)
        if not answer:
            raise TooComplex
        error: str = json.loads(answer)
        return error


class _Helper:
    """The process. What it is sent is one end of a socket pair, for each trial."""

    def __init__(self, seconds: float, memory: int) -> None:
        self._control, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, str(WORKER), str(seconds), str(memory)],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is the server's affair; and see `_end`
                env={**os.environ, "MALLOC_ARENA_MAX": "1"},  # threads reserve memory for nothing
            )
        self._finalizer = weakref.finalize(self, _end, self._process, self._control)

    @property
    def alive(self) -> bool:
        """Whether it holds its end of the socket. It isn't waited for: its number stays its own."""
        closed = select.poll()
        closed.register(self._control, 0)  # for a hang-up alone
        return not closed.poll(0)

    def ask(self, grammar: bytes, gone: Callable[[], bool]) -> bytes:
        """What a trial says; nothing if it was ended. Closing the socket ends it. GivenUp."""
        ours, theirs = socket.socketpair()
        with ours:
            with theirs, contextlib.suppress(OSError):  # no helper: no answer
                socket.send_fds(self._control, [b"."], [theirs.fileno()])
            with contextlib.suppress(OSError):
                ours.settimeout(GRAMMAR_PATIENCE)
                ours.sendall(grammar)
                ours.shutdown(socket.SHUT_WR)
            end = time.monotonic() + GRAMMAR_PATIENCE
            answered = select.poll()  # select() knows descriptors up to 1,023 alone
            answered.register(ours, select.POLLIN)
            while not answered.poll(POLL * 1000):
                if gone():
                    raise GivenUp
                if time.monotonic() > end:
                    return b""
            with contextlib.suppress(OSError):
                return b"".join(iter(lambda: ours.recv(1 << 16), b""))
        return b""


def _end(process: subprocess.Popen[bytes], control: socket.socket) -> None:
    """End the helper and its process group, the trials: one that is killed ends none itself."""
    control.close()
    with contextlib.suppress(ProcessLookupError):  # somebody has waited for it: there is no group
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
