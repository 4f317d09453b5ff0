"""numba's dispatchers with our files behind them: for kernels that are called as functions.

Tests, tools and notebooks call single kernels with whatever arguments they have. numba's dispatcher
finds the machine code for those, and asks here for what is on disk; its own cache is keyed by one
function's file alone, so a change in a file that it calls would go unseen, and a damaged file ends
the program. What a server runs goes another, quicker way: `machine_code.py`.
"""

from __future__ import annotations

import contextlib
import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba.core import serialize as _serialize
from numba.core.compiler import CompileResult as _CompileResult

from tinyllm.kernels import cache

serialize: Any = _serialize  # numba is typed in parts, differently from release to release
CompileResult: Any = _CompileResult

PLAIN = (int, float, str, bool, type(None))


class KernelCache:
    """What numba's dispatcher asks for one function's machine code, by types of arguments."""

    def __init__(self, function: Callable[..., Any]) -> None:
        code = function.__code__
        cells = [cell.cell_contents for cell in function.__closure__ or ()]
        if not all(isinstance(value, PLAIN) for value in cells):
            raise TypeError(f"{function.__qualname__} holds more than numbers: use `uncached`")
        own = Path(code.co_filename)
        text = b"" if own.parent == cache.HERE else own.read_bytes()  # the others are in the key
        self._name = function.__name__
        self._of = repr((function.__module__, function.__qualname__, code.co_firstlineno, cells))
        self._of += hashlib.sha256(text).hexdigest()

    def file_name(self, signature: Any) -> str:
        """The file of this function for these types."""
        return cache.file_name(self._name, f"{self._of} {signature}")

    def load_overload(self, signature: Any, target_context: Any) -> Any:
        """The compiled function, or None: then it is compiled.

        numba has all that it can compile at hand first (`refresh`), which takes longer than loading
        does; machine code needs nothing of that.
        """

        def rebuilt(payload: bytes) -> Any:
            return CompileResult._rebuild(target_context, *pickle.loads(payload))

        return cache.load(self.file_name(signature), rebuilt)

    def save_overload(self, signature: Any, result: Any) -> None:
        """Keep it, where there is a place."""
        if not result.library.has_dynamic_globals:
            with contextlib.suppress(OSError):
                cache.save(self.file_name(signature), serialize.dumps(result._reduce()))
