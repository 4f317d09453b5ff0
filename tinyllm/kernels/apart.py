"""A kernel's largest parts, each an object file of its own: another process compiles those.

numba compiles on one core, whatever the threads: its typing and lowering are Python's work, and
LLVM's library lets one thread in at a time. So where a kernel calls a part that stands apart, the
compiler notes the name of a function in machine code, asks another process for it, and goes on;
what both made is linked together (`object_code.py`). The two agree on the arguments, since their
types are in the name. Such a call takes what any call does: it is for parts that are called a few
times a layer, not a few thousand times.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import inspect
import pickle
import subprocess
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar, cast

from numba.core import cgutils as _cgutils
from numba.core import types as _types
from numba.extending import intrinsic

from tinyllm.kernels import beside
from tinyllm.kernels.cores import default_threads
from tinyllm.kernels.processor import JIT

cgutils: Any = _cgutils  # numba is typed in parts
types: Any = _types

F = TypeVar("F", bound=Callable[..., None])


class Part(NamedTuple):
    """A function that stands apart, for arguments of these types of numba's."""

    module: str
    name: str
    types: tuple[Any, ...]

    @property
    def symbol(self) -> str:
        """Its name in machine code."""
        made_of = repr((self.module, self.name, tuple(map(str, self.types))))
        return f"{self.name}_{hashlib.sha256(made_of.encode()).hexdigest()[:24]}"

    @property
    def function(self) -> Callable[..., None]:
        """As it is written."""
        made = getattr(importlib.import_module(self.module), self.name)
        return cast("Callable[..., None]", made.py_func)


known: dict[str, Part] = {}
"""All that kernels of this process call, by symbol. numba asks for the types of a call once."""


def apart(function: F) -> F:
    """Compiled apart from the kernels that call it, by position; it returns nothing.

    With NUMBA_DISABLE_JIT=1 this is the Python function itself.
    """
    if not JIT:
        return function

    def typer(typing_context: Any, *arguments: Any) -> Any:
        del typing_context
        signature = types.none(*map(types.unliteral, arguments))
        part = Part(function.__module__, function.__name__, signature.args)
        known[part.symbol] = part
        for asked in _asked:
            asked.add(part)

        def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            kind = context.call_conv.get_function_type(types.none, signature.args)
            callee = cgutils.get_or_insert_function(builder.module, kind, part.symbol)
            status, _ = context.call_conv.call_function(
                builder, callee, types.none, signature.args, values
            )
            with cgutils.if_unlikely(builder, status.is_error):
                context.call_conv.return_status_propagate(builder, status)
            return context.get_dummy_value()

        return signature, code

    parameters = inspect.signature(function).parameters.values()
    first = inspect.Parameter("typing_context", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    typer.__signature__ = inspect.Signature([first, *parameters])  # type: ignore[attr-defined]
    made: Any = intrinsic(typer)
    made.py_func = function
    return cast(F, made)


class Asked:
    """The parts that a kernel calls, and the process that compiles them meanwhile.

    Args:
        code: what the process runs. It reads parts, pickled, until there are no more, and then
            writes what it made of them.
    """

    def __init__(self, code: str) -> None:
        self._code = code
        self._process: subprocess.Popen[bytes] | None = None

    def add(self, part: Part) -> None:
        """Ask for a part."""
        if self._process is None and default_threads()[0] > 1:
            self._process = beside.start(self._code, subprocess.PIPE, subprocess.PIPE)
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError):  # it has ended: then there is no answer
                pickle.dump(part, self._process.stdin)
                self._process.stdin.flush()

    def answers(self) -> Any:
        """What the process made of them, by symbol; nothing if it failed, or there is none."""
        if self._process is not None:
            with contextlib.suppress(OSError, EOFError, pickle.UnpicklingError):
                return pickle.loads(self._process.communicate()[0])
        return {}

    def close(self) -> None:
        """The process has nothing to do any more."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()


_asked: list[Asked] = []  # by those who compile now: one, since numba compiles one thing at a time


@contextlib.contextmanager
def asking(code: str) -> Iterator[Asked]:
    """What is compiled within asks for its parts here; `code` as for `Asked`."""
    asked = Asked(code)
    _asked.append(asked)
    try:
        yield asked
    finally:
        _asked.remove(asked)
        asked.close()
