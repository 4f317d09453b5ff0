"""Weight formats: f32 → bf16, 8 bits, 4 bits, and into the kernels' layout; and back again.

8 and 4 bits follow GGML's Q8_0 and Q4_1 (https://github.com/ggml-org/ggml): groups of 32 inputs
share a float16 scale, and at 4 bits a float16 minimum too. So blocks from a GGUF file are carried
over as they are, bit for bit; only their order in memory changes.

All functions take one matrix, (rows, inputs), and return arrays without the layer axis.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyllm.kernels.layout import BF16, BLOCK, F32, GROUP, Q4, Q4_SCALES, Q8, Q8_SCALES

Matrix = NDArray[np.float32]


def _blocks(rows: NDArray[Any]) -> NDArray[Any]:
    """(rows, …) → (B, 16, …), the last block filled up with zeros."""
    short = -len(rows) % BLOCK
    if short:
        rows = np.concatenate([rows, np.zeros((short, *rows.shape[1:]), rows.dtype)])
    return rows.reshape(-1, BLOCK, *rows.shape[1:])


def _check_groups(weight: NDArray[Any]) -> None:
    if weight.ndim != 2 or weight.shape[1] % GROUP:
        raise ValueError(
            f"a matrix with a multiple of {GROUP} inputs is needed, not of shape {weight.shape}"
        )


# --- float formats ------------------------------------------------------------------------------


def pack_f32(weight: Matrix) -> F32:
    """(rows, K) float32 → interleaved; values unchanged."""
    _check_groups(weight)
    return F32(np.ascontiguousarray(_blocks(weight).transpose(0, 2, 1)))


def unpack_f32(packed: F32, n_rows: int) -> Matrix:
    """Back to (n_rows, K) float32."""
    return packed.values.transpose(0, 2, 1).reshape(-1, packed.values.shape[1])[:n_rows]


def to_bf16(weight: Matrix) -> NDArray[np.uint16]:
    """Round to the nearest bfloat16, ties to even; the upper 16 bits of each float32."""
    bits = np.ascontiguousarray(weight, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    # A NaN's mantissa could round over into infinity: keep it a NaN.
    rounded = np.where(np.isnan(weight), (bits >> 16) | 0x40, rounded)
    return rounded.astype(np.uint16)


def from_bf16(bits: NDArray[np.uint16]) -> Matrix:
    """bfloat16 → float32, exact."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def pack_bf16(weight: Matrix) -> BF16:
    """(rows, K) float32 → rounded to bfloat16 and interleaved in pairs of inputs."""
    _check_groups(weight)
    blocks = _blocks(to_bf16(weight))
    pairs = blocks.reshape(len(blocks), BLOCK, -1, 2)
    return BF16(np.ascontiguousarray(pairs.transpose(0, 2, 1, 3)))


def unpack_bf16(packed: BF16, n_rows: int) -> Matrix:
    """Back to (n_rows, K) float32."""
    n_blocks, n_pairs = packed.values.shape[:2]
    rows = packed.values.transpose(0, 2, 1, 3).reshape(n_blocks * BLOCK, 2 * n_pairs)
    return from_bf16(rows[:n_rows])


# --- 8 bits -------------------------------------------------------------------------------------


