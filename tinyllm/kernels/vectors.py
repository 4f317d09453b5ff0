"""Vectors as numba values: sixteen floats or sixteen ints in one 512-bit register.

numba has no vector types, so this file makes two, `f32x16` and `i32x16`, and a handful of
operations on them, each a line or two of LLVM. A kernel in `simd.py` then reads as arithmetic:

    acc = fma(load(w, i), splat(x), acc)

The operations whose name ends in `_each` do the same for a *bundle*: a tuple of N vectors, one per
token of a tile. LLVM keeps a bundle in N registers, so a bundle is the block of accumulators of a
register-blocked matrix product. What differs by token is read from memory, token i's operand
`stride` elements behind that of token i - 1.

Memory is named by a C-contiguous array (anything else is refused at compile time) or by a pointer
that `at` made from one, and an offset in elements. Offsets are not checked: this is the one place
in the project that can read past an array, and `simd.py` is the only file that uses it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

from llvmlite import ir
from numba.core import cgutils as _cgutils
from numba.core import types as _types
from numba.core.datamodel import models as _models
from numba.core.errors import TypingError
from numba.extending import intrinsic, register_model

# numba is typed in parts, differently from release to release.
types: Any = _types
cgutils: Any = _cgutils
models: Any = _models

LANES = 16

_F32, _I32, _I16 = ir.FloatType(), ir.IntType(32), ir.IntType(16)
_F32X16, _I32X16 = ir.VectorType(_F32, LANES), ir.VectorType(_I32, LANES)
_F16X16 = ir.VectorType(ir.HalfType(), LANES)


class _BFloat(ir.Type):  # type: ignore[misc]  # llvmlite has no name for it
    def _to_string(self) -> str:
        return "bfloat"


_BF16X32 = ir.VectorType(_BFloat(), 2 * LANES)


class Vector(types.Type):  # type: ignore[misc]  # numba is untyped
    """The numba type of a vector; `llvm` is what it is to LLVM."""

    def __init__(self, element: str, llvm: ir.VectorType) -> None:
        self.llvm = llvm
        super().__init__(name=f"{element}x{LANES}")


f32x16 = Vector("f32", _F32X16)
i32x16 = Vector("i32", _I32X16)


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, fe_type: Vector) -> None:
        super().__init__(manager, fe_type, fe_type.llvm)


# --- how an operation is made -------------------------------------------------------------------

Emit = Callable[..., Any]


def operation(typer: Callable[..., Any]) -> Callable[..., Any]:
    """A function that kernels can call; `typer` gets its arguments' types, and returns an `_op`."""
    return cast("Callable[..., Any]", intrinsic(prefer_literal=True)(typer))


