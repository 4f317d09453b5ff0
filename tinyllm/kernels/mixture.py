"""A GGUF file's own blocks, of several kinds in one matrix, as the kernels read them.

What people download (`Q4_K_M`, `Q5_K_M` …) holds tensors of several kinds, and a stack of layers or
a joined matrix (`qkv`) holds rows of more than one. So a kind belongs to a block of 16 rows. All
numbers are the file's: integers of 4 … 8 bits and their scales, in another order.

| kind | file's kinds | a group of 32 inputs in bytes | value                         |
|------|--------------|-------------------------------|-------------------------------|
| Q4   | Q4_0, Q4_1   | nibbles, scale, minimum       | scale · q + minimum           |
| Q5   | Q5_0, Q5_1   | nibbles, fifth bits, the same | scale · q + minimum           |
| Q8   | Q8_0         | as `layout.Q8`                | scale · (q - 128)             |
| Q4K  | Q4_K         | nibbles                       | d · scale · q + d_min · min   |
| Q5K  | Q5_K         | nibbles, fifth bits           | d · scale · q + d_min · min   |
| Q6K  | Q6_K         | nibbles, two higher bits      | d · scale · (q - 32)          |

Q6K has a scale for 16 inputs. Of the last three, 8 groups make a super-block: their bytes, then
(16 rows each) 8 scales and 8 minimums of a byte, d and d_min (its sign turned) in float16; or 16
scales and d. Products of d and such scales have 18 bits at most, so they are exact in float32.

Nibbles lie as in `layout.Q4`. Bit j of byte 4 · row + i of the fifth bits belongs to byte vector j:
inputs 4·j + i. Of Q6K, vector j has bits 2·(j mod 4) and the next of the (j div 4)-th 64 bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinyllm.kernels.layout import BLOCK, GROUP, TILE, Array
from tinyllm.kernels.memory import huge_zeros
from tinyllm.kernels.quantize import quantize_q8, split_nibbles

Q4, Q5, Q8, Q4K, Q5K, Q6K = range(6)
N_KINDS = 6
LARGEST = (15, 31, 255, 15, 31, 63)  # integer of each kind
FIRST_SUPER = Q4K
SUPER_GROUPS = 8  # groups in a super-block

NIBBLES = GROUP * BLOCK // 2  # bytes of a group's nibbles
HIGH = 4 * BLOCK  # … and of one more bit of each weight
Q5_SCALES = NIBBLES + HIGH
Q5_BYTES = Q5_SCALES + 4 * BLOCK
GROUP_BYTES = (NIBBLES, NIBBLES + HIGH, GROUP * BLOCK, NIBBLES, NIBBLES + HIGH, NIBBLES + 2 * HIGH)
BEHIND = (4 * BLOCK, 4 * BLOCK, 2 * BLOCK, 0, 0, 0)  # a group's scales and minimums

# Where in a super-block things begin.
Q4K_SCALES = SUPER_GROUPS * GROUP_BYTES[Q4K]
Q5K_SCALES = SUPER_GROUPS * GROUP_BYTES[Q5K]
Q6K_SCALES = SUPER_GROUPS * GROUP_BYTES[Q6K]
TO_MINIMUMS = SUPER_GROUPS * BLOCK  # from the scales on
TO_D = 2 * SUPER_GROUPS * BLOCK
TO_D_MIN = TO_D + 2 * BLOCK
Q4K_BYTES = Q4K_SCALES + TO_D_MIN + 2 * BLOCK
Q5K_BYTES = Q5K_SCALES + TO_D_MIN + 2 * BLOCK
Q6K_BYTES = Q6K_SCALES + TO_D + 2 * BLOCK
SUPER_BYTES = (0, 0, 0, Q4K_BYTES, Q5K_BYTES, Q6K_BYTES)

Parts = tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]
"""A matrix's rows: kinds (rows,), integers (rows, K) from 0 up, scales (rows, G, 8).

