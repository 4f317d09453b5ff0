"""How kernels are compiled: a decorator for each kind of function, and one way to compile ahead.

Every kernel is compiled by numba once on a machine and kept on disk (`cache.py`); a later process
loads machine code in milliseconds. No fast-math anywhere: kernels meet -inf (masks), and the order
of every float sum is part of what they promise.
"""

from __future__ import annotations

import itertools
import secrets
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import numba
from numba.core.bytecode import FunctionIdentity as _FunctionIdentity

from tinyllm.kernels.being_compiled import compiling
from tinyllm.kernels.cache import KernelCache, writable
from tinyllm.kernels.once import PartCompiler
from tinyllm.kernels.processor import JIT

F = TypeVar("F", bound=Callable[..., Any])

# numba numbers what it compiles, and a function's name in machine code ends with its number. It
# counts from 1 in each process: two kernels from disk, which two processes compiled, could call
# two functions by one name, and both got the first's. No two processes count from here.
numbered: Any = _FunctionIdentity  # numba is typed in parts, differently from release to release
numbered._unique_ids = itertools.count(secrets.randbits(62))

_compile: Any = numba.njit
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
# Without reference counts, two atomic steps for every array that is passed on.
_NO_ALLOCATION = {**_OPTIONS, "_nrt": False}
_NO_WRAPPERS = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}


def kernel(function: F) -> F:
    """Compile a function that allocates nothing, and keep the machine code on disk.

    It runs without the interpreter's lock. With NUMBA_DISABLE_JIT=1 this is the Python function
    itself, here and below.
    """
    return cast(F, _kept(_compile(**_NO_ALLOCATION)(function)))


def allocating_kernel(function: F) -> F:
    """As `kernel`, for a function that makes arrays."""
    return cast(F, _kept(_compile(**_OPTIONS)(function)))


def uncached(function: F) -> F:
    """As `kernel`, but compiled as part of its callers only.

    For generators and for functions that hold compiled ones in their closure: numba can't load the
    former from a cache, and can't tell the latter apart from one process to the next.
    """
    return cast(F, _compile(**_NO_ALLOCATION)(function))


def part(function: F) -> F:
    """As `uncached`, and not callable from Python: wrappers take half of the time to compile."""
    return cast(
        F, _compile(**_NO_ALLOCATION, **_NO_WRAPPERS, pipeline_class=PartCompiler)(function)
    )


def inlined(function: F) -> F:
    """As `uncached`, and copied into its callers: for what is called thousands of times a token.

    A call hands on every array as a dozen words, and a kernel has a dozen arrays.
    """
    return cast(F, _compile(inline="always", **_NO_ALLOCATION)(function))


def _kept(compiled: Any) -> Any:
    if JIT:
        compiled._cache = KernelCache(compiled.py_func)
    return compiled


def compile_for(function: Any, name: str, args: tuple[Any, ...]) -> None:
    """Compile a kernel (or load it from disk) for arguments of these types; says so if it compiles.

    `name` is for the message.
    """
    compile_together(name, {function: args})


def compile_together(name: str, calls: Mapping[Any, tuple[Any, ...]]) -> None:
    """The same of several kernels, each with its arguments, that are told of as one."""
    if not JIT:
        return
    typeof: Any = numba.typeof
    wanted = [(f, tuple(typeof(arg) for arg in args)) for f, args in calls.items()]
    wanted = [(function, types) for function, types in wanted if types not in function.overloads]
    known = all(function._cache.holds(types) for function, types in wanted)
    start = time.monotonic()
    if not known:
        folder = writable()
        kept = f"once: they are kept in {folder}" if folder else "and can't be kept anywhere"
        _say(f"compiling the {name} kernels for this processor, {kept}")
        compiling.append(name)
    try:
        for function, types in wanted:
            function.compile(types)
    finally:
        if not known:
            compiling.remove(name)
    if not known:
        _say(f"compiled in {time.monotonic() - start:.0f} s")


def _say(text: str) -> None:
    print(f"tinyllm: {text}", file=sys.stderr, flush=True)
