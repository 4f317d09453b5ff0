"""Grammars that never compile are stopped, and so are those that nobody awaits any more."""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from tinyllm.api.constraints.grammar import Grammars, TooComplex, json_grammar
from tinyllm.api.constraints.trial import GivenUp, Trials, _Helper
from tinyllm.api.constraints.trial import TooComplex as Stopped
from tinyllm.tokenizer import Tokenizer


def intersected(n: int) -> dict[str, Any]:
    """A string that fits n patterns at once: states multiply."""
    patterns = [{"pattern": f"^.*a.{{{i}}}$"} for i in range(1, n + 1)]
    return {"type": "object", "properties": {"a": {"type": "string", "allOf": patterns}}}


def test_what_compiles_compiles_and_what_is_wrong_is_said() -> None:
    trials = Trials()
    assert trials.compile(json_grammar({"type": "object"})) == ""
    assert "unknown" in trials.compile("start: missing").lower()
    assert trials.compile(json_grammar({"type": "string"})) == ""  # by the same process


def test_trials_run_beside_each_other() -> None:
    """One that takes for ever doesn't hold up the others, nor keep their sockets open."""
    trials = Trials(seconds=60)
    over = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        endless = pool.submit(trials.compile, json_grammar(intersected(30)), over.is_set)
        time.sleep(0.2)
        assert trials.compile(json_grammar({"type": "string"})) == ""
        assert not endless.done()
        over.set()
        with pytest.raises(GivenUp):
            endless.result()


REFUSES = """
import socket
from tinyllm.api.constraints import trial_worker
def refuse(*_):
    raise ValueError("current limit exceeds maximum limit")
trial_worker.resource.setrlimit = refuse
trial_worker.run(socket.socket(fileno=0), lambda grammar: "read " + grammar, 5, 1 << 30)
"""


def test_a_system_that_holds_nobody_to_an_address_space() -> None:
    """As macOS, which refuses a limit below what a process has mapped already."""
    ours, theirs = socket.socketpair()
    with ours, theirs, subprocess.Popen([sys.executable, "-c", REFUSES], stdin=theirs.fileno()):
        theirs.close()
        ours.sendall(b"this")
        ours.shutdown(socket.SHUT_WR)
        assert ours.recv(100) == b'"read this"'


def test_descriptors_beyond_a_thousand() -> None:
    """A server of many connections has them, and select() takes none above 1,023."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 1200:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(1200, hard), hard))
    try:
        with contextlib.ExitStack() as held:
            while held.enter_context(Path(os.devnull).open()).fileno() < 1030:
                pass
            assert Trials().compile(json_grammar({"type": "string"})) == ""
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_helper_that_was_ended_is_started_again() -> None:
    trials = Trials()
    assert trials.compile(json_grammar({"type": "string"})) == ""
    assert trials._helper is not None
    trials._helper._process.kill()
    trials._helper._process.wait()
    assert trials.compile(json_grammar({"type": "string"})) == ""


def test_nothing_is_left_running() -> None:
    trials = Trials(seconds=60)
    trials.start()
    assert trials._helper is not None
    helper = psutil.Process(trials._helper._process.pid)
    with pytest.raises(GivenUp):  # as soon as its process is there
        trials.compile(json_grammar(intersected(30)), lambda: bool(helper.children()))
    end = time.monotonic() + 20
    while (running := helper.children()) and time.monotonic() < end:
        time.sleep(0.01)
    assert running == []
    del trials
    gc.collect()
    assert not helper.is_running()


def test_a_helper_takes_its_trials_along() -> None:
    """Also one that still waits for its grammar. It hangs up when its process is gone."""
    helper = _Helper(60, 1 << 30)
    process = psutil.Process(helper._process.pid)
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            socket.send_fds(helper._control, [b"."], [theirs.fileno()])
        while not process.children():
            time.sleep(0.01)
        helper._finalizer()
        ours.settimeout(20)
        assert ours.recv(1) == b""


@pytest.mark.parametrize(("seconds", "memory"), [(0.3, 1 << 30), (20, 200 << 20)])
def test_what_never_ends_is_ended(seconds: float, memory: int) -> None:
    trials = Trials(seconds, memory)
    with pytest.raises(Stopped):
        trials.compile(json_grammar(intersected(30)))
    assert trials.compile(json_grammar({"type": "string"})) == ""


def test_a_schema_that_never_compiles_is_refused(tokenizer: Tokenizer) -> None:
    grammars = Grammars(tokenizer, tokenizer.vocab_size, tokenizer.eos_ids)
    grammars._trials = Trials(seconds=0.3)
    with pytest.raises(TooComplex, match="takes more than"):
        grammars.compile(json_grammar(intersected(30)))


def test_nobody_waits_any_more() -> None:
    trials, begin = Trials(seconds=60), time.monotonic()
    with pytest.raises(GivenUp):
        trials.compile(json_grammar(intersected(30)), lambda: time.monotonic() > begin + 0.5)
