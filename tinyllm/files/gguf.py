"""GGUF, llama.cpp's one-file model format: read the header, map the tensors, dequantise.

Layout of the file (little-endian; https://github.com/ggml-org/ggml/blob/master/docs/gguf.md):

    "GGUF"  u32 version  u64 n_tensors  u64 n_metadata
    n_metadata × (string key, u32 type, value)
    n_tensors  × (string name, u32 n_dims, n_dims × u64, u32 type, u64 offset)
    padding to `general.alignment`, then the tensors' bytes, each at its offset

Dimensions are written fastest first, so the file's `[in, out]` is numpy's `(out, in)`.

The file is not trusted: every count, length and offset is held against the bytes that are there
before anything is allocated, so a damaged or hostile file ends in a `FetchError`.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinyllm.errors import FetchError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_DIMS = 4  # ggml's own limit
MAX_ARRAY_DEPTH = 4

# Metadata value types: the code of each scalar (struct's and numpy's), by GGUF's number for it.
SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
STRING, ARRAY = 8, 9


class BlockType(NamedTuple):
    """How a tensor's values are stored: `values` of them in `nbytes` bytes, block after block."""

    name: str
    values: int
    nbytes: int


# ggml's numbers for the block types that we read (ggml.h, enum ggml_type).
BLOCK_TYPES = {
    0: BlockType("F32", 1, 4),
    1: BlockType("F16", 1, 2),
    2: BlockType("Q4_0", 32, 2 + 16),  # f16 scale, 32 nibbles
    3: BlockType("Q4_1", 32, 2 + 2 + 16),  # f16 scale, f16 minimum, 32 nibbles
    8: BlockType("Q8_0", 32, 2 + 32),  # f16 scale, 32 int8
    30: BlockType("BF16", 1, 2),
}


@dataclass(frozen=True)
class TensorInfo:
    """One tensor's place in the file. `shape` is numpy's, slowest dimension first."""

    name: str
    shape: tuple[int, ...]
    type: BlockType
    start: int  # byte position in the file
    nbytes: int


