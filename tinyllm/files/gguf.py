"""GGUF, llama.cpp's model format: read the header, map the tensors, one file or several.

Layout of the file (little-endian; https://github.com/ggml-org/ggml/blob/master/docs/gguf.md):

    "GGUF"  u32 version  u64 n_tensors  u64 n_metadata
    n_metadata × (string key, u32 type, value)
    n_tensors  × (string name, u32 n_dims, n_dims × u64, u32 type, u64 offset)
    padding to `general.alignment`, then the tensors' bytes, each at its offset

Dimensions are written fastest first, so the file's `[in, out]` is numpy's `(out, in)`.

A model may be split: `NAME-00001-of-00003.gguf` has the metadata, each part its own tensors.

Why this isn't the `gguf` package's reader: that takes 16 s for a vocabulary of 262,144 pieces, and
believes what a file says of itself. Here every count, length and offset is held against the bytes
that are there before anything is allocated: a damaged or hostile file ends in a `FetchError`.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import re
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
PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
MAX_PARTS = 1000

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


# The kinds of blocks that are read, by ggml's number (ggml.h, enum ggml_type): all that the `gguf`
# package turns back into numbers. That package has the same table, and takes a while to import.
BLOCK_TYPES = {
    0: BlockType("F32", 1, 4),
    1: BlockType("F16", 1, 2),
    30: BlockType("BF16", 1, 2),
    2: BlockType("Q4_0", 32, 18),
    3: BlockType("Q4_1", 32, 20),
    6: BlockType("Q5_0", 32, 22),
    7: BlockType("Q5_1", 32, 24),
    8: BlockType("Q8_0", 32, 34),
    10: BlockType("Q2_K", 256, 84),
    11: BlockType("Q3_K", 256, 110),
    12: BlockType("Q4_K", 256, 144),
    13: BlockType("Q5_K", 256, 176),
    14: BlockType("Q6_K", 256, 210),
    34: BlockType("TQ1_0", 256, 54),
    35: BlockType("TQ2_0", 256, 66),
    39: BlockType("MXFP4", 32, 17),
    40: BlockType("NVFP4", 64, 36),
    19: BlockType("IQ1_S", 256, 50),
    29: BlockType("IQ1_M", 256, 56),
    16: BlockType("IQ2_XXS", 256, 66),
    17: BlockType("IQ2_XS", 256, 74),
    22: BlockType("IQ2_S", 256, 82),
    18: BlockType("IQ3_XXS", 256, 98),
    21: BlockType("IQ3_S", 256, 110),
    20: BlockType("IQ4_NL", 32, 18),
    23: BlockType("IQ4_XS", 256, 136),
}
KINDS = [block.name for block in BLOCK_TYPES.values()]


@dataclass(frozen=True)
class TensorInfo:
    """One tensor's place in the file. `shape` is numpy's, slowest dimension first."""

    name: str
    shape: tuple[int, ...]
    type: BlockType
    start: int  # byte position in the file
    nbytes: int
    part: int = 0  # which file of a split model


class GGUF:
    """An open GGUF model: `metadata` as a dict, `tensors` by name, bytes on demand.

    `path` is the file, or any part of a split model, whose other parts lie beside it. Use it as a
    context manager; arrays returned by `raw` are views of the mapped file and must not outlive it.
    Raises `FetchError` on anything that is not a sound GGUF file.

    Args:
        path: the file.
        texts: whether lists of strings, the vocabulary above all, are to be in `metadata`; they
            take longer to read than all else, and whoever wants weights has no use for them.
    """

    def __init__(self, path: Path | str, *, texts: bool = True) -> None:
        self._texts = texts
        self.metadata: dict[str, Any] = {}
        self.tensors: dict[str, TensorInfo] = {}
        self._maps: list[mmap.mmap] = []
        self.paths = parts_of(Path(path))
        self.path = self.paths[0]
        try:
            for path in self.paths:
                self._open(path)
                self._read()
            self.path = self.paths[0]
            self._check_split()
        except BaseException:
            self.close()
            raise

    def _open(self, path: Path) -> None:
        self.path = path  # for what errors say
        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: mmap of an empty file
            raise FetchError(f"{path}: cannot be read as a GGUF file: {error}") from error
        self._maps.append(self._map)
        self._pos = 0

    def _check_split(self) -> None:
        """A part by itself must not pass for a whole model."""
        count = self.metadata.get("split.count", 1)
        if count > 1 and len(self.paths) != count:
            raise FetchError(
                f"{self.path} is one of {count} parts; give them their own names, "
                f"NAME-00001-of-{count:05}.gguf and so on, in one folder"
            )
        total = self.metadata.get("split.tensors.count", len(self.tensors))
        if total != len(self.tensors):
            raise self._broken(
                f"is split, and its parts hold {len(self.tensors)} of {total} tensors"
            )

    def __enter__(self) -> GGUF:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Unmap the files. Views that are still alive keep the mapping until they go."""
        for mapped in self._maps:
            with contextlib.suppress(BufferError):  # an array still looks: it closes when that goes
                mapped.close()

    # -- the header -----------------------------------------------------------------------------

    def _read(self) -> None:
        if self._bytes(4, "magic") != MAGIC:
            raise self._broken("does not begin with 'GGUF'")
        version = self._scalar("I", "version")
        if version not in VERSIONS:
            raise self._broken(f"has GGUF version {version}; versions 2 and 3 are read")
        n_tensors = self._count("tensor count", smallest=24)
        n_metadata = self._count("metadata count", smallest=13)

        metadata: dict[str, Any] = {}
        for _ in range(n_metadata):
            key = self._string("a metadata key")
            if key in metadata:
                raise self._broken(f"has the metadata key {key!r} twice")
            metadata[key] = self._value(self._scalar("I", key), key)

        infos = [self._tensor_info() for _ in range(n_tensors)]
        part = len(self._maps) - 1
        if part == 0:
            self.metadata = metadata

        alignment = metadata.get("general.alignment", 32)
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
                    f"is cut short: tensor {name!r} should fill bytes {start} to "
                    f"{start + nbytes} of {len(self._map)}"
                )
            self.tensors[name] = TensorInfo(name, shape, block, start, nbytes, part)

    def _tensor_info(self) -> tuple[str, tuple[int, ...], BlockType, int]:
        name = self._string("a tensor name")
        n_dims = self._scalar("I", name)
        if not 1 <= n_dims <= MAX_DIMS:
            raise self._broken(f"gives tensor {name!r} {n_dims} dimensions")
        shape = tuple(self._scalar("Q", name) for _ in range(n_dims))[::-1]
        number = self._scalar("I", name)
        block = BLOCK_TYPES.get(number)
        if block is None:
            raise FetchError(
                f"{self.path} stores tensor {name!r} as ggml type {number}, which is not read; "
                f"take another quantisation of this model ({', '.join(KINDS)} are read)"
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
            raise self._broken(f"has a {what} {count} that cannot be true")
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
            if item == STRING:
                return self._strings(n, key)
            return [self._value(item, key, depth + 1) for _ in range(n)]
        raise self._broken(f"gives the metadata key {key!r} an unknown type {kind}")

    def _strings(self, n: int, key: str) -> list[str]:
        """n strings in a row: a vocabulary, so in as few steps as that takes; [] if not wanted."""
        data, pos, length = self._map, self._pos, struct.Struct("<Q").unpack_from
        found = []
        try:
            for _ in range(0 if self._texts else n):
                pos += 8 + length(data, pos)[0]
            if pos > len(data):
                raise self._broken(f"is cut short: it ends inside {key!r}")
            for _ in range(n if self._texts else 0):
                start = pos + 8
                pos = start + length(data, pos)[0]
                found.append(data[start:pos].decode("utf-8"))
                if pos > len(data):
                    raise self._broken(f"is cut short: it ends inside {key!r}")
        except struct.error:
            raise self._broken(f"is cut short: it ends inside {key!r}") from None
        except UnicodeDecodeError as error:
            raise self._broken(f"has a string in {key!r} that is not UTF-8") from error
        self._pos = pos
        return found

    def _broken(self, what: str) -> FetchError:
        return FetchError(f"{self.path} {what}: it is damaged, or no GGUF file; fetch it again")

    # -- the tensors ----------------------------------------------------------------------------

    def __iter__(self) -> Iterator[TensorInfo]:
        return iter(self.tensors.values())

    def raw(self, name: str) -> NDArray[np.uint8]:
        """The tensor's bytes as they lie in the file: (nbytes,) uint8, a view."""
        info = self.tensors[name]
        return np.frombuffer(self._maps[info.part], np.uint8, info.nbytes, info.start)


def parts_of(path: Path) -> list[Path]:
    """The files of a model, of which `path` is one: itself, or all parts of a split model."""
    match = PART.fullmatch(path.name)
    if match is None:
        return [path]
    count = int(match["count"])
    if not 1 <= int(match["number"]) <= count <= MAX_PARTS:
        raise FetchError(f"{path}: no model has a part of that number")
    names = [f"{match['stem']}-{n:05}-of-{count:05}.gguf" for n in range(1, count + 1)]
    missing = [name for name in names if not (path.parent / name).is_file()]
    if missing:
        raise FetchError(
            f"{path} is part of a split model: {', '.join(missing)} must lie beside it"
        )
    return [path.parent / name for name in names]
