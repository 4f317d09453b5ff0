"""Vectors as numba values: sixteen floats or sixteen ints, in as many registers as they take.

numba has no vector types, so this file makes two, `f32x16` and `i32x16`, and a handful of
operations on them, each a line or two of LLVM. A kernel in `simd.py` then reads as arithmetic:

    acc = fma(load(w, i), splat(x), acc)

Memory is named by a C-contiguous array (anything else is refused at compile time) or by a pointer
that `at` made from one, and an offset in elements. Offsets are not checked: this file and
`bundles.py` are the only places in the project that can read past an array, and the vector kernels
the only ones that use them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

from llvmlite import ir
from numba.core import types as _types
from numba.core.datamodel import models as _models
from numba.core.errors import TypingError
from numba.extending import intrinsic, register_model

from tinyllm.kernels import emit, processor
from tinyllm.kernels.emit import F16X16, F32, F32X16, I8, I32, I32X16, LANES, constant

# numba is typed in parts, differently from release to release.
types: Any = _types
models: Any = _models


class Vector(types.Type):  # type: ignore[misc]  # numba is untyped
    """The numba type of a vector; `llvm` is what it is to LLVM."""

    def __init__(self, element: str, llvm: ir.VectorType) -> None:
        self.llvm = llvm
        super().__init__(name=f"{element}x{LANES}")


f32x16 = Vector("f32", F32X16)
i32x16 = Vector("i32", I32X16)


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, fe_type: Vector) -> None:
        super().__init__(manager, fe_type, fe_type.llvm)


# --- how an operation is made -------------------------------------------------------------------

Emit = Callable[..., Any]


def operation(typer: Callable[..., Any]) -> Callable[..., Any]:
    """A function that kernels can call; `typer` gets its arguments' types, and returns an `op`."""
    return cast("Callable[..., Any]", intrinsic(prefer_literal=True)(typer))


def op(returns: types.Type, arguments: Sequence[types.Type], code: Emit) -> Any:
    """What a numba intrinsic returns: its signature and the code that builds it.

    `code(builder, *values)` gets each array argument as a pointer to its first element, and every
    other argument as its LLVM value.
    """
    for argument in arguments:
        if isinstance(argument, types.Array) and argument.layout != "C":
            raise TypingError(f"a C-contiguous array is needed, not {argument}")

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        del signature
        plain = [
            context.make_array(kind)(context, builder, value=value).data
            if isinstance(kind, types.Array)
            else value
            for kind, value in zip(arguments, values, strict=True)
        ]
        result = code(builder, *plain)
        return context.get_dummy_value() if result is None else result

    return returns(*arguments), codegen


def literal(n: Any) -> int:
    """The value of a constant that an operation is made for."""
    if not isinstance(n, types.IntegerLiteral):
        raise TypingError("the size of a bundle must be a constant")
    return int(n.literal_value)


@operation
def at(typing_context, array, offset):  # type: ignore[no-untyped-def]
    """A pointer to element `offset`: one word to pass on, where an array is a dozen."""
    del typing_context
    if not isinstance(array, types.Array):
        raise TypingError(f"a pointer is made from an array, not from {array}")
    pointer = types.CPointer(array.dtype)
    return op(pointer, [array, offset], lambda b, data, i: b.gep(data, [i]))


# --- vectors ------------------------------------------------------------------------------------

_LANE_NUMBERS = ir.Constant(I32X16, list(range(LANES)))


def stored_type(array: types.Array) -> ir.Type:
    """What a vector in memory looks like: float32, or float16 kept as uint16."""
    kind = {types.float32: F32X16, types.uint16: F16X16}.get(array.dtype)
    if kind is None:
        raise TypingError(f"vectors are read from float32 or uint16 (float16) arrays, not {array}")
    return kind


@operation
def splat(typing_context, value):  # type: ignore[no-untyped-def]
    """Sixteen copies of a float32 or an int32."""
    del typing_context
    kind = {types.float32: f32x16, types.int32: i32x16}.get(value)
    if kind is None:
        raise TypingError(f"splat takes float32 or int32, not {value}")
    return op(kind, [value], emit.splat)


@operation
def load(typing_context, array, offset):  # type: ignore[no-untyped-def]
    """array[offset : offset + 16]; a uint16 array holds float16 numbers, widened exactly."""
    del typing_context
    stored = stored_type(array)

    def code(builder: Any, data: Any, at: Any) -> Any:
        value = emit.load(builder, data, at, stored)
        return value if stored == F32X16 else processor.widen_halves(builder, value)

    return op(f32x16, [array, offset], code)


