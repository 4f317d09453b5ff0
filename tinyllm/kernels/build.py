"""How kernels are compiled: a decorator for each kind of function, and one way to compile ahead.

Every kernel is compiled by numba once on a machine and kept on disk (`cache.py`); a later process
loads machine code in milliseconds. No fast-math anywhere: kernels meet -inf (masks), and the order
of every float sum is part of what they promise.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import itertools
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar, cast

import numba
from numba.core.bytecode import FunctionIdentity as _FunctionIdentity
from numba.core.types import unliteral as _unliteral

from tinyllm.kernels.being_compiled import compiling
from tinyllm.kernels.cache import KernelCache, writable
from tinyllm.kernels.once import PartCompiler
from tinyllm.kernels.processor import JIT

F = TypeVar("F", bound=Callable[..., Any])
Calls = Mapping[Any, tuple[Any, ...]]
"""Kernels, each with arguments of the types that it is wanted for."""

# numba numbers what it compiles, and a function's name in machine code ends with its number. It
# counts from 1 in each process: two kernels from disk, which two processes compiled, could call
# two functions by one name, and both got the first's. No two processes count from here.
numbered: Any = _FunctionIdentity  # numba is typed in parts, differently from release to release
numbered._unique_ids = itertools.count(secrets.randbits(62))

_compile: Any = numba.njit
unliteral: Any = _unliteral
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
# Without reference counts, two atomic steps for every array that is passed on.
_NO_ALLOCATION = {**_OPTIONS, "_nrt": False}
PART: Any = {
    **_NO_ALLOCATION,
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
    "pipeline_class": PartCompiler,
}
INLINED: Any = {**PART, "forceinline": True}


def kernel(function: F) -> F:
    """Compile a function that allocates nothing, and keep the machine code on disk.

    It runs without the interpreter's lock. Where another kernel calls it, it is a part of that one.
    With NUMBA_DISABLE_JIT=1 this is the Python function itself, here and below.
    """
    return cast(F, _kept(_called(function, _as_part(function, PART)), allocates=False))


def allocating_kernel(function: F) -> F:
    """As `kernel`, for a function that makes arrays; others call it as it is."""
    return cast(F, _kept(_compile(**_OPTIONS)(function), allocates=True))


def uncached(function: F) -> F:
    """As `kernel`, but compiled anew in every process that calls it from Python.

    For functions that hold compiled ones in their closure: numba can't tell those apart from one
    process to the next.
    """
    return cast(F, _called(function, _as_part(function, PART)))


def part(function: F) -> F:
    """Compiled as part of its callers only: wrappers for Python take half of the time."""
    return cast(F, _as_part(function, PART))


def inlined(function: F) -> F:
    """As `uncached`, and copied into its callers: for what is called thousands of times a token.

    A call hands on every array as a dozen words, and a kernel has a dozen arrays.
    """
    return cast(F, _called(function, _as_part(function, INLINED)))


def _called(function: Any, inside: Any) -> Any:
    """Compiled for Python's calls; what other kernels call is `inside`."""
    made = _compile(**_NO_ALLOCATION)(function)
    if JIT:
        made.get_call_template = inside.get_call_template
        made.get_overload = inside.get_overload
    return made


def _as_part(function: Any, options: Mapping[str, Any]) -> Any:
    """Compiled once for integers, where numba would do so again for each constant handed on."""
    made = _compile(**options)(function)
    if JIT:
        template = made.get_call_template
        made.get_call_template = lambda args, kws: template(tuple(map(unliteral, args)), kws)
    return made


def _kept(compiled: Any, allocates: bool) -> Any:
    if JIT:
        compiled._cache = KernelCache(compiled.py_func, allocates)
    return compiled


def compile_for(function: Any, name: str, args: tuple[Any, ...]) -> None:
    """Compile a kernel (or load it from disk) for arguments of these types; says so if it compiles.

    `name` is for the message.
    """
    compile_together(name, {function: args})


def compile_together(name: str, calls: Calls) -> None:
    """The same of several kernels, each with its arguments, that are told of as one."""
    if not JIT:
        return
    wanted = _wanted(calls)
    known = _are_kept(wanted)
    start = time.monotonic()
    if not known:
        folder = writable()
        kept = f"once: they are kept in {folder}" if folder else "and can't be kept anywhere"
        _say(f"compiling the {name} kernels for this processor, {kept}")
        compiling.append(name)
    try:
        with contextlib.nullcontext() if known else _collecting_rarely():
            for function, types in wanted:
                function.compile(types)
    finally:
        if not known:
            compiling.remove(name)
    if not known:
        _say(f"compiled in {time.monotonic() - start:.0f} s")


def compile_beside(calls: Calls, code: str) -> Callable[[], None]:
    """Start a process that compiles these kernels by running `code`, unless they are on disk.

    numba compiles on one core, whatever the threads: its typing and lowering are Python's work, and
    LLVM's library lets one thread in at a time. What that process compiles lies on disk afterwards.

    Returns:
        What waits until it is done. If it fails, the kernels are compiled when they are called.
    """
    if not JIT or _are_kept(_wanted(calls)) or writable() is None:
        return lambda: None
    paths = os.pathsep.join(path or "." for path in sys.path)
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": paths},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,  # where kernels are kept is told once, by this process
    )
    atexit.register(process.kill)

    def wait() -> None:
        process.wait()
        atexit.unregister(process.kill)

    return wait


Wanted = list[tuple[Any, tuple[Any, ...]]]


def _wanted(calls: Calls) -> Wanted:
    """Kernels, each with its arguments' types, that aren't in memory."""
    typeof: Any = numba.typeof
    typed = [(function, tuple(typeof(arg) for arg in args)) for function, args in calls.items()]
    return [(function, types) for function, types in typed if types not in function.overloads]


def _are_kept(wanted: Wanted) -> bool:
    return all(function._cache.holds(types) for function, types in wanted)


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
