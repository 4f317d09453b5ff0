"""A kernel's entry, and its machine code as an object file: what `machine_code.py` keeps and calls.

The entry is a function in C's manner around the kernel. It takes the arguments as words, in the
order of `words.py`, and puts numba's values of them together again: for an array its strides, which
follow from its shape; for a NamedTuple its fields. It is compiled with the kernel as one module,
and stands for all that numba would make to call the kernel from Python.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numba
from llvmlite import ir
from numba.core import cgutils as _cgutils
from numba.core import codegen as _codegen
from numba.core import compiler as _compiler
from numba.core import typed_passes as _typed_passes
from numba.core import types as _types
from numba.core.compiler_lock import global_compiler_lock as _global_compiler_lock
from numba.core.compiler_machinery import register_pass as _register_pass
from numba.np import arrayobj as _arrayobj

from tinyllm.kernels.build import OPTIONS
from tinyllm.kernels.object_code import ENTRY, RESULTS, ObjectCode
from tinyllm.kernels.once import without_needless

cgutils: Any = _cgutils  # numba is typed in parts
codegen: Any = _codegen
compiler: Any = _compiler
typed_passes: Any = _typed_passes
types: Any = _types
global_compiler_lock: Any = _global_compiler_lock
register_pass: Any = _register_pass
arrayobj: Any = _arrayobj
_jit: Any = numba.njit
_typeof: Any = numba.typeof

I32, I64 = ir.IntType(32), ir.IntType(64)


class EntryLibrary(codegen.JITCodeLibrary):  # type: ignore[misc]
    """A kernel and its entry, up to an object file: numba's own engine never runs it."""

    def _finalize_final_module(self) -> None:
        self._verify_declare_only_symbols()
        self.object_code = self._codegen._tm.emit_object(self._final_module)
        functions = self._final_module.functions
        outside = [f.name for f in functions if f.is_declaration]
        self.calls = [name for name in outside if not name.startswith("llvm.")]
        self._finalized = True


@register_pass(mutates_CFG=True, analysis_only=False)
class LowerWithEntry(typed_passes.NativeLowering):  # type: ignore[misc]
    """From numba's typed code to an object file."""

    _name = "lower_with_entry"

    def run_pass(self, state: Any) -> bool:
        context = state.targetctx
        state.library = EntryLibrary(context.codegen(), state.func_id.func_qualname)
        state.flags.no_compile = True
        super().run_pass(state)
        add_entry(context, state.library, state["cr"].fndesc)
        state.library.finalize()
        return True


class EntryCompiler(compiler.CompilerBase):  # type: ignore[misc]
    """numba's passes, with the entry made in the last one."""

    def define_pipelines(self) -> list[Any]:
        passes = compiler.DefaultPassBuilder.define_nopython_pipeline(self.state, "entry")
        return [without_needless(passes, LowerWithEntry)]


def add_entry(context: Any, library: Any, kernel: Any) -> None:
    """Add the entry to a kernel's library; `kernel` is numba's description of it."""
    module = context.create_module("entry")
    kind = context.call_conv.get_function_type(kernel.restype, kernel.argtypes)
    callee = ir.Function(module, kind, kernel.llvm_func_name)
    pointer = I64.as_pointer()
    entry = ir.Function(module, ir.FunctionType(I32, [pointer, pointer]), ENTRY)
    builder = ir.IRBuilder(entry.append_basic_block())
    words = Reader(builder, entry.args[0])
    values = [rebuilt(context, builder, kind, words) for kind in kernel.argtypes]
    status, result = context.call_conv.call_function(
        builder, callee, kernel.restype, kernel.argtypes, values
    )
    if kernel.restype != types.none:
        builder.store(result, builder.bitcast(entry.args[1], result.type.as_pointer()))
    builder.ret(status.code)
    library.add_ir_module(module)


class Reader:
    """Words, one after the other."""

    def __init__(self, builder: Any, start: Any) -> None:
        self._builder, self._start = builder, start
        self._read = 0

    def next(self, kind: Any = I64) -> Any:
        """The next word, as LLVM's number of this type: its lowest bits."""
        place = self._builder.gep(self._start, [I32(self._read)])
        self._read += 1
        return self._builder.load(self._builder.bitcast(place, kind.as_pointer()))


def rebuilt(context: Any, builder: Any, kind: Any, words: Reader) -> Any:
    """The value of an argument of numba's type `kind`, from its words."""
    if isinstance(kind, types.NoneType):
        return context.get_dummy_value()
    if isinstance(kind, types.BaseTuple):
        values = [rebuilt(context, builder, field, words) for field in kind.types]
        return context.make_tuple(builder, kind, values)
    if isinstance(kind, types.Array):
        return _array(context, builder, kind, words)
    if isinstance(kind, types.Boolean):
        return builder.trunc(words.next(ir.IntType(8)), ir.IntType(1))
    return words.next(context.get_value_type(kind))


def _array(context: Any, builder: Any, kind: Any, words: Reader) -> Any:
    array = context.make_array(kind)(context, builder)
    data = builder.inttoptr(words.next(), array.data.type)
    shape = [words.next() for _ in range(kind.ndim)]
    itemsize = context.get_abi_sizeof(context.get_data_type(kind.dtype))
    strides = [I64(itemsize)]
    for size in reversed(shape[1:]):
        strides.insert(0, builder.mul(strides[0], size))
    arrayobj.populate_array(
        array, data=data, shape=shape, strides=strides, itemsize=I64(itemsize), meminfo=None
    )
    return array._getvalue()


def compiled(kernel: Any, args: Sequence[Any]) -> ObjectCode:
    """The machine code of a kernel, as its module has it, for arguments of these types.

    Raises:
        TypeError: it calls what only numba has, or gives something else than a number.
    """
    wrapped = _jit(
        **OPTIONS,
        no_cpython_wrapper=True,
        no_cfunc_wrapper=True,
        pipeline_class=EntryCompiler,
    )(kernel.py_func)
    with global_compiler_lock:
        made = wrapped._compiler.compile(tuple(map(_typeof, args)), None)
    library, returns = made.library, str(made.signature.return_type)
    strange = [name for name in library.calls if name.startswith(("numba_", "NRT_", "Py"))]
    if strange or returns not in RESULTS:
        what = f"calls {', '.join(strange)}" if strange else f"gives {returns}"
        raise TypeError(f"{wrapped.__name__} {what}: it needs numba to run")
    return ObjectCode(returns, library.calls, library.object_code)