@operation
def store(typing_context, array, offset, value):  # type: ignore[no-untyped-def]
    """array[offset : offset + 16] = value; to a uint16 array as float16, to nearest even."""
    del typing_context
    stored = stored_type(array)

    def code(builder: Any, data: Any, at: Any, v: Any) -> None:
        emit.store(
            builder, v if stored == F32X16 else processor.narrow_to_halves(builder, v), data, at
        )

    return op(types.void, [array, offset, value], code)


@operation
def load_bytes(typing_context, array, offset):  # type: ignore[no-untyped-def]
    """64 bytes as sixteen ints of 4 bytes each; `offset` counts elements of any integer array."""
    del typing_context
    return op(i32x16, [array, offset], lambda b, data, at: emit.load(b, data, at, I32X16))


@operation
def load_halves(typing_context, array, offset):  # type: ignore[no-untyped-def]
    """Sixteen float16 numbers from a byte array, widened exactly."""
    del typing_context
    if array.dtype != types.uint8:
        raise TypingError(f"load_halves reads bytes, not {array}")

    def code(builder: Any, data: Any, at: Any) -> Any:
        return processor.widen_halves(builder, emit.load(builder, data, at, F16X16))

    return op(f32x16, [array, offset], code)


@operation
def prefetch(typing_context, array, offset):  # type: ignore[no-untyped-def]
    """Ask for the 64 bytes at element `offset` to be brought nearer; a hint, it never faults.

    Into the second cache: the first one's list of lines that it waits for is short, and asking it
    was no faster than not asking (1,184 ns for a page of keys and values, 790 so; Zen 4).
    """
    del typing_context

    def code(builder: Any, data: Any, at: Any) -> None:
        place = builder.bitcast(builder.gep(data, [at]), I8.as_pointer())
        emit.call(builder, "llvm.prefetch.p0", ir.VoidType(), place, I32(0), I32(2), I32(1))

    return op(types.void, [array, offset], code)


@operation
def low_bf16(typing_context, pairs):  # type: ignore[no-untyped-def]
    """The lower 16 bits of each int, a bfloat16, as float32 (exact)."""
    del typing_context
    sixteen = constant(I32X16, 16)
    return op(f32x16, [pairs], lambda b, v: b.bitcast(b.shl(v, sixteen), F32X16))


@operation
def high_bf16(typing_context, pairs):  # type: ignore[no-untyped-def]
    """The upper 16 bits of each int, a bfloat16, as float32 (exact)."""
    del typing_context
    mask = constant(I32X16, 0xFFFF0000)
    return op(f32x16, [pairs], lambda b, v: b.bitcast(b.and_(v, mask), F32X16))


@operation
def fma(typing_context, a, b, c):  # type: ignore[no-untyped-def]
    """a × b + c, rounded once."""
    del typing_context
    return op(f32x16, [a, b, c], processor.fma)


@operation
def add(typing_context, a, b):  # type: ignore[no-untyped-def]
    """a + b."""
    del typing_context
    return op(f32x16, [a, b], lambda builder, x, y: builder.fadd(x, y))


@operation
def sub(typing_context, a, b):  # type: ignore[no-untyped-def]
    """a - b."""
    del typing_context
    return op(f32x16, [a, b], lambda builder, x, y: builder.fsub(x, y))


@operation
def mul(typing_context, a, b):  # type: ignore[no-untyped-def]
    """a × b."""
    del typing_context
    return op(f32x16, [a, b], lambda builder, x, y: builder.fmul(x, y))


@operation
def div(typing_context, a, b):  # type: ignore[no-untyped-def]
    """a / b."""
    del typing_context
    return op(f32x16, [a, b], lambda builder, x, y: builder.fdiv(x, y))


@operation
def maximum(typing_context, a, b):  # type: ignore[no-untyped-def]
    """The larger of each pair; where one is NaN, b."""
    del typing_context
    return op(f32x16, [a, b], _larger)


@operation
def clip(typing_context, value, low, high):  # type: ignore[no-untyped-def]
    """Each lane kept within the float32 scalars low … high; NaN stays NaN."""
    del typing_context

    def code(builder: Any, v: Any, lowest: Any, highest: Any) -> Any:
        lowest, highest = emit.splat(builder, lowest), emit.splat(builder, highest)
        v = builder.select(builder.fcmp_ordered("<", v, lowest), lowest, v)
        return builder.select(builder.fcmp_ordered(">", v, highest), highest, v)

    return op(f32x16, [value, low, high], code)


@operation
def zero_below(typing_context, value, x, bound):  # type: ignore[no-untyped-def]
    """`value`, but 0 in lanes where x is below the float32 scalar `bound`."""
    del typing_context

    def code(builder: Any, v: Any, at: Any, low: Any) -> Any:
        below = builder.fcmp_ordered("<", at, emit.splat(builder, low))
        return builder.select(below, constant(F32X16, 0.0), v)

    return op(f32x16, [value, x, bound], code)


