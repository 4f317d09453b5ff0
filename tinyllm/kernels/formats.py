"""Weight formats, a record each: all that packing, multiplying and choosing need to know of one.

A new format is a record here, its functions in `layout.py` and `quantize.py`, and its kernels in
`jit.py` (`matmul_NAME`, `embed_NAME`) and `simd.py` (`matmul_NAME`), or the modules beside them.

What integers of 8 and 4 bits are multiplied with has 16 bits (`layout.Int16Rows`): then the answers
are those of the weights. `q8a8` and `q4a8` are the same weights with activations of 8 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tinyllm.files import blocks
from tinyllm.kernels import layout, mixture, quantize
from tinyllm.kernels.memory import huge_zeros

Dtype = Literal["f32", "bf16", "q8", "q4", "gguf", "q8a8", "q4a8"]
Asked = Literal["auto", Dtype]
"""What a user may ask for: a format, or the checkpoint's own (`own_format.py`)."""

Components = tuple[NDArray[Any], ...]
"""A matrix in a format, its rows in order: float32 values, or integers and their scales."""


def stack_of_equal(matrices: Iterable[Any], n: int) -> Any:
    """Matrices that take the same room, one behind the other; no more than one is held twice."""
    whole: Any = None
    for i, matrix in enumerate(matrices):
        if whole is None:
            whole = type(matrix)(*(huge_zeros((n, *a.shape), a.dtype) for a in matrix))
        for stack, array in zip(whole, matrix, strict=True):
            stack[i] = array
    return whole


@dataclass(frozen=True)
class Format:
    """How weights are held, and what they are multiplied with."""

    name: Dtype
    weights: str  # the format that has these weights first: they are packed once, and kept by that
    packed: type  # a matrix in the kernels' layout
    activations: type  # what it is multiplied with
    empty_rows: Callable[[int, int], Any]  # (tokens, width) → room for those
    put: str  # the kernel that fills them
    bytes_per_weight: float
    arithmetic: Literal["int8", "f32"]  # which of the machine's peaks its products are held to
    products: int  # of that arithmetic, that a weight and an activation take
    kv_dtype: Literal["f16", "f32"]  # of the KV cache, unless asked otherwise
    table: str  # the format of the embedding and the head, of which every rounding is seen
    round: Callable[[NDArray[np.float32]], Components]
    pack: Callable[..., Any]  # parts → the kernels' layout, without the layer axis
    unpack: Callable[[Any, int], Components]  # … and back, so many rows
    restore: Callable[..., NDArray[np.float32]]  # parts → what they stand for
    carry: Mapping[str, Callable[[Any], Components]] = field(default_factory=dict)
    """A kind of a GGUF file's blocks (`files.blocks.Blocks`) → the same parts, unrounded."""
    stack: Callable[[Iterable[Any], int], Any] = stack_of_equal
    """Packed matrices, and how many → one with a layer axis."""

    def matrix(self, weight: NDArray[np.float32]) -> Any:
        """One matrix, (rows, inputs), in the kernels' layout, without the layer axis."""
        return self.pack(*self.round(weight))

    def stands_for(self, packed: Any, n_rows: int) -> NDArray[np.float32]:
        """What a packed matrix holds, (n_rows, inputs)."""
        return self.restore(*self.unpack(packed, n_rows))


def _as_it_is(weight: NDArray[Any]) -> Components:
    return (weight,)


def _alone(unpack: Callable[[Any, int], NDArray[Any]]) -> Callable[[Any, int], Components]:
    return lambda packed, n_rows: (unpack(packed, n_rows),)


def _carry_q4(stored: Any) -> Components:
    minimums = stored.mins
    if minimums is None:  # Q4_0: scale · (nibble - 8); -8 · scale is exact
        minimums = (stored.scales.astype(np.float32) * -8).astype(np.float16)
    return quantize.split_nibbles(stored.q), stored.scales, minimums


