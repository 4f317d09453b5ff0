"""How kernels are compiled: a decorator for each kind of function, and what numba is told.

Every kernel is compiled by numba once on a machine and kept on disk (`cache.py`). What a server
calls is then called without numba (`machine_code.py`), and this module isn't imported any more;
tests and tools call what is decorated here. No fast-math anywhere: kernels meet -inf (masks), and
the order of every float sum is part of what they promise.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import numba
from numba.core.bytecode import FunctionIdentity as _FunctionIdentity
from numba.core.types import unliteral as _unliteral

from tinyllm.kernels import processor
from tinyllm.kernels.dispatchers import KernelCache
from tinyllm.kernels.once import PartCompiler

F = TypeVar("F", bound=Callable[..., Any])
# numba numbers what it compiles, and a function's name in machine code ends with its number. It
# counts from 1 in each process: two kernels from disk, which two processes compiled, could call
# two functions by one name, and both got the first's. No two processes count from here.
numbered: Any = _FunctionIdentity  # numba is typed in parts, differently from release to release
numbered._unique_ids = itertools.count(secrets.randbits(62))

config: Any = numba.config
config.CPU_NAME, config.CPU_FEATURES = processor.target()[1:]
_compile: Any = numba.njit
unliteral: Any = _unliteral
# Without reference counts (`_nrt`), two atomic steps for every array that is passed on.
OPTIONS: Any = {"nogil": True, "error_model": "numpy", "_nrt": False}
PART: Any = {
    **OPTIONS,
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
    "forceinline": False,  # else it has its first caller's
    "pipeline_class": PartCompiler,
}
INLINED: Any = {**PART, "forceinline": True}


def kernel(function: F) -> F:
    """Compile a function, which may allocate nothing, and keep the machine code on disk.

    It runs without the interpreter's lock. Where another kernel calls it, it is a part of that one.
    With NUMBA_DISABLE_JIT=1 this is the Python function itself, here and below.
    """
    return cast(F, _kept(_called(function, _as_part(function, PART))))


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
    made = _compile(**OPTIONS)(function)
    if processor.JIT:
        made.get_call_template = inside.get_call_template
        made.get_overload = inside.get_overload
    return made


def _as_part(function: Any, options: Mapping[str, Any]) -> Any:
    """Compiled once for integers, where numba would do so again for each constant handed on."""
    made = _compile(**options)(function)
    if processor.JIT:
        template = made.get_call_template
        made.get_call_template = lambda args, kws: template(tuple(map(unliteral, args)), kws)
    return made


def _kept(compiled: Any) -> Any:
    if processor.JIT:
        compiled._cache = KernelCache(compiled.py_func)
    return compiled
