"""Kinds of processor: how each is recognised, and all that the kernels do differently there.

The kernels speak of sixteen lanes, which LLVM cuts into the registers that there are. What it
doesn't find by itself is the instruction that multiplies bytes, so each kind has its own way to
that. All ways are exact, every float operation is rounded by itself and every sum has its order:
**the same bits come out on all of them.**

| kind      | processors                       | bytes are multiplied by                        |
|-----------|----------------------------------|------------------------------------------------|
| avx512    | Intel from Ice Lake, AMD Zen 4   | `vpdpbusd`, 512 bits                           |
| avxvnni   | Intel from Alder Lake, AMD Zen 5 | `vpdpbusd`, 256 bits                           |
| avx2      | Intel from Haswell, AMD Zen      | `vpmaddubsw`, `vpmaddwd`, 256 bits             |
| neon-i8mm | Apple M2, Arm Neoverse V1        | `usdot`, 128 bits                              |
| neon      | Apple M1, Arm Neoverse N1        | `sdot`, 128 bits                               |
| plain     | every other                      | products of 16 bits: `pmaddwd`, or LLVM's      |

Which kind a processor is we ask of LLVM itself: it translates a few products for the target that
kernels are compiled for, and the instructions that it takes are there (`instructions_of`). That
takes no numba, which a process whose kernels are on disk does without.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir

from tinyllm.kernels import fused
from tinyllm.kernels.emit import (
    F32X16,
    I8,
    I16,
    I16X16,
    I32,
    I32X16,
    LANES,
    call,
    constant,
    cut,
    join,
    splat,
)

VARIABLE = "TINYLLM_SIMD"

Emit = Callable[[Any, Any, Any, Any], Any]
"""emit(builder, acc, weights, quad): each of 16 int32 lanes of `acc` plus the dot product of its
four bytes of `weights` with the four signed bytes of the int32 `quad`. Those are -127 … 127."""


# --- four bytes times four bytes, into sixteen int32 sums ----------------------------------------


def _in_registers(name: str, n: int) -> Emit:
    """One instruction a register, of which sixteen int32s take n."""

    def emit(builder: Any, acc: Any, weights: Any, quad: Any) -> Any:
        kind = ir.VectorType(I32, 16 // n)
        # Arm's names its operands as bytes, Intel's as int32s of four bytes each.
        operand = ir.VectorType(I8, 64 // n) if "aarch64" in name else kind
        x = cut(builder, splat(builder, quad), n)[0]
        registers = []
        for a, w in zip(cut(builder, acc, n), cut(builder, weights, n), strict=True):
            w, quads = builder.bitcast(w, operand), builder.bitcast(x, operand)
            registers.append(call(builder, name, kind, a, w, quads))
        return join(builder, registers)

    return emit


_vpdpbusd_512 = _in_registers("llvm.x86.avx512.vpdpbusd.512", 1)
_vpdpbusd_256 = _in_registers("llvm.x86.avx512.vpdpbusd.256", 2)
_sdot = _in_registers("llvm.aarch64.neon.sdot.v4i32.v16i8", 4)
_usdot = _in_registers("llvm.aarch64.neon.usdot.v4i32.v16i8", 4)

_BYTES, _PAIRS, _QUADS = ir.VectorType(I8, 32), ir.VectorType(I16, 16), ir.VectorType(I32, 8)


def _pairs(builder: Any, unsigned: Any, signed: Any) -> Any:
    """Sums of two products, unsigned bytes times signed ones, as int16; no sum may exceed it."""
    return call(builder, "llvm.x86.avx2.pmadd.ub.sw", _PAIRS, unsigned, signed)


def _quads(builder: Any, acc: Any, pairs: Any) -> Any:
    """Eight int32s plus the sums of two int16s each."""
    ones = constant(_PAIRS, 1)
    return builder.add(acc, call(builder, "llvm.x86.avx2.pmadd.wd", _QUADS, pairs, ones))


def _signed_pairs(builder: Any, acc: Any, weights: Any, quad: Any) -> Any:
    """AVX2: |w| · (x with w's sign): two products are 2 · 128 · 127 at most, which int16 holds."""
    x = builder.bitcast(cut(builder, splat(builder, quad), 2)[0], _BYTES)
    halves = []
    for a, w in zip(cut(builder, acc, 2), cut(builder, weights, 2), strict=True):
        w = builder.bitcast(w, _BYTES)
        size = call(builder, "llvm.abs.v32i8", _BYTES, w, ir.IntType(1)(0))
        turned = call(builder, "llvm.x86.avx2.psign.b", _BYTES, x, w)
        halves.append(_quads(builder, a, _pairs(builder, size, turned)))
    return join(builder, halves)


def _small_pairs(builder: Any, acc: Any, weights: Any, quad: Any) -> Any:
    """AVX2: as `_signed_pairs`, for weights of 0 … 15."""
    x = builder.bitcast(cut(builder, splat(builder, quad), 2)[0], _BYTES)
    return join(
        builder,
        [
            _quads(builder, a, _pairs(builder, builder.bitcast(w, _BYTES), x))
            for a, w in zip(cut(builder, acc, 2), cut(builder, weights, 2), strict=True)
        ],
    )


_WORDS_16 = ir.VectorType(I16, 2 * LANES)


def _pairs_of_words(builder: Any, acc: Any, weights: Any, quad: Any) -> Any:
    """Plain LLVM: bytes 0 and 2, then 1 and 3, widened to 16 bits; two products a lane and step."""
    both = [low_and_high_bytes(builder, value) for value in (weights, splat(builder, quad))]
    for w, x in zip(*both, strict=True):
        acc = builder.add(acc, sums_of_two(builder, w, x))
    return acc


def low_and_high_bytes(builder: Any, vector: Any) -> tuple[Any, Any]:
    """The signed bytes 0, 2, 4 … of a vector, and 1, 3, 5 …, as int16s."""
    kind = vector.type
    if kind == I32X16:
        kind = _WORDS_16
        vector = builder.bitcast(vector, kind)
    eight = constant(kind, 8)
    return builder.ashr(builder.shl(vector, eight), eight), builder.ashr(vector, eight)


def sums_of_two(builder: Any, a: Any, b: Any) -> Any:
    """Sixteen sums of two products of int16s; what x86 has as `pmaddwd`, since SSE2."""
    if builder.module.triple.startswith("x86_64"):
        four, eight = ir.VectorType(I32, 4), 4
        parts = zip(cut(builder, a, eight), cut(builder, b, eight), strict=True)
        return join(builder, [call(builder, "llvm.x86.sse2.pmadd.wd", four, *p) for p in parts])
    total = constant(I32X16, 0)
    for k in range(2):
        lanes = ir.Constant(I32X16, list(range(k, 2 * LANES, 2)))
        a_k, b_k = (builder.sext(builder.shuffle_vector(v, v, lanes), I32X16) for v in (a, b))
        total = builder.add(total, builder.mul(a_k, b_k))
    return total


# --- the table ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """A kind of processor, as the table above has it."""

    name: str
    needs: frozenset[str]  # instructions and registers
    sums: int  # vectors of sixteen lanes that are kept in registers; the others hold operands
    signed: bool  # Q8's weights are multiplied as signed bytes; else as bytes + 128
    dot4: Emit  # by weights of 8 bits
    dot4_nibbles: Emit  # by weights of 0 … 15
    words: bool = False  # multiplies words, and so activations of two bytes as they are


_FLOATS = {"vfmadd", "vcvtph2ps"}


def _kind(
    name: str, needs: set[str], sums: int, signed: bool, *dots: Emit, words: bool = False
) -> Kind:
    return Kind(name, frozenset(needs), sums, signed, dots[0], dots[-1], words)


KINDS = (  # the best first
    _kind("avx512", {"vpdpbusd", "zmm", *_FLOATS}, 16, False, _vpdpbusd_512),
    _kind("avxvnni", {"vpdpbusd", "ymm", *_FLOATS}, 4, False, _vpdpbusd_256),
    _kind("avx2", {"vpmaddwd", "ymm", *_FLOATS}, 4, True, _signed_pairs, _small_pairs),
    _kind("neon-i8mm", {"usdot", "fmla"}, 4, False, _usdot),
    _kind("neon", {"sdot", "fmla"}, 4, True, _sdot),
    _kind("plain", set(), 4, True, _pairs_of_words, words=True),
)


# --- which of them this is ------------------------------------------------------------------------

_PRODUCTS = """
define <16 x float> @floats(<16 x half> %h, <16 x float> %b, <16 x float> %c) {
  %a = fpext <16 x half> %h to <16 x float>
  %r = call <16 x float> @llvm.fma.v16f32(<16 x float> %a, <16 x float> %b, <16 x float> %c)
  ret <16 x float> %r
}
define i32 @signed(<32 x i8> %a, <32 x i8> %b) {
  %x = sext <32 x i8> %a to <32 x i32>
  %y = sext <32 x i8> %b to <32 x i32>
  %p = mul <32 x i32> %x, %y
  %r = call i32 @llvm.vector.reduce.add.v32i32(<32 x i32> %p)
  ret i32 %r
}
define i32 @mixed(<32 x i8> %a, <32 x i8> %b) {
  %x = zext <32 x i8> %a to <32 x i32>
  %y = sext <32 x i8> %b to <32 x i32>
  %p = mul <32 x i32> %x, %y
  %r = call i32 @llvm.vector.reduce.add.v32i32(<32 x i32> %p)
  ret i32 %r
}
declare i32 @llvm.vector.reduce.add.v32i32(<32 x i32>)
declare <16 x float> @llvm.fma.v16f32(<16 x float>, <16 x float>, <16 x float>)
"""
_WORDS = r"\b(vpdpbusd|vpmaddwd|vfmadd|vcvtph2ps|zmm|ymm|usdot|sdot|fmla|fcvtl)"


@cache
def instructions_of(triple: str, cpu: str, features: str) -> frozenset[str]:
    """What LLVM takes for a few products on that target, of what the kinds ask for."""
    module = llvm.parse_assembly(_PRODUCTS)
    module.triple = triple
    target = llvm.Target.from_triple(triple).create_target_machine(cpu, features, opt=3)
    return frozenset(re.findall(_WORDS, target.emit_assembly(module)))


def possible(instructions: frozenset[str]) -> list[Kind]:
    """The kinds that a processor with these instructions can be; the best first."""
    return [kind for kind in KINDS if kind.needs <= instructions]


def choose(wish: str, target: tuple[str, str, str]) -> Kind:
    """The kind of a target (triple, processor, features), or the one that is wished for.

    Raises:
        ValueError: there is no such kind, or the target lacks what it takes.
    """
    found = possible(instructions_of(*target))
    names = [kind.name for kind in found]
    if wish in ("", "auto"):
        return found[0]
    if wish not in (kind.name for kind in KINDS):
        every = ", ".join(kind.name for kind in KINDS)
        raise ValueError(f"{VARIABLE} must be auto or one of {every}, not {wish!r}")
    if wish not in names:
        raise ValueError(
            f"{VARIABLE}={wish}, but this processor ({target[1]}) is one for {', '.join(names)}"
        )
    return found[names.index(wish)]


@cache
def target() -> tuple[str, str, str]:
    """What is compiled for: LLVM's triple, processor and features; `build.py` tells numba.

    That is this machine unless numba's own variables say otherwise: NUMBA_CPU_NAME,
    NUMBA_CPU_FEATURES and NUMBA_ENABLE_AVX.
    """
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    cpu = os.environ.get("NUMBA_CPU_NAME")
    features = os.environ.get("NUMBA_CPU_FEATURES", "" if cpu == "generic" else None)
    if features is None:
        features = _own_features(avx=os.environ.get("NUMBA_ENABLE_AVX") != "0")
    return llvm.get_process_triple(), cpu or llvm.get_host_cpu_name(), features


def _own_features(avx: bool) -> str:
    """This machine's, as LLVM writes them."""
    try:
        found = llvm.get_host_cpu_features()
    except RuntimeError:
        return ""  # LLVM can't tell, on this system
    if not avx:
        found.update({name: False for name in found if name.startswith("avx")})
    return str(found.flatten())


def prefetch_distance(target: tuple[str, str, str]) -> int:
    """How many bytes before they are needed weights are asked for; 0: they aren't.

    A processor that sees a run of memory being read fetches what comes next, but Intel's stop at
    the end of a page of 4 kB. Two pages ahead, with 2 threads on an Emerald Rapids, q8 decodes 1.41
    times as fast, bf16 1.25, q4 1.24, and 16 streams 1.16 (q4) to 1.55 (f32); 1 kB ahead it is 1.0
    to 1.1. On Zen 4, asking some lines ahead was up to 60 % slower. Arm's weren't measured.
    """
    triple, name, _ = target
    intel = triple.startswith("x86_64") and not name.startswith(("znver", "bdver", "btver"))
    return 8192 if intel else 0


JIT = os.environ.get("NUMBA_DISABLE_JIT", "") in ("", "0")
"""False under NUMBA_DISABLE_JIT=1, where kernels are plain Python on one thread."""

KIND = choose(os.environ.get(VARIABLE, "").lower(), target()) if JIT else KINDS[-1]
"""The kind that kernels are compiled for; decided once, at import."""

NAME = KIND.name if JIT else "python"

PREFETCH_DISTANCE = prefetch_distance(target()) if JIT else 0

_NATIVE = instructions_of(*target()) if JIT else frozenset()
_HAS_FMA = bool(_NATIVE & {"vfmadd", "fmla"})
_HAS_HALVES = bool(_NATIVE & {"vcvtph2ps", "fcvtl"})


# --- floats, where a processor lacks an instruction that LLVM would call a function for ----------


def fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """a · b + c, rounded once."""
    return next(fma_each(builder, iter([(a, b, c)])))


def fma_each(builder: Any, sums: Iterator[tuple[Any, Any, Any]]) -> Iterator[Any]:
    """a · b + c of each (a, b, c), rounded once; without the instruction as `fused.py` has it."""
    if not _HAS_FMA:
        return iter(fused.fma_each(builder, list(sums)))
    return (call(builder, "llvm.fma.v16f32", F32X16, *three) for three in sums)


def widen_halves(builder: Any, halves: Any) -> Any:
    """Sixteen float16s as float32, exactly."""
    if _HAS_HALVES:
        return builder.fpext(halves, F32X16)
    bits = builder.zext(builder.bitcast(halves, I16X16), I32X16)
    sign = builder.shl(builder.and_(bits, constant(I32X16, 0x8000)), constant(I32X16, 16))
    magnitude = builder.shl(builder.and_(bits, constant(I32X16, 0x7FFF)), constant(I32X16, 13))
    # The exponent's bias differs by 112; multiplying does denormals as well.
    scaled = builder.fmul(builder.bitcast(magnitude, F32X16), constant(F32X16, 2.0**112))
    endless = builder.icmp_signed(">=", magnitude, constant(I32X16, 0x7C00 << 13))
    bits = builder.bitcast(scaled, I32X16)
    bits = builder.select(endless, builder.or_(bits, constant(I32X16, 0x7F800000)), bits)
    return builder.bitcast(builder.or_(bits, sign), F32X16)


def narrow_to_halves(builder: Any, values: Any) -> Any:
    """Sixteen float32s as float16, to nearest, ties to even; see `numbers.float_to_half`."""
    if _HAS_HALVES:
        return builder.fptrunc(values, ir.VectorType(ir.HalfType(), 16))
    bits = builder.bitcast(values, I32X16)
    sign = builder.and_(builder.lshr(bits, constant(I32X16, 16)), constant(I32X16, 0x8000))
    size = builder.and_(bits, constant(I32X16, 0x7FFFFFFF))
    odd = builder.and_(builder.lshr(size, constant(I32X16, 13)), constant(I32X16, 1))
    rounded = builder.add(builder.add(size, constant(I32X16, 0xFFF)), odd)
    normal = builder.sub(builder.lshr(rounded, constant(I32X16, 13)), constant(I32X16, 112 << 10))
    # Below 2⁻¹⁴ the result counts 2⁻²⁴s: adding 0.5 leaves that count in the lowest bits.
    count = builder.fadd(builder.bitcast(size, F32X16), constant(F32X16, 0.5))
    small = builder.sub(builder.bitcast(count, I32X16), constant(I32X16, 0x3F000000))
    result = builder.select(
        builder.icmp_signed("<", size, constant(I32X16, 0x38800000)), small, normal
    )
    huge = builder.icmp_signed(">=", size, constant(I32X16, 0x477FF000))
    result = builder.select(huge, constant(I32X16, 0x7C00), result)
    nan = builder.icmp_signed(">", size, constant(I32X16, 0x7F800000))
    result = builder.select(nan, constant(I32X16, 0x7E00), result)
    narrow = builder.trunc(builder.or_(result, sign), I16X16)
    return builder.bitcast(narrow, ir.VectorType(ir.HalfType(), 16))
