"""Machine code from disk, or else the compiler: how Python calls a kernel.

A kernel is known here by where its source stands, and called by its *entry*: a function in C's
manner that takes all arguments as words (`words.py`). If there is machine code for arguments of
these types on disk (`cache.py`), LLVM's library links it and that is all: no numba, no kernel's
source, nothing of what compiles them is imported, which would take longer than everything else that
a server does until it answers. If there is none, the source is imported and compiled (`entry.py`),
kept, and then goes the same way.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib.util
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tinyllm.kernels import beside, cache, processor
from tinyllm.kernels.being_compiled import compiling
from tinyllm.kernels.object_code import Linked, ObjectCode
from tinyllm.kernels.words import Words, described


class Kernel:
    """A kernel by its module and name. Nothing of it is loaded until it is asked for.

    With NUMBA_DISABLE_JIT=1 it is the Python function.
    """

    def __init__(self, module: str, name: str) -> None:
        self.name = name
        self._module = module
        self._linked: dict[str, Linked] = {}  # by the types of arguments

    def source(self) -> Any:
        """The function, as its module has it."""
        return getattr(importlib.import_module(self._module), self.name)

    def in_memory(self, args: Sequence[Any]) -> bool:
        """Whether arguments of these types find it loaded."""
        return described(tuple(args)) in self._linked

    def on_disk(self, args: Sequence[Any]) -> bool:
        """Whether there is a file for arguments of these types."""
        return cache.holds(self._file(described(tuple(args))))

    def _file(self, types: str) -> str:
        source = importlib.util.find_spec(self._module)
        assert source is not None and source.origin is not None
        own = Path(source.origin)
        text = b"" if own.parent == cache.HERE else own.read_bytes()  # the others are in the key
        return cache.file_name(self.name, f"{self._module} {text!r} {types}")

    def linked(self, args: Sequence[Any]) -> Linked:
        """For arguments of these types: from memory, from disk, or compiled now."""
        types = described(tuple(args))
        if types not in self._linked:
            _wait_for(self)
            name = self._file(types)
            found = cache.load(name, lambda data: Linked(ObjectCode.unpacked(data)))
            if found is None:
                # The one place where the compiler comes in.
                from tinyllm.kernels.entry import compiled

                code = compiled(self.source(), args)
                cache.save(name, code.packed())
                found = Linked(code)
            self._linked[types] = found
        return self._linked[types]

    def bind(self, varying: Sequence[Any], fixed: Sequence[Any]) -> Callable[..., Any]:
        """A function of the leading arguments; those behind them stay, and are words already.

        Args:
            varying: examples of the leading arguments.
            fixed: the others. Arrays keep their place in memory.
        """
        if not processor.JIT:
            function = self.source()
            return lambda *values: function(*values, *fixed)
        linked = self.linked((*varying, *fixed))
        words, behind = Words(varying), Words(fixed).of(fixed)
        entry, result, returns = linked.entry, linked.result, linked.returns != "none"

        def call(*values: Any) -> Any:
            out = result()
            if entry(words.of(values) + behind, ctypes.byref(out)):
                raise RuntimeError(f"the kernel {self.name} failed: its arguments don't fit")
            return out.value if returns else None

        call.keeps = (linked, fixed)  # type: ignore[attr-defined]  # what is pointed to
        return call


Calls = Mapping[Kernel, tuple[Any, ...]]
"""Kernels, each with arguments of the types that it is wanted for."""


def prepare(name: str, calls: Calls) -> None:
    """Load kernels from disk, each for its arguments, or compile them; says so if it compiles.

    `name` is for the message.
    """
    if not processor.JIT:
        return
    wanted = _wanted(calls)
    for kernel in wanted:
        _wait_for(kernel)
    known = all(kernel.on_disk(args) for kernel, args in wanted.items())
    start = time.monotonic()
    if not known:
        folder = cache.writable()
        kept = f"once: they are kept in {folder}" if folder else "and can't be kept anywhere"
        _say(f"compiling the {name} kernels for this processor, {kept}")
        compiling.append(name)
    try:
        with contextlib.nullcontext() if known else _collecting_rarely():
            for kernel, args in wanted.items():
                kernel.linked(args)
    finally:
        if not known:
            compiling.remove(name)
    if not known:
        _say(f"compiled in {time.monotonic() - start:.0f} s")


def compile_beside(calls: Calls, code: str) -> None:
    """Start a process that compiles these kernels by running `code`, unless they are on disk.

    Whoever calls one of these kernels waits until the process has ended, and finds them on disk; if
    it failed, they are compiled then.
    """
    missing = [k for k, args in _wanted(calls).items() if not k.on_disk(args)]
    if not processor.JIT or not missing or cache.writable() is None:
        return
    process = beside.start(code)
    if process is not None:
        _beside.update(dict.fromkeys(missing, process))


_beside: dict[Kernel, subprocess.Popen[bytes]] = {}  # what another process compiles, and which


def _wait_for(kernel: Kernel) -> None:
    """Until no other process is compiling it."""
    process = _beside.pop(kernel, None)
    if process is not None:
        process.wait()


def _wanted(calls: Calls) -> Calls:
    """Those that aren't in memory."""
    return {kernel: args for kernel, args in calls.items() if not kernel.in_memory(args)}


@contextlib.contextmanager
def _collecting_rarely() -> Iterator[None]:
    """numba makes millions of objects and keeps them: Python looks for garbage in vain."""
    before = gc.get_threshold()
    gc.set_threshold(100_000, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _say(text: str) -> None:
    print(f"tinyllm: {text}", file=sys.stderr, flush=True)