class GGUF:
    """An open GGUF file: `metadata` as a dict, `tensors` by name, bytes on demand.

    Use it as a context manager; arrays returned by `raw` and `blocks` are views of the mapped
    file and must not outlive it. Raises `FetchError` on anything that is not a sound GGUF file.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        try:
            with self.path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: mmap of an empty file
            raise FetchError(f"{self.path}: cannot be read as a GGUF file: {error}") from error
        try:
            self._pos = 0
            self.metadata: dict[str, Any] = {}
            self.tensors: dict[str, TensorInfo] = {}
            self._read()
        except BaseException:
            self._map.close()
            raise

    def __enter__(self) -> GGUF:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Unmap the file. Views that are still alive keep the mapping until they go."""
        with contextlib.suppress(BufferError):  # an array still looks: it closes when that goes
            self._map.close()

    # -- the header -----------------------------------------------------------------------------

    def _read(self) -> None:
        if self._bytes(4, "magic") != MAGIC:
            raise self._broken("does not begin with 'GGUF'")
        version = self._scalar("I", "version")
        if version not in VERSIONS:
            raise self._broken(f"has GGUF version {version}; versions 2 and 3 are read")
        n_tensors = self._count("tensor count", smallest=24)
        n_metadata = self._count("metadata count", smallest=13)

        for _ in range(n_metadata):
            key = self._string("a metadata key")
            if key in self.metadata:
                raise self._broken(f"has the metadata key {key!r} twice")
            self.metadata[key] = self._value(self._scalar("I", key), key)

        infos = [self._tensor_info() for _ in range(n_tensors)]

        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20:
            raise self._broken(f"has general.alignment {alignment!r}, not a sensible number")
        data_start = -(-self._pos // alignment) * alignment
        for name, shape, block, offset in infos:
            if name in self.tensors:
                raise self._broken(f"has the tensor {name!r} twice")
            nbytes = math.prod(shape) // block.values * block.nbytes
            start = data_start + offset
            if offset % alignment or start + nbytes > len(self._map):
                raise self._broken(
                    f"is cut short or damaged: tensor {name!r} should fill bytes {start} to "
                    f"{start + nbytes} of {len(self._map)}"
                )
            self.tensors[name] = TensorInfo(name, shape, block, start, nbytes)

    def _tensor_info(self) -> tuple[str, tuple[int, ...], BlockType, int]:
        name = self._string("a tensor name")
        n_dims = self._scalar("I", name)
        if not 1 <= n_dims <= MAX_DIMS:
            raise self._broken(f"gives tensor {name!r} {n_dims} dimensions")
        shape = tuple(self._scalar("Q", name) for _ in range(n_dims))[::-1]
        number = self._scalar("I", name)
        block = BLOCK_TYPES.get(number)
        if block is None:
            known = ", ".join(sorted(b.name for b in BLOCK_TYPES.values()))
            raise self._broken(
                f"stores tensor {name!r} as ggml type {number}, which is not read here "
                f"(read are {known}); take another quantisation of this model"
            )
        if 0 in shape or shape[-1] % block.values:
            raise self._broken(f"gives tensor {name!r} the shape {shape}, no fit for {block.name}")
        return name, shape, block, self._scalar("Q", name)

    # -- primitives: each moves the cursor, none reads past the end ------------------------------

    def _bytes(self, n: int, what: str) -> bytes:
        end = self._pos + n
        if end > len(self._map):
            raise self._broken(f"is cut short: it ends inside {what}")
        chunk = self._map[self._pos : end]
        self._pos = end
        return chunk

    def _scalar(self, code: str, what: str) -> Any:
        return struct.unpack("<" + code, self._bytes(struct.calcsize("<" + code), what))[0]

    def _count(self, what: str, smallest: int) -> int:
        """A u64 count of things that take at least `smallest` bytes each."""
        count: int = self._scalar("Q", what)
        if count * smallest > len(self._map) - self._pos:
            raise self._broken(f"is cut short or damaged: {what} {count} cannot be true")
        return count

    def _string(self, what: str) -> str:
        raw = self._bytes(self._count(f"the length of {what}", smallest=1), what)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._broken(f"has {what} that is not UTF-8: {raw[:40]!r}") from error

    def _value(self, kind: int, key: str, depth: int = 0) -> Any:
        if kind in SCALARS:
            return self._scalar(SCALARS[kind], key)
        if kind == STRING:
            return self._string(f"the value of {key!r}")
        if kind == ARRAY and depth < MAX_ARRAY_DEPTH:
            item: int = self._scalar("I", key)
            if item in SCALARS:
                code = SCALARS[item]
                size = struct.calcsize("<" + code)
                n = self._count(f"the length of {key!r}", smallest=size)
                return np.frombuffer(self._bytes(n * size, key), np.dtype(code).newbyteorder("<"))
            n = self._count(f"the length of {key!r}", smallest=8)
            return [self._value(item, key, depth + 1) for _ in range(n)]
        raise self._broken(f"gives the metadata key {key!r} an unknown type {kind}")

    def _broken(self, what: str) -> FetchError:
        return FetchError(
            f"{self.path} {what}. It is no GGUF file that tinyllm can read; fetch it again."
        )

    # -- the tensors ----------------------------------------------------------------------------

    def __iter__(self) -> Iterator[TensorInfo]:
        return iter(self.tensors.values())

    def raw(self, name: str) -> NDArray[np.uint8]:
        """The tensor's bytes as they lie in the file: (nbytes,) uint8, a view."""
        info = self.tensors[name]
        return np.frombuffer(self._map, np.uint8, info.nbytes, info.start)

    def blocks(self, name: str) -> Blocks:
        """The tensor taken apart into integers, scales and minimums, nothing computed yet."""
        info = self.tensors[name]
        return take_apart(self.raw(name), info.type, info.shape)

    def dequantise(self, name: str) -> NDArray[np.float32]:
        """The tensor's values, float32, in its own shape."""
        return self.blocks(name).values()


@dataclass(frozen=True)
class Blocks:
    """A tensor in its stored form. With G = n_in / 32 groups a row:

    F32, F16, BF16   `plain` (…, n_in) float32 (all three widen exactly)
    Q8_0             `q` (…, n_in) int8;        `scales` (…, G) f16;  value = scale · q
    Q4_0             `q` (…, G, 16) uint8;      `scales` (…, G) f16;  value = scale · (nibble − 8)
    Q4_1             as Q4_0, and `mins` (…, G) f16;                  value = scale · nibble + min

    Byte j of a group of nibbles holds value j in its low half and value j + 16 in its high half.
    """

    kind: str
    plain: NDArray[np.float32] | None = None
    q: NDArray[np.int8] | NDArray[np.uint8] | None = None
    scales: NDArray[np.float16] | None = None
    mins: NDArray[np.float16] | None = None

    def rows(self, order: NDArray[np.intp]) -> Blocks:
        """The same tensor with its rows (first axis) taken in another order."""

        def pick(array: Any) -> Any:
            return None if array is None else np.ascontiguousarray(array[order])

        return Blocks(self.kind, pick(self.plain), pick(self.q), pick(self.scales), pick(self.mins))

    def values(self) -> NDArray[np.float32]:
        """Dequantise to float32, one rounding per operation: first the product, then the sum."""
        if self.plain is not None:
            return self.plain
        assert self.q is not None and self.scales is not None
        scales = self.scales.astype(np.float32)[..., None]  # (…, G, 1)
        if self.kind == "Q8_0":
            grouped = self.q.reshape(*self.scales.shape, 32).astype(np.float32)  # (…, G, 32)
            values = grouped * scales
        else:
            nibbles = np.concatenate([self.q & 15, self.q >> 4], axis=-1)  # (…, G, 32)
            if self.mins is None:
                values = (nibbles.astype(np.float32) - 8) * scales
            else:
                values = nibbles.astype(np.float32) * scales
                values += self.mins.astype(np.float32)[..., None]
        return values.reshape(*values.shape[:-2], -1)


def take_apart(raw: NDArray[np.uint8], block: BlockType, shape: tuple[int, ...]) -> Blocks:
    """Split a tensor's bytes, (nbytes,) uint8, into the arrays of `Blocks`."""
    if block.name == "F32":
        return Blocks("F32", plain=raw.view("<f4").reshape(shape))
    if block.name == "F16":
        return Blocks("F16", plain=raw.view("<f2").astype(np.float32).reshape(shape))
    if block.name == "BF16":  # the upper half of a float32
        wide = raw.view("<u2").astype(np.uint32) << 16
        return Blocks("BF16", plain=wide.view(np.float32).reshape(shape))

    groups = (*shape[:-1], shape[-1] // block.values)
    packed = raw.reshape(*groups, block.nbytes)  # (…, G, nbytes)

    def half(at: int) -> NDArray[np.float16]:
        return np.ascontiguousarray(packed[..., at : at + 2]).view("<f2").reshape(groups)

    if block.name == "Q8_0":
        q = np.ascontiguousarray(packed[..., 2:]).view(np.int8).reshape(shape)
        return Blocks("Q8_0", q=q, scales=half(0))
    if block.name == "Q4_0":
        return Blocks("Q4_0", q=np.ascontiguousarray(packed[..., 2:]), scales=half(0))
    return Blocks("Q4_1", q=np.ascontiguousarray(packed[..., 4:]), scales=half(0), mins=half(2))