@operation
def keep_first(typing_context, value, count, rest):  # type: ignore[no-untyped-def]
    """The first `count` lanes of `value` (all of them from 16 on), `rest` in the others."""
    del typing_context

    def code(builder: Any, v: Any, n: Any, other: Any) -> Any:
        n = emit.splat(builder, builder.trunc(n, I32) if n.type != I32 else n)
        return builder.select(builder.icmp_signed("<", _LANE_NUMBERS, n), v, other)

    return op(f32x16, [value, count, rest], code)


@operation
def times_power_of_two(typing_context, value, shifted):  # type: ignore[no-untyped-def]
    """value × 2ⁿ, where n is the integer in the low bits of `shifted`'s mantissa.

    Adding 1.5 · 2²³ to a small number rounds it to an integer n, which is then to be found in the
    low bits; moved to the exponent's place, it multiplies by 2ⁿ.
    """
    del typing_context
    place = constant(I32X16, 23)

    def code(builder: Any, v: Any, t: Any) -> Any:
        exponent = builder.shl(builder.bitcast(t, I32X16), place)
        return builder.bitcast(builder.add(builder.bitcast(v, I32X16), exponent), F32X16)

    return op(f32x16, [value, shifted], code)


@operation
def largest_magnitude(typing_context, a, b):  # type: ignore[no-untyped-def]
    """max |x| over both vectors, float32; NaN if any is.

    Magnitudes order like their bits as integers, and NaN above all.
    """
    del typing_context
    mask = constant(I32X16, 0x7FFFFFFF)

    def code(builder: Any, x: Any, y: Any) -> Any:
        x, y = (builder.and_(builder.bitcast(v, I32X16), mask) for v in (x, y))
        larger = builder.select(builder.icmp_signed(">", x, y), x, y)
        bits = emit.call(builder, "llvm.vector.reduce.smax.v16i32", I32, larger)
        return builder.bitcast(bits, F32)

    return op(types.float32, [a, b], code)


@operation
def first_lane(typing_context, value):  # type: ignore[no-untyped-def]
    """Lane 0, float32."""
    del typing_context
    return op(types.float32, [value], lambda b, v: b.extract_element(v, I32(0)))


def _folded(builder: Any, v: Any, join: Callable[[Any, Any], Any]) -> Any:
    """All lanes joined, always as the same tree: halves onto halves."""
    width = LANES // 2
    while width:
        swap = [(lane + width) % LANES for lane in range(LANES)]
        v = join(v, builder.shuffle_vector(v, v, ir.Constant(I32X16, swap)))
        width //= 2
    return builder.extract_element(v, I32(0))


def _larger(builder: Any, x: Any, y: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", x, y), x, y)


@operation
def horizontal_max(typing_context, value):  # type: ignore[no-untyped-def]
    """The largest lane; of NaN as `maximum` has it.

    Not LLVM's own `vector.reduce.fmax`: that looks for NaN lane by lane, 130 cycles, for which
    attention waited at every page of keys.
    """
    del typing_context
    return op(types.float32, [value], lambda b, v: _folded(b, v, partial(_larger, b)))


@operation
def horizontal_sum(typing_context, value):  # type: ignore[no-untyped-def]
    """The sum of all lanes."""
    del typing_context
    return op(types.float32, [value], lambda b, v: _folded(b, v, b.fadd))


@operation
def store_int8(typing_context, value, array, offset):  # type: ignore[no-untyped-def]
    """array[offset : offset + 16] = the low byte of each lane.

    `value` is a float vector to which 1.5 · 2²³ was added: its low byte is the rounded integer.
    Returns the sixteen integers, int32.
    """
    del typing_context

    def code(builder: Any, v: Any, data: Any, at: Any) -> Any:
        narrow = builder.trunc(builder.bitcast(v, I32X16), ir.VectorType(I8, LANES))
        emit.store(builder, narrow, data, at)
        return builder.sext(narrow, I32X16)

    if array.dtype != types.int8:
        raise TypingError(f"store_int8 writes int8, not {array}")
    return op(i32x16, [value, array, offset], code)


@operation
def sum_integers(typing_context, a, b):  # type: ignore[no-untyped-def]
    """The sum of all lanes of both, int32."""
    del typing_context

    def code(builder: Any, x: Any, y: Any) -> Any:
        name = "llvm.vector.reduce.add.v16i32"
        return emit.call(builder, name, I32, builder.add(x, y))

    return op(types.int32, [a, b], code)


@operation
def whole_integers(typing_context, parts, value, rest):  # type: ignore[no-untyped-def]
    """parts · value + rest, int32; `parts` is a compile-time constant."""
    del typing_context
    factor = literal(parts)

    def code(builder: Any, _: Any, v: Any, r: Any) -> Any:
        return builder.add(builder.mul(v, constant(I32X16, factor)), r)

    return op(i32x16, [parts, value, rest], code)
