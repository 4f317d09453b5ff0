"""A quantised tensor's numbers: as float32, or taken apart into the integers that kernels run on.

What the kinds of blocks mean is the `gguf` package's to know (`gguf.quants`, in numpy, held against
llama.cpp by its authors). Q8_0, Q4_0 and Q4_1 are taken apart here besides: the kernels compute in
these very integers and scales, so that what was published runs with no second rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tinyllm.files.gguf import BlockType

Kind = Literal["Q8_0", "Q4_0", "Q4_1"]


@dataclass(frozen=True)
class Blocks:
    """A matrix (n_out, n_in) in groups of 32 values, G = n_in / 32 of them a row.

    Q8_0   `q` (n_out, n_in) int8;       `scales` (n_out, G) f16;  value = scale · q
    Q4_0   `q` (n_out, G, 16) uint8;     `scales` (n_out, G) f16;  value = scale · (nibble − 8)
    Q4_1   as Q4_0, and `mins` (n_out, G) f16;                     value = scale · nibble + min

    Byte j of a group of nibbles holds value j in its low half and value j + 16 in its high half.
    """

    kind: Kind
    q: NDArray[np.int8] | NDArray[np.uint8]
    scales: NDArray[np.float16]
    mins: NDArray[np.float16] | None = None


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
    if block.name not in ("Q8_0", "Q4_0", "Q4_1"):
        return None
    groups = (*shape[:-1], shape[-1] // block.values)
    packed = raw.reshape(*groups, block.nbytes)  # (…, G, nbytes)

    def half(at: int) -> NDArray[np.float16]:
        return np.ascontiguousarray(packed[..., at : at + 2]).view("<f2").reshape(groups)

    if block.name == "Q8_0":
        q = np.ascontiguousarray(packed[..., 2:]).view(np.int8).reshape(shape)
        return Blocks("Q8_0", q, half(0))
    if block.name == "Q4_0":
        return Blocks("Q4_0", np.ascontiguousarray(packed[..., 2:]), half(0))
    return Blocks("Q4_1", np.ascontiguousarray(packed[..., 4:]), half(0), half(2))
