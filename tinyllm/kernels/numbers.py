"""Numbers one at a time: float16, bfloat16, eˣ; every rounding is spelled out.

`exp` has no branches, so that a loop over it becomes vectors; `simd.exp` is the same polynomial in
fused steps.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tinyllm.kernels.build import kernel

LOG2_E = np.float32(1.4426950408889634)
LN2_HIGH = np.float32(0.693359375)  # exact in few bits, so that n · LN2_HIGH is exact too
LN2_LOW = np.float32(-2.12194440e-4)
ROUNDER = np.float32(12582912.0)  # 1.5 · 2²³: adding it leaves no bits behind the point
EXP_LOWEST = np.float32(-87.0)
EXP_HIGHEST = np.float32(88.0)

# eʳ for |r| <= ln 2 / 2: ((((((C5 · r + C4) · r + C3) · r + C2) · r + C1) · r + C0) · r² + r + 1,
# Cephes' expf (https://www.netlib.org/cephes/).
C0, C1, C2 = np.float32(5.0000001201e-1), np.float32(1.6666665459e-1), np.float32(4.1665795894e-2)
C3, C4, C5 = np.float32(8.3334519073e-3), np.float32(1.3981999507e-3), np.float32(1.9875691500e-4)


@kernel
def exp(x: np.float32) -> np.float32:
    """eˣ to 2 units in the last place; exactly 1 at 0, and 0 below -87; e⁸⁸ above 88.

    2ⁿ · eʳ with x = n · ln 2 + r (Cody & Waite 1980). Adding 1.5 · 2²³ rounds to the integer n and
    leaves it in the low bits, from where it is moved to the exponent's place.
    """
    clipped = EXP_LOWEST if x < EXP_LOWEST else x  # a NaN stays one
    clipped = EXP_HIGHEST if clipped > EXP_HIGHEST else clipped
    shifted = np.float32(clipped * LOG2_E + ROUNDER)
    n = np.float32(shifted - ROUNDER)
    r = np.float32(np.float32(clipped - n * LN2_HIGH) - n * LN2_LOW)
    p = C5 * r + C4
    p = p * r + C3
    p = p * r + C2
    p = p * r + C1
    p = p * r + C0
    p = np.float32(p * r * r + r + np.float32(1.0))
    exponent = np.int32(shifted.view(np.int32) << np.int32(23))
    power = np.int32(p.view(np.int32) + exponent).view(np.float32)
    return np.float32(0.0) if x < EXP_LOWEST else power


@kernel
def half_to_float(half: int) -> np.float32:
    """float16, given as its bits, to float32."""
    sign, exponent, mantissa = half >> 15, (half >> 10) & 31, half & 1023
    if exponent == 31:
        bits = 0x7F800000 | (mantissa << 13)
    elif exponent:
        bits = ((exponent + 112) << 23) | (mantissa << 13)
    else:  # zero and denormals
        value = np.float32(mantissa) * np.float32(2.0**-24)
        return -value if sign else value
    magnitude = np.int32(bits).view(np.float32)
    return -magnitude if sign else magnitude


@kernel
def float_to_half(value: np.float32) -> np.int64:
    """float32 to the bits of the nearest float16, ties to even."""
    bits = np.int64(np.float32(value).view(np.int32))
    sign = (bits >> 16) & 0x8000
    magnitude = bits & 0x7FFFFFFF
    if magnitude > 0x7F800000:  # NaN
        return sign | 0x7E00
    if magnitude >= 0x477FF000:  # from 65520 on the nearest is infinity
        return sign | 0x7C00
    if magnitude < 0x38800000:  # below 2⁻¹⁴: denormal, a count of 2⁻²⁴
        count = np.float32(abs(value) * np.float32(2.0**24)) + ROUNDER
        return sign | (np.int64(np.float32(count).view(np.int32)) & 0x7FF)
    rounded = magnitude + 0xFFF + ((magnitude >> 13) & 1)
    return sign | ((rounded >> 13) - (112 << 10))


@kernel
def bf16_to_float(bits: Any) -> np.float32:
    """A bfloat16, given as its bits, to float32: it is the upper half of one."""
    return np.int32(np.int32(bits) << 16).view(np.float32)
