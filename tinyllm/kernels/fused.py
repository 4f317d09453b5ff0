"""a · b + c rounded once, by processors without an instruction for it (Ivy Bridge, Atoms).

Every kind of processor gives the same bits, so the sums must come out as a fused multiply-add's.
The product of two float32s is exact in float64: 24 + 24 bits. So is, mostly, all else:

    r = float32(float64(a) · float64(b) + float64(c))

rounds twice, to 53 bits and to 24, and the first rounding spoils the second only where it lands
half-way between two neighbouring float32s; then the second can't tell to which side the true sum
lay. Of a normal float32 such a float64 is known by its lowest 29 bits: a one, and zeros. Some of
those were exact, and are right; who has such bits at all is computed again, carefully.

Below 2⁻¹²⁶ float32s are as far apart as at it, and half-way is another bit. But there the first
rounding is exact, unless c is tiny, too, and not 0. For what it loses lies below 2⁻¹⁷⁹ then, the
product reaches down no further than 47 bits below its first one, which so is less than 2⁻¹³¹; and c
is what the two differ by, less than 2⁻¹²⁵. Such a c makes it careful as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir

from tinyllm.kernels.emit import (
    F32,
    F32X16,
    F64,
    F64X16,
    I32,
    I32X16,
    I64,
    LANES,
    constant,
    cut,
)

LOW_BITS, HALF = 0x1FFFFFFF, 0x10000000  # of a float64: what a float32 lacks; half of its last bit
TINY = 2.0**-125
SUSPECTS = ir.VectorType(I32, 8)
PART = ir.VectorType(F32, 4)
NEVER = 1 << 20  # to one


def fma_each(builder: Any, sums: Sequence[tuple[Any, Any, Any]]) -> list[Any]:
    """a · b + c of several (a, b, c), sixteen float32s each; one branch for all."""
    results, suspects = [], constant(SUSPECTS, 0)
    for a, b, c in sums:
        a_64, b_64, c_64 = (builder.fpext(v, F64X16) for v in (a, b, c))
        total = builder.fadd(builder.fmul(a_64, b_64), c_64)
        results.append(builder.fptrunc(total, F32X16))
        suspects = builder.or_(suspects, _half_way(builder, total))
        suspects = builder.or_(suspects, _tiny(builder, c))
    any_bit = builder.bitcast(suspects, ir.IntType(32 * SUSPECTS.count))
    careful = builder.icmp_unsigned("!=", any_bit, any_bit.type(0))
    return _where(builder, careful, sums, results)


def _half_way(builder: Any, totals: Any) -> Any:
    """Bits where a float64 ends in a one and 28 zeros; lanes in any order."""
    found = []
    for part in cut(builder, totals, 2):
        words = builder.bitcast(part, F32X16)
        # The low words, in an order that takes one instruction in registers of 128 and 256 bits.
        order = ir.Constant(SUSPECTS, [0, 2, 8, 10, 4, 6, 12, 14])
        low = builder.bitcast(builder.shuffle_vector(words, words, order), SUSPECTS)
        low = builder.and_(low, constant(SUSPECTS, LOW_BITS))
        # Compared as floats: AVX has no integers of 256 bits.
        floats = ir.VectorType(F32, 8)
        low, half = (builder.bitcast(v, floats) for v in (low, constant(SUSPECTS, HALF)))
        found.append(builder.sext(builder.fcmp_ordered("==", low, half), SUSPECTS))
    return builder.or_(*found)


def _tiny(builder: Any, c: Any) -> Any:
    """The bits of those that are nearer to 0 than `TINY`: none of 0 itself."""
    size = builder.and_(builder.bitcast(c, I32X16), constant(I32X16, 0x7FFFFFFF))
    small = builder.fcmp_ordered("<", builder.bitcast(size, F32X16), constant(F32X16, TINY))
    bits = builder.and_(builder.sext(small, I32X16), size)
    return builder.or_(*cut(builder, bits, 2))


def _where(builder: Any, careful: Any, sums: Any, results: Sequence[Any]) -> list[Any]:
    """The results, or, where `careful` holds, those of `rounded_to_odd`.

    That is a loop over memory, out of the way: it takes little code and few registers.
    """
    n = len(sums)
    with builder.goto_entry_block():
        places = [builder.alloca(ir.ArrayType(F32X16, n)) for _ in "abc"]
    before = builder.block
    slow, loop, after = map(builder.append_basic_block, ("careful", "each", "summed"))
    weights = [ir.MetaDataString(builder.module, "branch_weights"), I32(1), I32(NEVER)]
    rarely = builder.module.add_metadata(weights)
    builder.cbranch(careful, slow, after).set_metadata("prof", rarely)

    builder.position_at_end(slow)
    for i, three in enumerate(sums):
        for place, value in zip(places, three, strict=True):
            builder.store(value, builder.gep(place, [I32(0), I32(i)]))
    parts = [builder.bitcast(place, PART.as_pointer()) for place in places]
    builder.branch(loop)

    builder.position_at_end(loop)
    i = builder.phi(I32)
    i.add_incoming(I32(0), slow)
    a, b, c = (builder.gep(part, [i]) for part in parts)
    builder.store(rounded_to_odd(builder, *map(builder.load, (a, b, c))), c)
    following = builder.add(i, I32(1))
    i.add_incoming(following, loop)
    again = [builder.load(builder.gep(places[2], [I32(0), I32(k)])) for k in range(n)]
    more = builder.icmp_unsigned("<", following, I32(n * LANES // PART.count))
    builder.cbranch(more, loop, after)

    builder.position_at_end(after)
    found = []
    for quick, right in zip(results, again, strict=True):
        value = builder.phi(F32X16)
        value.add_incoming(quick, before)
        value.add_incoming(right, loop)
        found.append(value)
    return found


def rounded_to_odd(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """a · b + c of `PART`s, rounded once.

    The product is exact in float64, and the sum is rounded there to odd (its last bit tells that
    something was lost), so that rounding it to float32 is right (Boldo & Melquiond 2008, "Emulation
    of FMA and correctly rounded sums").
    """
    wide, whole = (ir.VectorType(kind, PART.count) for kind in (F64, I64))
    a, b, c = (builder.fpext(v, wide) for v in (a, b, c))
    product = builder.fmul(a, b)
    total = builder.fadd(product, c)
    of_c = builder.fsub(total, product)  # the part of c that is in the sum
    lost = builder.fadd(builder.fsub(product, builder.fsub(total, of_c)), builder.fsub(c, of_c))
    zero = constant(wide, 0.0)
    bits = builder.bitcast(total, whole)
    one = constant(whole, 1)
    even = builder.icmp_signed("==", builder.and_(bits, one), constant(whole, 0))
    inexact = builder.fcmp_ordered("!=", lost, zero)
    away = builder.icmp_signed(
        "==", builder.zext(builder.fcmp_ordered(">", lost, zero), whole),
        builder.zext(builder.fcmp_ordered(">", total, zero), whole),
    )  # fmt: skip
    step = builder.select(away, one, constant(whole, -1))
    odd = builder.select(builder.and_(even, inexact), builder.add(bits, step), bits)
    return builder.fptrunc(builder.bitcast(odd, wide), PART)
