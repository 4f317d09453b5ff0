"""Short names for the LLVM that vector operations are made of (`llvmlite.ir`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir

LANES = 16

I8, I16, I32, I64 = (ir.IntType(n) for n in (8, 16, 32, 64))
F32, F64 = ir.FloatType(), ir.DoubleType()
I16X16, I32X16 = ir.VectorType(I16, LANES), ir.VectorType(I32, LANES)
F16X16 = ir.VectorType(ir.HalfType(), LANES)
F32X16, F64X16 = ir.VectorType(F32, LANES), ir.VectorType(F64, LANES)


def constant(kind: ir.VectorType, number: Any) -> Any:
    """The same number in every lane."""
    return ir.Constant(kind, [number] * kind.count)


def call(builder: Any, name: str, returns: ir.Type, *values: Any) -> Any:
    """Call an LLVM intrinsic, or a function of the C library, by its name."""
    kind = ir.FunctionType(returns, [v.type for v in values])
    known = builder.module.globals.get(name)
    return builder.call(known or ir.Function(builder.module, kind, name), values)


def splat(builder: Any, scalar: Any) -> Any:
    """Sixteen copies."""
    empty = ir.Constant(ir.VectorType(scalar.type, LANES), ir.Undefined)
    one = builder.insert_element(empty, scalar, I32(0))
    return builder.shuffle_vector(one, empty, constant(I32X16, 0))


def load(builder: Any, data: Any, offset: Any, kind: ir.Type) -> Any:
    """Load a `kind` at element `offset`; rows may start anywhere, so no alignment is assumed."""
    value = builder.load(builder.bitcast(builder.gep(data, [offset]), kind.as_pointer()))
    value.align = 1
    return value


def store(builder: Any, value: Any, data: Any, offset: Any) -> None:
    """The reverse of `load`."""
    place = builder.bitcast(builder.gep(data, [offset]), value.type.as_pointer())
    builder.store(value, place).align = 1


def cut(builder: Any, vector: Any, n: int) -> list[Any]:
    """A vector as n equal ones, such as a processor's registers hold."""
    size = vector.type.count // n
    whole = ir.Constant(vector.type, ir.Undefined)
    lanes = [list(range(i * size, (i + 1) * size)) for i in range(n)]
    return [
        builder.shuffle_vector(vector, whole, ir.Constant(ir.VectorType(I32, size), part))
        for part in lanes
    ]


def join(builder: Any, parts: Sequence[Any]) -> Any:
    """The reverse of `cut`, for 2, 4, … parts."""
    while len(parts) > 1:
        size = 2 * parts[0].type.count
        lanes = ir.Constant(ir.VectorType(I32, size), list(range(size)))
        pairs = zip(parts[::2], parts[1::2], strict=True)
        parts = [builder.shuffle_vector(a, b, lanes) for a, b in pairs]
    return parts[0]