def _op(returns: types.Type, arguments: Sequence[types.Type], emit: Emit) -> Any:
    """What a numba intrinsic returns: its signature and the code that builds it.

    `emit(builder, *values)` gets each array argument as a pointer to its first element, and every
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
        result = emit(builder, *plain)
        return context.get_dummy_value() if result is None else result

    return returns(*arguments), codegen


def _splat(builder: Any, scalar: Any) -> Any:
    vector = ir.VectorType(scalar.type, LANES)
    empty = ir.Constant(vector, ir.Undefined)
    one = builder.insert_element(empty, scalar, _I32(0))
    return builder.shuffle_vector(one, empty, ir.Constant(_I32X16, [0] * LANES))


def _call(builder: Any, name: str, returns: ir.Type, *values: Any) -> Any:
    """Call an LLVM intrinsic by its name."""
    kind = ir.FunctionType(returns, [v.type for v in values])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), values)


def _load(builder: Any, data: Any, offset: Any, kind: ir.Type) -> Any:
    """Load a `kind` at element `offset`; rows may start anywhere, so no alignment is assumed."""
    value = builder.load(builder.bitcast(builder.gep(data, [offset]), kind.as_pointer()))
    value.align = 1
    return value


def _store(builder: Any, value: Any, data: Any, offset: Any) -> None:
    place = builder.bitcast(builder.gep(data, [offset]), value.type.as_pointer())
    builder.store(value, place).align = 1


def _fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    return _call(builder, "llvm.fma.v16f32", _F32X16, a, b, c)


def _dpbusd(builder: Any, acc: Any, unsigned: Any, signed: Any) -> Any:
    return _call(builder, "llvm.x86.avx512.vpdpbusd.512", _I32X16, acc, unsigned, signed)


@operation
def at(typing_context, array, offset):  # type: ignore[no-untyped-def]
    """A pointer to element `offset`: one word to pass on, where an array is a dozen."""
    del typing_context
    if not isinstance(array, types.Array):
        raise TypingError(f"a pointer is made from an array, not from {array}")
    pointer = types.CPointer(array.dtype)
    return _op(pointer, [array, offset], lambda b, data, i: b.gep(data, [i]))


# --- vectors ------------------------------------------------------------------------------------

_LANE_NUMBERS = ir.Constant(_I32X16, list(range(LANES)))


def _constant(number: float) -> Any:
    return ir.Constant(_F32X16, [number] * LANES)


def _kv_type(array: types.Array) -> ir.Type:
    """What a vector in memory looks like: float32, or float16 kept as uint16."""
    kind = {types.float32: _F32X16, types.uint16: _F16X16}.get(array.dtype)
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
    return _op(kind, [value], _splat)


@operation
def load(typing_context, array, offset):  # type: ignore[no-untyped-def]
    """array[offset : offset + 16]; a uint16 array holds float16 numbers, widened exactly."""
    del typing_context
    stored = _kv_type(array)

    def emit(builder: Any, data: Any, at: Any) -> Any:
        value = _load(builder, data, at, stored)
        return value if stored == _F32X16 else builder.fpext(value, _F32X16)

    return _op(f32x16, [array, offset], emit)


@operation
def load_run(typing_context, count, array, offset):  # type: ignore[no-untyped-def]
    """`count` neighbouring vectors, array[offset : offset + 16 · count]; as `load`."""
    del typing_context
    n, stored = _literal(count), _kv_type(array)

    def emit(builder: Any, _n: Any, data: Any, at: Any) -> Any:
        run = ir.Constant(ir.ArrayType(_F32X16, n), ir.Undefined)
        for i in range(n):
            place = builder.add(at, ir.Constant(at.type, i * LANES))
            value = _load(builder, data, place, stored)
            value = value if stored == _F32X16 else builder.fpext(value, _F32X16)
            run = builder.insert_value(run, value, i)
        return run

    return _op(types.UniTuple(f32x16, n), [count, array, offset], emit)


@operation
def store(typing_context, array, offset, value):  # type: ignore[no-untyped-def]
    """array[offset : offset + 16] = value; to a uint16 array as float16, to nearest even."""
    del typing_context
    stored = _kv_type(array)

    def emit(builder: Any, data: Any, at: Any, v: Any) -> None:
        _store(builder, v if stored == _F32X16 else builder.fptrunc(v, _F16X16), data, at)

    return _op(types.void, [array, offset, value], emit)


@operation
def load_bytes(typing_context, array, offset):  # type: ignore[no-untyped-def]
    """64 bytes as sixteen ints of 4 bytes each; `offset` counts elements of any integer array."""
    del typing_context
    return _op(i32x16, [array, offset], lambda b, data, at: _load(b, data, at, _I32X16))


@operation
def load_halves(typing_context, array, offset):  # type: ignore[no-untyped-def]
    """Sixteen float16 numbers from a byte array, widened exactly."""
    del typing_context
    if array.dtype != types.uint8:
        raise TypingError(f"load_halves reads bytes, not {array}")

    def emit(builder: Any, data: Any, at: Any) -> Any:
        return builder.fpext(_load(builder, data, at, _F16X16), _F32X16)

    return _op(f32x16, [array, offset], emit)


@operation
def prefetch(typing_context, array, offset):  # type: ignore[no-untyped-def]
    """Ask for the 64 bytes at element `offset` to be brought nearer; a hint, it never faults."""
    del typing_context

    def emit(builder: Any, data: Any, at: Any) -> None:
        place = builder.bitcast(builder.gep(data, [at]), ir.IntType(8).as_pointer())
        _call(builder, "llvm.prefetch.p0", ir.VoidType(), place, _I32(0), _I32(3), _I32(1))

    return _op(types.void, [array, offset], emit)


@operation
def store_bytes(typing_context, array, offset, value):  # type: ignore[no-untyped-def]
    """The reverse of `load_bytes`."""
    del typing_context
    return _op(types.void, [array, offset, value], lambda b, data, at, v: _store(b, v, data, at))


@operation
def xor(typing_context, a, b):  # type: ignore[no-untyped-def]
    """The bits in which two vectors of ints differ."""
    del typing_context
    return _op(i32x16, [a, b], lambda builder, x, y: builder.xor(x, y))


@operation
def low_nibbles(typing_context, packed):  # type: ignore[no-untyped-def]
    """The low four bits of each of the 64 bytes, as bytes 0 … 15."""
    del typing_context
    mask = ir.Constant(_I32X16, [0x0F0F0F0F] * LANES)
    return _op(i32x16, [packed], lambda b, v: b.and_(v, mask))


@operation
def high_nibbles(typing_context, packed):  # type: ignore[no-untyped-def]
    """The high four bits of each of the 64 bytes, as bytes 0 … 15."""
    del typing_context
    mask = ir.Constant(_I32X16, [0x0F0F0F0F] * LANES)
    four = ir.Constant(_I32X16, [4] * LANES)
    return _op(i32x16, [packed], lambda b, v: b.and_(b.lshr(v, four), mask))


@operation
def low_bf16(typing_context, pairs):  # type: ignore[no-untyped-def]
    """The lower 16 bits of each int, a bfloat16, as float32 (exact)."""
    del typing_context
    sixteen = ir.Constant(_I32X16, [16] * LANES)
    return _op(f32x16, [pairs], lambda b, v: b.bitcast(b.shl(v, sixteen), _F32X16))


@operation
def high_bf16(typing_context, pairs):  # type: ignore[no-untyped-def]
    """The upper 16 bits of each int, a bfloat16, as float32 (exact)."""
    del typing_context
    mask = ir.Constant(_I32X16, [0xFFFF0000] * LANES)
    return _op(f32x16, [pairs], lambda b, v: b.bitcast(b.and_(v, mask), _F32X16))


@operation
def fma(typing_context, a, b, c):  # type: ignore[no-untyped-def]
    """a × b + c, rounded once."""
    del typing_context
    return _op(f32x16, [a, b, c], _fma)


@operation
def add(typing_context, a, b):  # type: ignore[no-untyped-def]
    """a + b."""
    del typing_context
    return _op(f32x16, [a, b], lambda builder, x, y: builder.fadd(x, y))


@operation
def sub(typing_context, a, b):  # type: ignore[no-untyped-def]
    """a - b."""
    del typing_context
    return _op(f32x16, [a, b], lambda builder, x, y: builder.fsub(x, y))


@operation
def mul(typing_context, a, b):  # type: ignore[no-untyped-def]
    """a × b."""
    del typing_context
    return _op(f32x16, [a, b], lambda builder, x, y: builder.fmul(x, y))


@operation
def div(typing_context, a, b):  # type: ignore[no-untyped-def]
    """a / b."""
    del typing_context
    return _op(f32x16, [a, b], lambda builder, x, y: builder.fdiv(x, y))


@operation
def maximum(typing_context, a, b):  # type: ignore[no-untyped-def]
    """The larger of each pair; where one is NaN, b."""
    del typing_context

    def emit(builder: Any, x: Any, y: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", x, y), x, y)

    return _op(f32x16, [a, b], emit)


@operation
def clip(typing_context, value, low, high):  # type: ignore[no-untyped-def]
    """Each lane kept within the float32 scalars low … high; NaN stays NaN."""
    del typing_context

    def emit(builder: Any, v: Any, lowest: Any, highest: Any) -> Any:
        lowest, highest = _splat(builder, lowest), _splat(builder, highest)
        v = builder.select(builder.fcmp_ordered("<", v, lowest), lowest, v)
        return builder.select(builder.fcmp_ordered(">", v, highest), highest, v)

    return _op(f32x16, [value, low, high], emit)


@operation
def zero_below(typing_context, value, x, bound):  # type: ignore[no-untyped-def]
    """`value`, but 0 in lanes where x is below the float32 scalar `bound`."""
    del typing_context

    def emit(builder: Any, v: Any, at: Any, low: Any) -> Any:
        below = builder.fcmp_ordered("<", at, _splat(builder, low))
        return builder.select(below, _constant(0.0), v)

    return _op(f32x16, [value, x, bound], emit)


@operation
def keep_first(typing_context, value, count, rest):  # type: ignore[no-untyped-def]
    """The first `count` lanes of `value` (all of them from 16 on), `rest` in the others."""
    del typing_context

    def emit(builder: Any, v: Any, n: Any, other: Any) -> Any:
        n = _splat(builder, builder.trunc(n, _I32) if n.type != _I32 else n)
        return builder.select(builder.icmp_signed("<", _LANE_NUMBERS, n), v, other)

    return _op(f32x16, [value, count, rest], emit)


@operation
def times_power_of_two(typing_context, value, shifted):  # type: ignore[no-untyped-def]
    """value × 2ⁿ, where n is the integer in the low bits of `shifted`'s mantissa.

    Adding 1.5 · 2²³ to a small number rounds it to an integer n, which is then to be found in the
    low bits; moved to the exponent's place, it multiplies by 2ⁿ.
    """
    del typing_context
    place = ir.Constant(_I32X16, [23] * LANES)

    def emit(builder: Any, v: Any, t: Any) -> Any:
        exponent = builder.shl(builder.bitcast(t, _I32X16), place)
        return builder.bitcast(builder.add(builder.bitcast(v, _I32X16), exponent), _F32X16)

    return _op(f32x16, [value, shifted], emit)


@operation
def largest_magnitude(typing_context, a, b):  # type: ignore[no-untyped-def]
    """max |x| over both vectors, float32; NaN if any is.

    Magnitudes order like their bits as integers, and NaN above all.
    """
    del typing_context
    mask = ir.Constant(_I32X16, [0x7FFFFFFF] * LANES)

    def emit(builder: Any, x: Any, y: Any) -> Any:
        x, y = (builder.and_(builder.bitcast(v, _I32X16), mask) for v in (x, y))
        larger = builder.select(builder.icmp_signed(">", x, y), x, y)
        bits = _call(builder, "llvm.vector.reduce.smax.v16i32", _I32, larger)
        return builder.bitcast(bits, _F32)

    return _op(types.float32, [a, b], emit)


@operation
def horizontal_max(typing_context, value):  # type: ignore[no-untyped-def]
    """The largest lane."""
    del typing_context
    name = "llvm.vector.reduce.fmax.v16f32"
    return _op(types.float32, [value], lambda b, v: _call(b, name, _F32, v))


@operation
def horizontal_sum(typing_context, value):  # type: ignore[no-untyped-def]
    """The sum of all lanes, always as the same tree: halves onto halves."""
    del typing_context

    def emit(builder: Any, v: Any) -> Any:
        width = LANES // 2
        while width:
            swap = [(lane + width) % LANES for lane in range(LANES)]
            v = builder.fadd(v, builder.shuffle_vector(v, v, ir.Constant(_I32X16, swap)))
            width //= 2
        return builder.extract_element(v, _I32(0))

    return _op(types.float32, [value], emit)


@operation
def store_int8(typing_context, value, array, offset):  # type: ignore[no-untyped-def]
    """array[offset : offset + 16] = the low byte of each lane.

    `value` is a float vector to which 1.5 · 2²³ was added: its low byte is the rounded integer.
    Returns the sum of the sixteen integers, int32.
    """
    del typing_context

    def emit(builder: Any, v: Any, data: Any, at: Any) -> Any:
        narrow = builder.trunc(builder.bitcast(v, _I32X16), ir.VectorType(ir.IntType(8), LANES))
        _store(builder, narrow, data, at)
        wide = builder.sext(narrow, _I32X16)
        return _call(builder, "llvm.vector.reduce.add.v16i32", _I32, wide)

    if array.dtype != types.int8:
        raise TypingError(f"store_int8 writes int8, not {array}")
    return _op(types.int32, [value, array, offset], emit)


# --- bundles: one vector per token of a tile ------------------------------------------------------


def _bundle_op(returns: types.Type, arguments: Sequence[types.Type], n: int, emit: Emit) -> Any:
    """As `_op`, for a bundle of `n`: `emit(builder, i, *values)` makes the vector of token i.

    A bundle among the values is passed as its i-th vector.
    """

    def all_tokens(builder: Any, *values: Any) -> Any:
        result = ir.Constant(ir.ArrayType(returns[0].llvm, n), ir.Undefined)
        for i in range(n):
            mine = [
                builder.extract_value(value, i) if isinstance(kind, types.UniTuple) else value
                for kind, value in zip(arguments, values, strict=True)
            ]
            result = builder.insert_value(result, emit(builder, i, *mine), i)
        return result

    return _op(returns, arguments, all_tokens)


def _token(builder: Any, offset: Any, stride: Any, i: int) -> Any:
    """Where token i's operand is: offset + i · stride."""
    step = builder.mul(stride, ir.Constant(stride.type, i))
    if step.type != offset.type:
        step = builder.sext(step, offset.type)
    return builder.add(offset, step)


