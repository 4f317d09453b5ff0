"""A kernel's entry, and its machine code as an object file: what `machine_code.py` keeps and calls.

The entry is a function in C's manner around the kernel. It takes the arguments as words, in the
order of `words.py`, and puts numba's values of them together again: for an array its strides, which
follow from its shape; for a NamedTuple its fields. It is compiled with the kernel as one module,
and stands for all that numba would make to call the kernel from Python.
"""

from __future__ import annotations

import contextlib
import pickle
import sys
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

from tinyllm.kernels.apart import Part, asking, known
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


class ObjectLibrary(codegen.JITCodeLibrary):  # type: ignore[misc]
    """A kernel and its entry, up to an object file: numba's own engine never runs it."""

    renamed: tuple[str, str] | None = None  # a function, and what others call it

    def _finalize_final_module(self) -> None:
        self._verify_declare_only_symbols()
        if self.renamed is not None:
            before, after = self.renamed
            self._final_module.get_function(before).name = after
        self.object_code = self._codegen._tm.emit_object(self._final_module)
        functions = self._final_module.functions
        outside = [f.name for f in functions if f.is_declaration]
        self.calls = [name for name in outside if not name.startswith("llvm.")]
        self._finalized = True


class LowerToObject(typed_passes.NativeLowering):  # type: ignore[misc]
    """From numba's typed code to an object file, for either of those who may call it."""

    def run_pass(self, state: Any) -> bool:
        state.library = ObjectLibrary(state.targetctx.codegen(), state.func_id.func_qualname)
        state.flags.no_compile = True
        super().run_pass(state)
        self.open_to_callers(state, state["cr"].fndesc)
        state.library.finalize()
        return True

    def open_to_callers(self, state: Any, lowered: Any) -> None:
        """Make it callable; `lowered` is numba's description of the function as it is in LLVM."""
        raise NotImplementedError


@register_pass(mutates_CFG=True, analysis_only=False)
class LowerWithEntry(LowerToObject):
    """For Python, which calls a kernel by its entry."""

    _name = "lower_with_entry"

    def open_to_callers(self, state: Any, lowered: Any) -> None:
        add_entry(state.targetctx, state.library, lowered)


class EntryCompiler(compiler.CompilerBase):  # type: ignore[misc]
    """numba's passes, with the entry made in the last one."""

    def define_pipelines(self) -> list[Any]:
        passes = compiler.DefaultPassBuilder.define_nopython_pipeline(self.state, "entry")
        return [without_needless(passes, LowerWithEntry)]


@register_pass(mutates_CFG=True, analysis_only=False)
class LowerApart(LowerToObject):
    """For kernels, which call a part that stands apart by its symbol and numba's convention."""

    _name = "lower_apart"

    def open_to_callers(self, state: Any, lowered: Any) -> None:
        function = state.func_id.func
        part = Part(function.__module__, function.__name__, tuple(state.args))
        state.library.renamed = lowered.llvm_func_name, part.symbol


class ApartCompiler(compiler.CompilerBase):  # type: ignore[misc]
    """numba's passes for a part that stands apart."""

    def define_pipelines(self) -> list[Any]:
        passes = compiler.DefaultPassBuilder.define_nopython_pipeline(self.state, "apart")
        return [without_needless(passes, LowerApart)]


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
    with global_compiler_lock, asking(ANSWER) as asked:
        library, returns = _object(kernel.py_func, tuple(map(_typeof, args)), EntryCompiler)
        _made.update(asked.answers())
        symbols = known.keys() & library.calls
        for symbol in symbols - _made.keys():
            _made[symbol] = compiled_part(known[symbol])
    if returns not in RESULTS:
        raise TypeError(f"{kernel.py_func.__name__} gives {returns}: it needs numba to run")
    parts = [_made[symbol] for symbol in sorted(symbols)]
    calls = {*library.calls, *(name for part in parts for name in part.calls)} - symbols
    objects = [library.object_code, *(data for part in parts for data in part.objects)]
    return ObjectCode(returns, sorted(calls), objects)


_made: dict[str, ObjectCode] = {}  # parts that stand apart, for the next kernel that calls them


def answer() -> None:
    """What the process beside does: compile parts until there are no more, and hand them over."""
    made = {}
    with contextlib.suppress(EOFError):
        while True:
            part = pickle.load(sys.stdin.buffer)
            if part.symbol not in made:
                made[part.symbol] = compiled_part(part)
    sys.stdout.buffer.write(pickle.dumps(made))


ANSWER = f"from {__name__} import answer; answer()"


def compiled_part(part: Part) -> ObjectCode:
    """The machine code of a part that stands apart."""
    with global_compiler_lock:
        library, returns = _object(part.function, part.types, ApartCompiler)
    return ObjectCode(returns, library.calls, [library.object_code])


def _object(function: Any, kinds: tuple[Any, ...], passes: Any) -> tuple[Any, str]:
    """The object file of a function, in its library, and numba's name of what it returns."""
    wrapped = _jit(
        **OPTIONS, no_cpython_wrapper=True, no_cfunc_wrapper=True, pipeline_class=passes
    )(function)
    made = wrapped._compiler.compile(kinds, None)
    strange = [name for name in made.library.calls if name.startswith(("numba_", "NRT_", "Py"))]
    if strange:
        raise TypeError(f"{function.__name__} calls {', '.join(strange)}: it needs numba to run")
    return made.library, str(made.signature.return_type)