The bytes of a group's scales: scale, minimum in float16; or, as a super-block has them, scale and
second scale, minimum, 0, d, d_min.
"""


class Mixture(NamedTuple):
    """Blocks of several kinds; see above."""

    values: Array  # (1, bytes) uint8: all layers' blocks, one behind the other
    kinds: Array  # (L, B) uint8
    starts: Array  # (L, B) int64: where in `values` a block begins


class HalvedRows(NamedTuple):
    """`layout.Int16Rows`, and sums of each half group for kinds that have a scale for 16 inputs."""

    values: Array  # (tiles, G, 8, 32) int8
    rest: Array  # (tiles, G, 8, 32) int8
    scales: Array  # (tiles, G, 8) float32
    starts: Array  # (tiles, G, 8) int32: -128 · Σ (254 · values + rest)
    sums: Array  # (tiles, G, 8) float32: scale · Σ (254 · values + rest)
    halves: Array  # (tiles, G, 2, 8) int32: -32 · Σ (254 · values + rest) over 16 inputs


def empty_halved_rows(n_rows: int, width: int) -> HalvedRows:
    """Room for `n_rows` tokens of `width` inputs; zeros."""
    groups = (-(-n_rows // TILE), width // GROUP)
    values, scales = (
        np.zeros((*groups, TILE, GROUP), np.int8),
        np.zeros((*groups, TILE), np.float32),
    )
    starts, halves = np.zeros((*groups, TILE), np.int32), np.zeros((*groups, 2, TILE), np.int32)
    return HalvedRows(values, np.zeros_like(values), scales, starts, np.zeros_like(scales), halves)


# --- a file's blocks, or float32, as parts --------------------------------------------------------


def _parts(kind: int, q: NDArray[Any], scales: Sequence[NDArray[Any] | None]) -> Parts:
    """Integers (rows, K), and up to four (rows, G) arrays of 2 bytes an item."""
    rows = len(q)
    bytes_ = np.zeros((rows, q.shape[1] // GROUP, 8), np.uint8)
    for i, array in enumerate(scales):
        if array is not None:
            pairs = np.ascontiguousarray(array).view(np.uint8).reshape(rows, -1, 2)
            bytes_[..., 2 * i : 2 * i + 2] = pairs
    return np.full(rows, kind, np.uint8), q.view(np.uint8), bytes_


def round_to_8_bits(weight: NDArray[np.float32]) -> Parts:
    """float32, (rows, K): what a file has in no kind that is known here."""
    values, scales = quantize_q8(weight)
    return _parts(Q8, values.view(np.uint8) ^ 0x80, [scales])


def carry(blocks: Any) -> Parts:
    """A `files.blocks.Blocks` of any of its kinds, unrounded."""
    name, q, scales, mins = blocks.kind, blocks.q, blocks.scales, blocks.mins
    if name == "Q8_0":
        return _parts(Q8, q.view(np.uint8) ^ 0x80, [scales])
    if name in ("Q4_0", "Q4_1", "Q5_0", "Q5_1"):
        kind, middle = (Q4, -8) if name.startswith("Q4") else (Q5, -16)
        if mins is None:  # a power of two times the scale is exact
            mins = (scales.astype(np.float32) * middle).astype(np.float16)
        return _parts(kind, split_nibbles(q) if kind == Q4 else q, [scales, mins])
    d = np.repeat(blocks.d, SUPER_GROUPS, axis=1)
    if name == "Q6_K":
        return _parts(Q6K, q, [np.ascontiguousarray(scales), None, d])
    d_min = np.repeat(-blocks.d_min, SUPER_GROUPS, axis=1)
    kind = Q4K if name == "Q4_K" else Q5K
    return _parts(kind, q, [scales.astype("<u2"), mins.astype("<u2"), d, d_min])


def restore(kinds: NDArray[np.uint8], q: NDArray[np.uint8], scales: NDArray[np.uint8]) -> Array:
    """Parts → what they stand for, (rows, K) float32."""
    halves = np.ascontiguousarray(scales).view("<f2").astype(np.float32)  # (rows, G, 4)
    weight = np.zeros(q.shape, np.float32).reshape(*scales.shape[:2], 2, GROUP // 2)
    integers = q.reshape(weight.shape).astype(np.float32)
    for kind in np.unique(kinds):
        of = kinds == kind
        x, h, bytes_ = integers[of], halves[of], scales[of]
        if kind == Q8:
            weight[of] = (x - 128) * h[..., 0, None, None]
        elif kind < FIRST_SUPER:
            weight[of] = x * h[..., 0, None, None] + h[..., 1, None, None]
        elif kind == Q6K:
            steps = bytes_[..., :2].view(np.int8).astype(np.float32) * h[..., 2, None]
            weight[of] = (x - 32) * steps[..., None]
        else:
            steps = (bytes_[..., 0] * h[..., 2])[..., None, None]
            weight[of] = x * steps + (bytes_[..., 2] * h[..., 3])[..., None, None]
    return weight.reshape(q.shape)


# --- parts in the kernels' layout -----------------------------------------------------------------


def pack(kinds: NDArray[np.uint8], q: NDArray[np.uint8], scales: NDArray[np.uint8]) -> Mixture:
    """Parts → interleaved, without the layer axis: (bytes,), (B,), (B,).

    Raises:
        ValueError: inputs are no multiple of 32, or the 16 rows of a block of two kinds.
    """
    if q.ndim != 2 or q.shape[1] % GROUP:
        raise ValueError(
            f"a matrix with a multiple of {GROUP} inputs is needed, not of shape {q.shape}"
        )
    short = -len(q) % BLOCK
    kinds, q, scales = (
        np.concatenate([a, np.zeros((short, *a.shape[1:]), a.dtype)]) if short else a
        for a in (kinds, q, scales)
    )
    if short:
        kinds[-short:] = kinds[-short - 1]
    of_block = kinds.reshape(-1, BLOCK)
    if (of_block != of_block[:, :1]).any():
        raise ValueError("16 neighbouring rows are of two kinds of blocks")
    n_groups, of_block = scales.shape[1], np.ascontiguousarray(of_block[:, 0])
    sizes = np.array([block_bytes(kind, n_groups) for kind in range(N_KINDS)], np.int64)[of_block]
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)
    values = np.zeros(int(sizes.sum()), np.uint8)
    rows_q = q.reshape(len(of_block), BLOCK, n_groups, GROUP)
    rows_s = scales.reshape(len(of_block), BLOCK, n_groups, 8)
    for kind in np.unique(of_block):
        which = np.flatnonzero(of_block == kind)
        for some in np.array_split(which, -(-len(which) // 256)):  # it takes several times the room
            bytes_ = _blocks(int(kind), rows_q[some], rows_s[some])
            values[starts[some][:, None] + np.arange(bytes_.shape[1])] = bytes_
    return Mixture(values, of_block, starts)


def stack(matrices: Iterable[Mixture], n: int) -> Mixture:
    """Packed matrices, n of them → one with a layer axis.

    Memory is asked for as if every block were of the largest kind; untouched, it takes no room.
    """
    values, end = np.zeros(0, np.uint8), 0
    kinds: list[Array] = []
    starts: list[Array] = []
    for matrix in matrices:
        size = matrix.values.size
        if not kinds:
            values = huge_zeros((2 * n * size,), np.uint8)  # no kind takes twice another's
        values[end : end + size] = matrix.values
        kinds.append(matrix.kinds)
        starts.append(matrix.starts + end)
        end += size
    return Mixture(values[None, :end], np.stack(kinds), np.stack(starts))


def block_bytes(kind: int, n_groups: int) -> int:
    """Of 16 rows of a kind."""
    if kind >= FIRST_SUPER:
        return n_groups // SUPER_GROUPS * SUPER_BYTES[kind]
    return n_groups * (GROUP_BYTES[kind] + BEHIND[kind])


def _blocks(kind: int, q: NDArray[np.uint8], scales: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Blocks of one kind: (b, 16, G, 32) and (b, 16, G, 8) → (b, bytes)."""
    b, _, n_groups, _ = q.shape
    vectors = q.reshape(b, BLOCK, n_groups, 8, 4).transpose(0, 2, 3, 1, 4)  # (b, G, 8, 16, 4)
    if kind == Q8:
        parts: list[Array] = [vectors]
    else:
        parts = [(vectors[:, :, :4] & 15) | (vectors[:, :, 4:] << 4)]
        if kind in (Q5, Q5K):
            bits = (vectors >> 4) << np.arange(8, dtype=np.uint8)[:, None, None]
            parts.append(np.bitwise_or.reduce(bits, axis=2))
        elif kind == Q6K:
            pairs = (vectors >> 4).reshape(b, n_groups, 2, 4, BLOCK, 4)
            pairs = pairs << np.arange(0, 8, 2, dtype=np.uint8)[:, None, None]
            parts.append(np.bitwise_or.reduce(pairs, axis=3))
    turned = scales.transpose(0, 2, 1, 3)  # (b, G, 16, 8)
    if kind < FIRST_SUPER:
        parts.append(turned[..., :2])
        if kind != Q8:
            parts.append(turned[..., 2:4])
        return np.concatenate([p.reshape(b, n_groups, -1) for p in parts], axis=2).reshape(b, -1)
    supers = (b, n_groups // SUPER_GROUPS)
    groups = np.concatenate([p.reshape(b, n_groups, -1) for p in parts], axis=2)
    behind = [turned[..., 0], turned[..., 1 if kind == Q6K else 2]]
    if kind == Q6K:  # the two halves of a group beside each other
        behind = [np.stack(behind, axis=2)]
    firsts = turned[:, ::SUPER_GROUPS]
    halves = [firsts[..., 4:6]] if kind == Q6K else [firsts[..., 4:6], firsts[..., 6:8]]
    return np.concatenate(
        [p.reshape(*supers, -1) for p in (groups, *behind, *halves)], axis=2
    ).reshape(b, -1)


def unpack(packed: Mixture, n_rows: int) -> Parts:
    """Back to parts, (n_rows, …); `packed` without the layer axis."""
    ends = np.append(packed.starts[1:], packed.values.size)
    found = [
        _unblocked(int(kind), packed.values.reshape(-1)[start:end])
        for kind, start, end in zip(packed.kinds, packed.starts, ends, strict=True)
    ]
    q = np.concatenate([block[0] for block in found])[:n_rows]
    scales = np.concatenate([block[1] for block in found])[:n_rows]
    return np.repeat(packed.kinds, BLOCK)[:n_rows], q, scales


def _unblocked(kind: int, bytes_: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The reverse of `_blocks`, of one block: (16, K) and (16, G, 8)."""
    of_group, is_super = GROUP_BYTES[kind], kind >= FIRST_SUPER
    if is_super:
        supers = bytes_.reshape(-1, SUPER_BYTES[kind])
        groups, behind = np.split(supers, [SUPER_GROUPS * of_group], axis=1)
        groups = groups.reshape(-1, of_group)
    else:
        groups, behind = np.split(bytes_.reshape(-1, of_group + BEHIND[kind]), [of_group], axis=1)
    n_groups = len(groups)
    if kind == Q8:
        vectors: Array = groups.reshape(n_groups, 8, BLOCK, 4)
    else:
        both = groups[:, :NIBBLES].reshape(n_groups, 4, BLOCK, 4)
        vectors = np.concatenate([both & 15, both >> 4], axis=1)
        high = groups[:, NIBBLES:]
        if kind in (Q5, Q5K):
            bits = (
                high.reshape(n_groups, 1, BLOCK, 4) >> np.arange(8, dtype=np.uint8)[:, None, None]
            )
            vectors = vectors | ((bits & 1) << 4)
        elif kind == Q6K:
            shifts = np.arange(0, 8, 2, dtype=np.uint8)[:, None, None]
            pairs = high.reshape(n_groups, 2, 1, BLOCK, 4) >> shifts
            vectors = vectors | ((pairs & 3) << 4).reshape(vectors.shape)
    q = vectors.transpose(2, 0, 1, 3).reshape(BLOCK, -1)
    scales: Array = np.zeros((n_groups, BLOCK, 8), np.uint8)
    if not is_super:
        n = BEHIND[kind] // BLOCK // 2
        scales[..., : 2 * n] = np.moveaxis(behind.reshape(n_groups, n, BLOCK, 2), 1, 2).reshape(
            n_groups, BLOCK, -1
        )
        return q, scales.transpose(1, 0, 2)
    small = behind[:, :TO_D]
    if kind == Q6K:
        scales[..., :2] = small.reshape(n_groups, 2, BLOCK).transpose(0, 2, 1)
    else:
        pair = small.reshape(-1, 2, SUPER_GROUPS, BLOCK)
        scales[..., 0] = pair[:, 0].reshape(n_groups, BLOCK)
        scales[..., 2] = pair[:, 1].reshape(n_groups, BLOCK)
    halves: Array = behind[:, TO_D:].reshape(len(behind), -1, BLOCK, 2).transpose(0, 2, 1, 3)
    halves = halves.reshape(len(behind), BLOCK, -1)
    scales[..., 4 : 4 + halves.shape[-1]] = np.repeat(halves, SUPER_GROUPS, axis=0)
    return q, scales.transpose(1, 0, 2)