# What the formats of floats have in common, and those of integers.
_FLOATS: dict[str, Any] = {
    "activations": layout.F32Rows,
    "empty_rows": layout.empty_f32_rows,
    "put": "put_f32",
    "arithmetic": "f32",
    "products": 1,
    "restore": np.asarray,
}
_INTEGERS: dict[str, Any] = {
    "activations": layout.Int16Rows,
    "empty_rows": layout.empty_int16_rows,
    "put": "put_int16",
    "arithmetic": "int8",
    "products": 2,
    "kv_dtype": "f16",
    "table": "q8",
}

_F32 = Format(
    name="f32",
    weights="f32",
    packed=layout.F32,
    bytes_per_weight=4,
    **_FLOATS,
    kv_dtype="f32",
    table="f32",
    round=_as_it_is,
    pack=quantize.pack_f32,
    unpack=_alone(quantize.unpack_f32),
)
_BF16 = Format(
    name="bf16",
    weights="bf16",
    packed=layout.BF16,
    bytes_per_weight=2,
    **_FLOATS,
    kv_dtype="f16",
    table="bf16",
    round=_as_it_is,  # while packing
    pack=quantize.pack_bf16,
    unpack=_alone(quantize.unpack_bf16),
)
_Q8 = Format(
    name="q8",
    weights="q8",
    packed=layout.Q8,
    bytes_per_weight=layout.Q8_BYTES / (layout.GROUP * layout.BLOCK),
    **_INTEGERS,
    round=quantize.quantize_q8,
    pack=quantize.pack_q8,
    unpack=quantize.unpack_q8,
    restore=quantize.dequantize_q8,
    carry={"Q8_0": lambda stored: (stored.q, stored.scales)},
)
_Q4 = Format(
    name="q4",
    weights="q4",
    packed=layout.Q4,
    bytes_per_weight=layout.Q4_BYTES / (layout.GROUP * layout.BLOCK),
    **_INTEGERS,
    round=quantize.quantize_q4,
    pack=quantize.pack_q4,
    unpack=quantize.unpack_q4,
    restore=quantize.dequantize_q4,
    carry={"Q4_0": _carry_q4, "Q4_1": _carry_q4},
)
_GGUF = Format(
    name="gguf",
    weights="gguf",
    packed=mixture.Mixture,
    bytes_per_weight=layout.Q8_BYTES / (layout.GROUP * layout.BLOCK),  # at most
    **_INTEGERS
    | {
        "activations": mixture.HalvedRows,
        "empty_rows": mixture.empty_halved_rows,
        "put": "put_halved",
        "table": "gguf",
    },
    round=mixture.round_to_8_bits,
    pack=mixture.pack,
    unpack=mixture.unpack,
    restore=mixture.restore,
    carry=dict.fromkeys(blocks.KINDS, mixture.carry),
    stack=mixture.stack,
)


def _with_8_bits(form: Format) -> Format:
    """The same weights, with activations of 8 bits: quicker to multiply, further from float32."""
    name: Any = f"{form.name}a8"
    return replace(
        form,
        name=name,
        activations=layout.Int8Rows,
        empty_rows=layout.empty_int8_rows,
        put="put_int8",
        products=1,
    )


FORMATS: dict[str, Format] = {
    record.name: record
    for record in (_F32, _BF16, _Q8, _Q4, _GGUF, _with_8_bits(_Q8), _with_8_bits(_Q4))
}


def format_of(name: str) -> Format:
    """A format by its name. Raises ValueError that names them all."""
    if name not in FORMATS:
        raise ValueError(f"dtype must be one of {', '.join(FORMATS)}, not {name!r}")
    return FORMATS[name]


def with_8_bit_activations(name: Dtype) -> Dtype:
    """The format of the same weights with activations of 8 bits; itself where there is none."""
    quick: Any = f"{name}a8"
    return quick if quick in FORMATS else name
