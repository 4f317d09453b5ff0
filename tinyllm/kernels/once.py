"""Have LLVM optimise a kernel once, as a whole, and not each of its parts on the way there, too.

numba makes a module of machine code of every function that it meets, with copies of all that the
function calls, optimises it and translates it, and then does so again for each caller. Nobody calls
the parts of a kernel but the kernel: of them the bare LLVM text is enough, until the kernel's own
module has all of it together.

numba lets a function choose the passes that compile it (`pipeline_class`; its manual, "Customizing
the Compiler"). Those of a part are numba's own, but for the last one, and for what it doesn't need.
"""

from __future__ import annotations

import importlib
from typing import Any

from numba.core import codegen as _codegen
from numba.core import compiler as _compiler
from numba.core import typed_passes as _typed_passes
from numba.core import untyped_passes as _untyped_passes
from numba.core.compiler_machinery import register_pass as _register_pass

codegen: Any = _codegen  # numba is typed in parts
compiler: Any = _compiler
typed_passes: Any = _typed_passes
untyped_passes: Any = _untyped_passes
register_pass: Any = _register_pass
make_function: Any = importlib.import_module("numba._dynfunc").make_function


class PartLibrary(codegen.JITCodeLibrary):  # type: ignore[misc]
    """A part's own LLVM text; it never becomes machine code, and holds nothing that it calls."""

    def _optimize_functions(self, module: Any) -> None:
        module.data_layout = self._codegen._data_layout

    def finalize(self) -> None:
        for library in self._linking_libraries:
            self._reload_init.update(library._reload_init)
        self._finalized = True

    def with_all_it_calls(self) -> list[Any]:
        """What a kernel needs to link in, each once."""
        return list(dict.fromkeys([self, *self._linking_libraries]))


@register_pass(mutates_CFG=True, analysis_only=False)
class LowerPart(typed_passes.NativeLowering):  # type: ignore[misc]
    """From numba's typed code to LLVM text, without an address to call."""

    _name = "lower_part"

    def run_pass(self, state: Any) -> bool:
        context = state.targetctx
        state.library = PartLibrary(context.codegen(), state.func_id.func_qualname)
        state.library.enable_object_caching()
        state.flags.no_compile = True
        super().run_pass(state)
        state.flags.no_compile = False
        lowered = state["cr"]
        # As numba does it for what it compiles, but for the address: 0.
        described = lowered.fndesc
        name = described.qualname.split(".")[-1]
        function = make_function(
            described.lookup_module(), name, "a part of a kernel", 0, lowered.env, (state.library,)
        )
        context.insert_user_function(function, described, state.library.with_all_it_calls())
        state.reload_init.extend(state.library._reload_init)
        state["cr"] = lowered._replace(cfunc=function)
        return True


# Parts have neither functions within functions nor expressions of whole arrays: looking for them
# takes a twentieth of the time.
NEEDLESS = (untyped_passes.InlineClosureLikes, typed_passes.NopythonRewrites)


class PartCompiler(compiler.CompilerBase):  # type: ignore[misc]
    """numba's passes for a part of a kernel."""

    def define_pipelines(self) -> list[Any]:
        passes = compiler.DefaultPassBuilder.define_nopython_pipeline(self.state, "part")
        return [without_needless(passes, LowerPart)]


def without_needless(passes: Any, lowering: Any) -> Any:
    """numba's passes with this one as the last, and without those that kernels don't need."""
    passes.passes = [
        (lowering if kind is typed_passes.NativeLowering else kind, told)
        for kind, told in passes.passes
        if kind not in NEEDLESS
    ]
    passes.finalize()
    return passes