def _operand(builder: Any, data: Any, offset: Any, stride: Any, i: int) -> Any:
    """Token i's scalar, data[offset + i · stride], in every lane."""
    place = builder.gep(data, [_token(builder, offset, stride, i)])
    return _splat(builder, builder.load(place))


def _literal(n: Any) -> int:
    if not isinstance(n, types.IntegerLiteral):
        raise TypingError("the size of a bundle must be a constant")
    return int(n.literal_value)


@operation
def zeros(typing_context, n):  # type: ignore[no-untyped-def]
    """n vectors of float32 zeros; n must be a compile-time constant."""
    del typing_context
    count = _literal(n)
    return _bundle_op(types.UniTuple(f32x16, count), [n], count, lambda b, i, _: _constant(0.0))


@operation
def repeat(typing_context, n, vector):  # type: ignore[no-untyped-def]
    """n times the same vector."""
    del typing_context
    count = _literal(n)
    return _bundle_op(types.UniTuple(vector, count), [n, vector], count, lambda b, i, _, v: v)


@operation
def splat_each(typing_context, n, array, offset, stride):  # type: ignore[no-untyped-def]
    """n vectors; the i-th holds the float32 or int32 array[offset + i · stride] sixteen times."""
    del typing_context
    kind = {types.float32: f32x16, types.int32: i32x16}.get(array.dtype)
    if kind is None:
        raise TypingError(f"splat_each reads float32 or int32, not {array}")
    count = _literal(n)

    def emit(builder: Any, i: int, size: Any, data: Any, at: Any, step: Any) -> Any:
        del size
        return _operand(builder, data, at, step, i)

    return _bundle_op(types.UniTuple(kind, count), [n, array, offset, stride], count, emit)


