"""A process that forks for each grammar to see whether it compiles: run by `trial`, never imported.

Its standard input is a socket on which it is sent others. From each of those a child reads a
grammar, and writes the compiler's error in JSON, `""` if there is none. A socket that is closed
before that ends its child; the end of the input ends everything.

The children know bytes and no vocabulary: what a grammar's patterns cost to compile doesn't depend
on the tokens. Each has a processor for so many seconds (the system's own clock ends it, whatever
the library is doing), so many bytes of address space where the system can hold a process to that
(macOS can't: there the seconds alone bound it), and a low priority.
"""

import contextlib
import json
import os
import resource
import select
import signal
import socket
import sys
from collections.abc import Callable
from typing import NoReturn

Compile = Callable[[str], str]  # a grammar → the compiler's error, or ""


def serve(control: socket.socket, compile: Compile, seconds: float, memory: int) -> None:
    """Fork for each socket that comes, and keep it until its child or its sender is gone."""
    # A child that ends wakes the loop.
    waker, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    poll = select.poll()
    poll.register(control, select.POLLIN)
    poll.register(waker, select.POLLIN)
    children: dict[int, socket.socket] = {}  # by process
    while True:
        ready = {fd for fd, _ in poll.poll()}
        if waker in ready:
            os.read(waker, 4096)
        for pid, trial in children.items():
            if trial.fileno() in ready:
                os.kill(pid, signal.SIGKILL)  # not waited for yet, so the number is still its own
        for pid in list(children):
            if os.waitpid(pid, os.WNOHANG)[0]:
                trial = children.pop(pid)
                poll.unregister(trial)
                trial.close()
        if control.fileno() not in ready:
            continue
        received, fds, _, _ = socket.recv_fds(control, 1, 1)
        if not received:
            for pid in children:
                os.kill(pid, signal.SIGKILL)
            return
        trial = socket.socket(fileno=fds[0])
        pid = os.fork()
        if not pid:
            for other in (control, *children.values()):  # else they would stay open with this one
                other.close()
            run(trial, compile, seconds, memory)
        children[pid] = trial
        poll.register(trial, 0)  # for a hang-up alone: what can be read is the child's


def run(trial: socket.socket, compile: Compile, seconds: float, memory: int) -> NoReturn:
    """One trial, in a child of its own, which ends here."""
    try:
        signal.setitimer(signal.ITIMER_PROF, seconds)  # SIGPROF ends a process that takes no notice
        with contextlib.suppress(OSError, ValueError):  # macOS: more than that is mapped already
            resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        os.nice(10)
        grammar = b"".join(iter(lambda: trial.recv(1 << 16), b"")).decode()
        trial.sendall(json.dumps(compile(grammar)).encode())
    finally:
        os._exit(0)


def main() -> None:
    sys.path.pop(0)  # this folder, whose modules aren't meant
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

    tokenizer = LLTokenizer("byte")
    limits = LLParserLimits(verbose_errors=False, max_grammar_size=200_000, step_lexer_fuel=100_000)

    def compile(grammar: str) -> str:
        matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
        if not matcher.is_error():
            matcher.compute_bitmask()
        return str(matcher.get_error()) if matcher.is_error() else ""

    with socket.socket(fileno=0) as control:
        serve(control, compile, float(sys.argv[1]), int(sys.argv[2]))


if __name__ == "__main__":
    main()
