"""Have LLVM optimise a kernel once, as a whole, and not each of its parts on the way there, too.

numba makes a module of machine code of every function that it meets, with copies of all that the
function calls, optimises it and translates it, and then does so again for each caller. Nobody calls
the parts of a kernel but the kernel: of them the bare LLVM text is enough, until the kernel's own
module has all of it together. This takes from numba what it does for them beyond that.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from numba.core import codegen as _codegen
from numba.core.cpu import CPUContext as _CPUContext

codegen: Any = _codegen  # numba is typed in parts
CPUContext: Any = _CPUContext
make_function: Any = importlib.import_module("numba._dynfunc").make_function


_one_at_a_time = threading.RLock()


@contextmanager
def optimised_once() -> Iterator[None]:
    """Inside, functions without a wrapper for Python are linked into their callers as they are.

    They can't be called then, and never could. One thread at a time, as numba compiles anyway.
    """
    with _one_at_a_time, _taken_over():
        yield


@contextmanager
def _taken_over() -> Iterator[None]:
    library, context = codegen.CPUCodeLibrary, CPUContext
    optimise, finalise = library._optimize_final_module, library._finalize_final_module
    first_passes = library._optimize_functions
    executable = context.get_executable

    def called_from_python(self: Any) -> bool:
        return any(
            function.name.startswith("_ZN7cpython") and not function.is_declaration
            for function in self._final_module.functions
        )

    def keep_layout(self: Any, module: Any) -> None:
        module.data_layout = self._codegen._data_layout  # its passes come again with the whole

    def optimise_whole(self: Any) -> None:
        if called_from_python(self):
            optimise(self)

    def finalise_whole(self: Any) -> None:
        if called_from_python(self):
            finalise(self)
        else:
            self._finalized = True

    def executable_of_whole(self: Any, code: Any, fndesc: Any, env: Any) -> Any:
        code._ensure_finalized()
        if called_from_python(code):
            return executable(self, code, fndesc, env)
        # As numba does it: a function object without an address.
        name = fndesc.qualname.split(".")[-1]
        return make_function(fndesc.lookup_module(), name, "a part", 0, env, (code,))

    library._optimize_functions = keep_layout
    library._optimize_final_module = optimise_whole
    library._finalize_final_module = finalise_whole
    context.get_executable = executable_of_whole
    try:
        yield
    finally:
        library._optimize_functions = first_passes
        library._optimize_final_module = optimise
        library._finalize_final_module = finalise
        context.get_executable = executable
