"""A quantised tensor's numbers: as float32, or taken apart into the integers that kernels run on.

What the kinds of blocks mean is the `gguf` package's to know (`gguf.quants`, in numpy, held against
llama.cpp by its authors). The kinds that people use are taken apart here besides: the kernels
compute in these very integers and scales, so that what was published runs with no second rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tinyllm.files.gguf import BlockType

Kind = Literal["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K"]
SUPER = 256  # inputs of a K-quant's block


@dataclass(frozen=True)
class Blocks:
    """A matrix (n_out, n_in) in groups of 32 values, G = n_in / 32 of them a row.

    Q8_0   `q` (n_out, n_in) int8;       `scales` (n_out, G) f16;  value = scale · q
    Q4_0   `q` (n_out, G, 16) uint8;     `scales` (n_out, G) f16;  value = scale · (nibble − 8)
    Q4_1   as Q4_0, and `mins` (n_out, G) f16;                     value = scale · nibble + min
    Q5_0   `q` (n_out, n_in) uint8;      `scales` (n_out, G) f16;  value = scale · (q − 16)
    Q5_1   as Q5_0, and `mins` (n_out, G) f16;                     value = scale · q + min
    Q4_K   `q` (n_out, n_in) uint8; `scales` and `mins` (n_out, G) uint8 are multiplied by `d` and
           `d_min`, (n_out, n_in / 256) f16;             value = d · scale · q − d_min · min
    Q5_K   as Q4_K, with q up to 31
    Q6_K   `q` (n_out, n_in) uint8; `scales` (n_out, 2 · G) int8, one for 16 values, and `d`;
                                                         value = d · scale · (q − 32)

    Byte j of a group of nibbles holds value j in its low half and value j + 16 in its high half.
    """

    kind: Kind
    q: NDArray[np.int8] | NDArray[np.uint8]
    scales: NDArray[Any]
    mins: NDArray[Any] | None = None
    d: NDArray[np.float16] | None = None
    d_min: NDArray[np.float16] | None = None

    def rows(self, order: NDArray[np.intp]) -> Blocks:
        """The same with its rows in another order."""
        arrays = (self.q, self.scales, self.mins, self.d, self.d_min)
        ordered: Any = [None if array is None else array[order] for array in arrays]
        return Blocks(self.kind, *ordered)


def values(raw: NDArray[np.uint8], block: BlockType, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The numbers of a tensor's bytes, (nbytes,) uint8: float32 in the tensor's shape.

    F32 is a view of the bytes. Infinities and NaNs are handed on as they are.
    """
    if block.name == "F32":
        return raw.view("<f4").reshape(shape)
    rows = raw.reshape(-1, shape[-1] // block.values * block.nbytes)
    if block.name == "F16":
        return rows.view("<f2").astype(np.float32).reshape(shape)
    # Here, for it takes a while to import, and the kinds that people use are read without it.
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    with np.errstate(invalid="ignore", over="ignore"):
        return dequantize(rows, GGMLQuantizationType[block.name]).reshape(shape)


def take_apart(raw: NDArray[np.uint8], block: BlockType, shape: tuple[int, ...]) -> Blocks | None:
    """A tensor's bytes, (nbytes,) uint8, as integers and scales; None for any other kind."""
    take = _TAKERS.get(block.name)
    if take is None:
        return None
    return take(raw.reshape(shape[0], shape[-1] // block.values, block.nbytes), shape)


def _half(packed: NDArray[np.uint8], at: int) -> NDArray[np.float16]:
    """The float16 at byte `at` of each block, (n_out, blocks)."""
    return np.ascontiguousarray(packed[..., at : at + 2]).view("<f2")[..., 0]


def _q8_0(packed: NDArray[np.uint8], shape: tuple[int, ...]) -> Blocks:
    q = np.ascontiguousarray(packed[..., 2:]).view(np.int8).reshape(shape)
    return Blocks("Q8_0", q, _half(packed, 0))


def _q4_0(packed: NDArray[np.uint8], shape: tuple[int, ...]) -> Blocks:
    del shape
    return Blocks("Q4_0", np.ascontiguousarray(packed[..., 2:]), _half(packed, 0))


def _q4_1(packed: NDArray[np.uint8], shape: tuple[int, ...]) -> Blocks:
    del shape
    return Blocks("Q4_1", np.ascontiguousarray(packed[..., 4:]), _half(packed, 0), _half(packed, 2))


def _five_bits(packed: NDArray[np.uint8], at: int) -> NDArray[np.uint8]:
    """32 values a block: their fifth bits in 4 bytes from `at` on, then 16 bytes of nibbles."""
    fifths = np.unpackbits(packed[..., at : at + 4], axis=-1, bitorder="little")
    nibbles = packed[..., at + 4 :]
    low = np.concatenate([nibbles & 15, nibbles >> 4], axis=-1)
    q: NDArray[np.uint8] = (low | (fifths << 4)).reshape(len(packed), -1)
    return q


def _q5_0(packed: NDArray[np.uint8], shape: tuple[int, ...]) -> Blocks:
    del shape
    return Blocks("Q5_0", _five_bits(packed, 2), _half(packed, 0))


def _q5_1(packed: NDArray[np.uint8], shape: tuple[int, ...]) -> Blocks:
    del shape
    return Blocks("Q5_1", _five_bits(packed, 4), _half(packed, 0), _half(packed, 2))


def _six_bit_pairs(packed: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A K-quant's 12 bytes as 8 scales and 8 minimums of 6 bits: (n_out, G) each."""
    first, second, rest = packed[..., :4], packed[..., 4:8], packed[..., 8:]
    scales = np.concatenate([first & 63, (rest & 15) | (first >> 6 << 4)], axis=-1)
    minimums = np.concatenate([second & 63, (rest >> 4) | (second >> 6 << 4)], axis=-1)
    return scales.reshape(len(packed), -1), minimums.reshape(len(packed), -1)


def _nibbles_of_64(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """128 bytes as 4 · (32 low nibbles, 32 high ones): (n_out, blocks, 4, 2, 32)."""
    runs = packed.reshape(*packed.shape[:2], 4, 1, 32)
    return np.concatenate([runs & 15, runs >> 4], axis=3)


def _q4_k(packed: NDArray[np.uint8], shape: tuple[int, ...]) -> Blocks:
    q = _nibbles_of_64(packed[..., 16:]).reshape(shape)
    halves = _half(packed, 0), _half(packed, 2)
    return Blocks("Q4_K", q, *_six_bit_pairs(packed[..., 4:16]), *halves)


def _q5_k(packed: NDArray[np.uint8], shape: tuple[int, ...]) -> Blocks:
    fifths = packed[..., None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1
    nibbles = _nibbles_of_64(packed[..., 48:])
    q = nibbles | (fifths.reshape(nibbles.shape) << 4)
    halves = _half(packed, 0), _half(packed, 2)
    return Blocks("Q5_K", q.reshape(shape), *_six_bit_pairs(packed[..., 4:16]), *halves)


def _q6_k(packed: NDArray[np.uint8], shape: tuple[int, ...]) -> Blocks:
    n = packed.shape[:2]
    # Twice 64 bytes of nibbles, low ones first, and 32 bytes of four times two bits.
    runs = packed[..., :128].reshape(*n, 2, 1, 64)
    nibbles = np.concatenate([runs & 15, runs >> 4], axis=3).reshape(*n, 2, 4, 32)
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    high = packed[..., 128:192].reshape(*n, 2, 1, 32) >> shifts & 3
    scales = np.ascontiguousarray(packed[..., 192:208]).view(np.int8).reshape(len(packed), -1)
    return Blocks("Q6_K", (nibbles | (high << 4)).reshape(shape), scales, None, _half(packed, 208))


_TAKERS: dict[str, Callable[[NDArray[np.uint8], tuple[int, ...]], Blocks]] = {
    "Q8_0": _q8_0,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}
KINDS = tuple(_TAKERS)