@operation
def dot4_each(typing_context, acc, weights, rows, offset, stride):  # type: ignore[no-untyped-def]
    """acc[i] += weights · rows[offset + i · stride : … + 4], over the four bytes of each lane.

    `weights` are unsigned bytes, `rows` int8: one `vpdpbusd` a token, exact in int32.
    """
    del typing_context
    if acc.dtype != i32x16 or weights != i32x16 or rows.dtype != types.int8:
        raise TypingError(f"dot4_each cannot add {weights} · {rows} to {acc}")

    def emit(builder: Any, i: int, a: Any, w: Any, data: Any, at: Any, step: Any) -> Any:
        quad = _load(builder, data, _token(builder, at, step, i), _I32)
        return _dpbusd(builder, a, w, _splat(builder, quad))

    return _bundle_op(acc, [acc, weights, rows, offset, stride], acc.count, emit)


@operation
def dot2_each(typing_context, acc, weights, rows, offset, stride):  # type: ignore[no-untyped-def]
    """acc[i] += weights · rows[offset + i · stride : … + 2], over the two bfloat16s of each lane.

    One `vdpbf16ps` a token: products are exact, sums float32, denormals count as zero.
    """
    del typing_context
    if acc.dtype != f32x16 or weights != i32x16 or rows.dtype != types.uint16:
        raise TypingError(f"dot2_each cannot add {weights} · {rows} to {acc}")

    def emit(builder: Any, i: int, a: Any, w: Any, data: Any, at: Any, step: Any) -> Any:
        pair = _splat(builder, _load(builder, data, _token(builder, at, step, i), _I32))
        w, pair = (builder.bitcast(v, _BF16X32) for v in (w, pair))
        return _call(builder, "llvm.x86.avx512bf16.dpbf16ps.512", _F32X16, a, w, pair)

    return _bundle_op(acc, [acc, weights, rows, offset, stride], acc.count, emit)