def quantize_q8(weight: Matrix) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Groups of 32 to 8 bits: scale = max|w| / 127; → values (rows, K), scales (rows, G).

    Rounding uses the scale as it is stored, float16, so its rounding error isn't added on top.
    """
    _check_groups(weight)
    groups = weight.reshape(len(weight), -1, GROUP)
    scales = (np.abs(groups).max(axis=-1) / np.float32(127)).astype(np.float16)
    stored = scales.astype(np.float32)[..., None]
    steps = np.divide(groups, stored, out=np.zeros_like(groups), where=stored != 0)
    values = np.clip(np.rint(steps), -127, 127).astype(np.int8)
    return values.reshape(weight.shape), scales


def pack_q8(values: NDArray[np.int8], scales: NDArray[np.float16]) -> Q8:
    """Q8_0 groups, values (rows, K) and scales (rows, G) → interleaved."""
    _check_groups(values)
    blocks = _blocks(values)
    groups = blocks.reshape(len(blocks), BLOCK, -1, GROUP // 4, 4)  # (B, 16, G, 8, 4)
    ordered = np.ascontiguousarray(groups.transpose(0, 2, 3, 1, 4))  # (B, G, 8, 16, 4)
    unsigned = ordered.view(np.uint8)
    unsigned ^= 0x80  # value + 128
    return Q8(_one_stream(unsigned, scales))


def unpack_q8(packed: Q8, n_rows: int) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Back to values (n_rows, K) int8 and scales (n_rows, G) float16."""
    n_blocks, n_groups = packed.values.shape[:2]
    values, scales = _two_parts(packed.values, Q8_SCALES)
    quads = values.reshape(n_blocks, n_groups, GROUP // 4, BLOCK, 4)
    rows = quads.transpose(0, 3, 1, 2, 4).reshape(n_blocks * BLOCK, n_groups * GROUP)
    return (rows ^ 0x80).view(np.int8)[:n_rows], _unpack_halves(scales, n_rows)


def dequantize_q8(values: NDArray[np.int8], scales: NDArray[np.float16]) -> Matrix:
    """scale · value, (rows, K) float32."""
    groups = values.reshape(len(values), -1, GROUP).astype(np.float32)
    weight: Matrix = (groups * scales.astype(np.float32)[..., None]).reshape(values.shape)
    return weight


# --- 4 bits -------------------------------------------------------------------------------------


def quantize_q4(
    weight: Matrix,
) -> tuple[NDArray[np.uint8], NDArray[np.float16], NDArray[np.float16]]:
    """Groups of 32 to 16 levels from their minimum up; → nibbles (rows, K), scales, minimums."""
    _check_groups(weight)
    groups = weight.reshape(len(weight), -1, GROUP)
    low, high = groups.min(axis=-1), groups.max(axis=-1)
    scales = ((high - low) / np.float32(15)).astype(np.float16)
    minimums = low.astype(np.float16)
    stored = scales.astype(np.float32)[..., None]
    above = groups - minimums.astype(np.float32)[..., None]
    steps = np.divide(above, stored, out=np.zeros_like(groups), where=stored != 0)
    nibbles = np.clip(np.rint(steps), 0, 15).astype(np.uint8)
    return nibbles.reshape(weight.shape), scales, minimums


def pack_q4(
    nibbles: NDArray[np.uint8], scales: NDArray[np.float16], minimums: NDArray[np.float16]
) -> Q4:
    """Q4_1 groups, nibbles (rows, K) of 0 … 15 with scales and minimums (rows, G) → interleaved."""
    _check_groups(nibbles)
    blocks = _blocks(nibbles)
    halves = blocks.reshape(len(blocks), BLOCK, -1, 2, GROUP // 8, 4)  # (B, 16, G, half, 4, 4)
    bytes_ = halves[:, :, :, 0] | (halves[:, :, :, 1] << 4)  # (B, 16, G, 4, 4)
    ordered = np.ascontiguousarray(bytes_.transpose(0, 2, 3, 1, 4))  # (B, G, 4, 16, 4)
    return Q4(_one_stream(ordered, scales, minimums))


def unpack_q4(
    packed: Q4, n_rows: int
) -> tuple[NDArray[np.uint8], NDArray[np.float16], NDArray[np.float16]]:
    """Back to nibbles (n_rows, K), scales and minimums (n_rows, G)."""
    n_blocks, n_groups = packed.values.shape[:2]
    values, halves = _two_parts(packed.values, Q4_SCALES)
    bytes_ = values.reshape(n_blocks, n_groups, GROUP // 8, BLOCK, 4)
    rows = bytes_.transpose(0, 3, 1, 2, 4).reshape(n_blocks * BLOCK, n_groups, 1, GROUP // 2)
    nibbles = np.concatenate([rows & 15, rows >> 4], axis=2).reshape(len(rows), -1)
    return (
        nibbles[:n_rows],
        _unpack_halves(halves[..., :BLOCK], n_rows),
        _unpack_halves(halves[..., BLOCK:], n_rows),
    )


def dequantize_q4(
    nibbles: NDArray[np.uint8], scales: NDArray[np.float16], minimums: NDArray[np.float16]
) -> Matrix:
    """scale · nibble + minimum, (rows, K) float32."""
    groups = nibbles.reshape(len(nibbles), -1, GROUP).astype(np.float32)
    weight: Matrix = (
        groups * scales.astype(np.float32)[..., None] + minimums.astype(np.float32)[..., None]
    ).reshape(nibbles.shape)
    return weight


def split_nibbles(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """GGML's Q4_1 bytes, (rows, G, 16) → nibbles (rows, K): the low ones are inputs 0 … 15."""
    halves = np.concatenate([packed & 15, packed >> 4], axis=-1)  # (rows, G, 32)
    return halves.reshape(len(packed), -1)


# --- both ---------------------------------------------------------------------------------------


def _one_stream(values: NDArray[np.uint8], *per_group: NDArray[np.float16]) -> NDArray[np.uint8]:
    """(B, G, …) bytes, and behind each group its float16s, from (rows, G): (B, G, bytes)."""
    parts = [values.reshape(*values.shape[:2], -1)]
    for numbers in per_group:
        turned = _blocks(np.ascontiguousarray(numbers, np.float16)).transpose(0, 2, 1)
        parts.append(np.ascontiguousarray(turned).view(np.uint8))
    return np.concatenate(parts, axis=-1)


def _two_parts(packed: NDArray[Any], size: int) -> tuple[NDArray[Any], NDArray[np.float16]]:
    """The first `size` bytes of each group, and what follows as float16."""
    return packed[..., :size], np.ascontiguousarray(packed[..., size:]).view(np.float16)


def _unpack_halves(packed: NDArray[np.float16], n_rows: int) -> NDArray[np.float16]:
    """(B, G, 16) → (rows, G)."""
    return packed.transpose(0, 2, 1).reshape(-1, packed.shape[1])[:n_rows]
