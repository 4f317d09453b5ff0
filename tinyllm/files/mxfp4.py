"""MXFP4, gpt-oss's weights: groups of 32 4-bit floats times a power of two.

Open Compute Project, Microscaling Formats (MX) 1.0, 2023. A matrix, (rows, inputs), is stored as
blocks (rows, G, 16) bytes, two floats a byte, the low half first, and powers (rows, G) bytes of
exponent + 127; G = inputs / 32.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tinyllm.files.blocks import Blocks

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)  # magnitudes; bit 3 is the sign
FP4 = np.concatenate([E2M1, -E2M1])
HALVES = (2 * FP4 + 12).astype(np.uint8)  # how many halves above -6: 0 … 24
# Powers that a float16 holds, as the step of half a unit and as -12 of them; the latter may not
# round, and is a multiple of the smallest float16.
LOWEST, HIGHEST = -24, 12


def codes(blocks: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The 4 bits of each weight, (rows, inputs)."""
    return np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(len(blocks), -1)


def widen(blocks: NDArray[np.uint8], powers: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The weights, (rows, inputs) float32; exact."""
    rows, groups = powers.shape
    floats = FP4[codes(blocks)].reshape(rows, groups, 32)
    wide = np.ldexp(floats, powers.astype(np.int32)[..., None] - 127)
    matrix: NDArray[np.float32] = wide.reshape(rows, -1).astype(np.float32)
    return matrix


def as_five_bits(blocks: NDArray[np.uint8], powers: NDArray[np.uint8]) -> Blocks | None:
    """The same weights as a GGUF file's Q5_1, exactly: step · (0 … 24) - 12 · step.

    None where a power is out of float16's reach.
    """
    steps = powers.astype(np.int32) - 128  # exponents of half a unit
    if steps.size and (steps.min() < LOWEST or steps.max() > HIGHEST):
        return None
    scales = np.ldexp(np.float32(1), steps).astype(np.float16)
    return Blocks("Q5_1", HALVES[codes(blocks)], scales, (-12 * scales).astype(np.float16))