@operation
def fma_each(typing_context, acc, weights, rows, offset, stride):  # type: ignore[no-untyped-def]
    """acc[i] += weights × rows[offset + i · stride], float32, rounded once.

    `weights` is one vector, or a run of them; then `acc` has as many for each token.
    """
    del typing_context
    several = isinstance(weights, types.UniTuple)
    vector, columns = (weights.dtype, weights.count) if several else (weights, 1)
    if acc.dtype != f32x16 or vector != f32x16 or rows.dtype != types.float32:
        raise TypingError(f"fma_each cannot add {weights} × {rows} to {acc}")

    def emit(builder: Any, all_: Any, run: Any, data: Any, at: Any, step: Any) -> Any:
        for i in range(acc.count):
            w = builder.extract_value(run, i % columns) if several else run
            x = _operand(builder, data, at, step, i // columns)
            all_ = builder.insert_value(
                all_, _fma(builder, w, x, builder.extract_value(all_, i)), i
            )
        return all_

    return _op(acc, [acc, weights, rows, offset, stride], emit)


@operation
def add_each(typing_context, left, right):  # type: ignore[no-untyped-def]
    """left[i] + right[i]."""
    del typing_context
    return _bundle_op(left, [left, right], left.count, lambda b, i, x, y: b.fadd(x, y))


@operation
def scale_each(typing_context, acc, dots, weights, rows, offset):  # type: ignore[no-untyped-def]
    """acc[i] += float(dots[i]) × (weights × rows[offset + i]): a group's dots into the sums."""
    del typing_context

    def emit(builder: Any, i: int, a: Any, dot: Any, w: Any, data: Any, at: Any) -> Any:
        scale = builder.fmul(w, _operand(builder, data, at, ir.Constant(at.type, 1), i))
        return _fma(builder, builder.sitofp(dot, _F32X16), scale, a)

    return _bundle_op(acc, [acc, dots, weights, rows, offset], acc.count, emit)


@operation
def to_float_each(typing_context, bundle):  # type: ignore[no-untyped-def]
    """A bundle of ints as float32, rounded to nearest."""
    del typing_context
    returns = types.UniTuple(f32x16, bundle.count)
    return _bundle_op(returns, [bundle], bundle.count, lambda b, i, v: b.sitofp(v, _F32X16))


@operation
def load_each(typing_context, n, width, array, offset, stride):  # type: ignore[no-untyped-def]
    """n tokens of `width` vectors: token i's are array[offset + i · stride : … + 16 · width]."""
    del typing_context
    columns = _literal(width)
    count = _literal(n) * columns

    def emit(builder: Any, i: int, _n: Any, _w: Any, data: Any, at: Any, step: Any) -> Any:
        at = _token(builder, at, step, i // columns)
        at = builder.add(at, ir.Constant(at.type, i % columns * LANES))
        return _load(builder, data, at, _F32X16)

    if array.dtype != types.float32:
        raise TypingError(f"load_each reads float32, not {array}")
    arguments = [n, width, array, offset, stride]
    return _bundle_op(types.UniTuple(f32x16, count), arguments, count, emit)


@operation
def mul_each(typing_context, bundle, width, rows, offset, stride):  # type: ignore[no-untyped-def]
    """Token i's `width` vectors, each × rows[offset + i · stride]."""
    del typing_context
    columns = _literal(width)

    def emit(builder: Any, i: int, v: Any, _w: Any, data: Any, at: Any, step: Any) -> Any:
        return builder.fmul(v, _operand(builder, data, at, step, i // columns))

    return _bundle_op(bundle, [bundle, width, rows, offset, stride], bundle.count, emit)


@operation
def store_each(typing_context, bundle, width, array, offset, stride):  # type: ignore[no-untyped-def]
    """The reverse of `load_each`."""
    del typing_context
    columns = _literal(width)

    def emit(builder: Any, values: Any, _w: Any, data: Any, at: Any, step: Any) -> None:
        for i in range(bundle.count):
            place = builder.add(at, ir.Constant(at.type, i % columns * LANES))
            _store(builder, builder.extract_value(values, i), data, place)
            if i % columns == columns - 1:
                at = builder.add(at, step)

    if array.dtype != types.float32:
        raise TypingError(f"store_each writes float32, not {array}")
    return _op(types.void, [bundle, width, array, offset, stride], emit)
