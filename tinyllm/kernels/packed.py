"""A checkpoint in the kernels' layout: made once, kept beside it, and loaded in one read.

`FOLDER/.packed/DTYPE.safetensors` holds what `pack` makes of a checkpoint. It is keyed by a digest
of the checkpoint's files and of the code that packs, is written whole or not at all, and is only
ever a shortcut: without write access the packing is done again in each process. The checksums of
what is in it are in its header, so that a damaged file is noticed when it is read, and made anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from numpy.typing import NDArray

from tinyllm.config import ModelConfig
from tinyllm.errors import WeightsError
from tinyllm.kernels.cache import remove
from tinyllm.kernels.formats import FORMATS, Components, Format
from tinyllm.kernels.memory import huge_memory
from tinyllm.kernels.packed_vectors import (
    expert_mlps,
    plain_mlps,
    qkv_order,
    routers,
    up_names,
    up_order,
    vectors,
)
from tinyllm.weights import Checkpoint, checkpoint_files

log = logging.getLogger(__name__)

Array = NDArray[Any]
Packed = dict[
    str, Any
]  # matrix → F32 | BF16 | Q8 | Q4 | Mixture with a layer axis; norm → float32 array

HEADER = 1 << 24  # bytes of a file's beginning that the digest reads at most
SAMPLES = 64  # places of 4 kB in each file that the digest reads
ROUNDED_ROWS = 4096  # of a table, at a time: rounding takes several times their room
ADDING = ("o_proj.weight", "down_proj.weight")
NUMPY_TYPES = {"F32": np.float32, "U16": np.uint16, "U8": np.uint8, "I64": np.int64}
MATRICES = ("embed", "head", "qkv", "out", "gate_up", "down", "router", "expert_gate_up",
            "expert_down")  # fmt: skip


# --- packing ------------------------------------------------------------------------------------


def pack(
    config: ModelConfig,
    weights: Mapping[str, NDArray[np.float32]],
    dtype: str,
    stored: Checkpoint | None = None,
) -> Packed:
    """A checkpoint's tensors in the format `dtype`.

    Args:
        config: the shape.
        weights: hub name → float32 tensor.
        dtype: a format's name.
        stored: where the weights come from, if blocks of a GGUF file that the format can take over
            as they are shall be, and not rounded again.
    """
    form = FORMATS[dtype]
    layers = [f"model.layers.{i}" for i in range(config.n_layers)]
    mlps, experts = plain_mlps(config), expert_mlps(config)

    def rows(name: str, form: Format) -> Components:
        # What a sublayer adds is scaled here, once, and not at every token.
        factor = config.residual_scale if name.endswith(ADDING) and not config.norm_after else 1.0
        blocks = None
        if stored is not None and form.carry and factor == 1:
            blocks = stored.blocks(name)
        if blocks is not None and blocks.kind in form.carry:
            return form.carry[blocks.kind](blocks)
        weight = weights[name]
        rounded = []
        for first in range(0, len(weight), ROUNDED_ROWS):
            some = weight[first : first + ROUNDED_ROWS]
            rounded.append(form.round(some if factor == 1 else some * np.float32(factor)))
        if len(rounded) == 1:
            return rounded[0]
        return tuple(np.concatenate(arrays) for arrays in zip(*rounded, strict=True))

    def stacked(
        places: Sequence[str],
        names: Sequence[str],
        order: Array | None = None,
        form: Format = form,
    ) -> Any:
        """A matrix a place: what stands there by these names, one below the other."""

        def one(place: str) -> Any:
            parts = [rows(f"{place}.{name}.weight", form) for name in names]
            joined = [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]
            return form.pack(*(a if order is None else a[order] for a in joined))

        return form.stack(map(one, places), len(places))

    def table(name: str) -> Any:
        of_tables = FORMATS[form.table]
        return of_tables.stack([of_tables.pack(*rows(name, of_tables))], 1)

    packed = {
        "embed": table("model.embed_tokens.weight"),
        "qkv": stacked(layers, [f"self_attn.{n}_proj" for n in "qkv"], qkv_order(config)),
        "out": stacked(layers, ["self_attn.o_proj"]),
    }
    ups = [f"{n}_proj" for n in up_names(config)]
    if mlps:
        packed["gate_up"] = stacked(mlps, ups, up_order(config, config.hidden_dim))
        packed["down"] = stacked(mlps, ["down_proj"])
    if config.experts is not None:
        order = up_order(config, config.experts.hidden_dim)
        packed["router"] = stacked(routers(config), ["router"], form=FORMATS["f32"])
        packed["expert_gate_up"] = stacked(experts, ups, order)
        packed["expert_down"] = stacked(experts, ["down_proj"])
    if not config.tie_embeddings:
        packed["head"] = table("lm_head.weight")
    return packed | in_huge_memory(vectors(config, weights))


# --- keeping it -----------------------------------------------------------------------------------


class Reading:
    """A file's bytes on their way into memory; `wait` before using them.

    Two threads read, a half each: much of the time goes into getting fresh memory from the system,
    which every thread does for itself.
    """

    def __init__(self, path: Path, start: int, memory: NDArray[np.uint8]) -> None:
        self._path, self._start, self._memory = path, start, memory
        self.sums: Mapping[str, int] = {}  # of `arrays`, as the file says
        self.arrays: Mapping[str, Array] = {}  # views of the memory
        self.remake: Callable[[], Packed] | None = None  # for when they differ
        middle = len(memory) // 2
        pool = ThreadPoolExecutor(2)
        self._halves = pool.map(self._read, (0, middle), (middle, len(memory)))
        pool.shutdown(wait=False)

    def wait(self) -> None:
        """Until all is there; what was damaged in the file is made anew, in the same memory.

        Raises WeightsError if the file was cut short or taken away meanwhile.
        """
        try:
            whole = all(self._halves)
        except OSError:
            whole = False
        if not whole:
            raise WeightsError(f"{self._path} changed while it was read: start again")
        damaged = [name for name, due in self.sums.items() if checksum(self.arrays[name]) != due]
        if damaged and self.remake is not None:
            log.warning("%s is damaged (%s): it is made anew", self._path, ", ".join(damaged))
            for name, array in _tensors(self.remake()).items():
                self.arrays[name][...] = array

    def _read(self, first: int, last: int) -> bool:
        with self._path.open("rb") as file:
            file.seek(self._start + first)
            return file.readinto(self._memory[first:last].data) == last - first


def load_packed(
    folder: Path, config: ModelConfig, dtype: str
) -> tuple[Packed, str, Reading | None]:
    """A checkpoint folder in the format `dtype`, and the digest of what it was made from.

    Its numbers may still be being read: then wait for the third before using them.

    Raises:
        WeightsError: as `load_weights`.
    """
    dtype = FORMATS[dtype].weights
    digest = checkpoint_digest(folder, config, dtype)
    path = folder / ".packed" / f"{dtype}.safetensors"

    def make() -> Packed:
        weights = Checkpoint(folder, config)
        made = pack(config, weights, dtype, weights)
        _write(path, made, digest)
        return made

    found = _read(path, digest)
    if found is None:
        return make(), digest, None
    packed, reading = found
    reading.remake = make
    return packed, digest, reading


def checkpoint_digest(folder: Path, config: ModelConfig, dtype: str) -> str:
    """Changes with the shape, the format, the packing code, or any file of the checkpoint.

    Of each file the header and 64 places are read: training or converting anew moves every tensor,
    and reading half a gigabyte would cost more than it protects from. Of the shape counts what
    isn't as in Llama: a version of this program that knows of more parts shares its file with one
    that doesn't, unless the code that packs is another.
    """
    here = Path(__file__).parent
    said = [
        (field.name, value)
        for field in fields(config)
        if (value := getattr(config, field.name)) != field.default
    ]
    digest = hashlib.sha256(f"{said} {dtype}".encode())
    for name in (
        "layout.py",
        "quantize.py",
        "mixture.py",
        "formats.py",
        "packed.py",
        "packed_vectors.py",
    ):
        digest.update((here / name).read_bytes())
    files = checkpoint_files(folder)
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            digest.update(file.read(8))
            file.seek(0)
            n_header = min(size, 8 + int.from_bytes(file.read(8), "little"), HEADER)
            digest.update(file.read(n_header))
            for i in range(SAMPLES):
                file.seek(size * i // SAMPLES // 4096 * 4096)
                digest.update(file.read(4096))
    return digest.hexdigest()[:24]


def _write(path: Path, packed: Packed, digest: str) -> bool:
    """Write the file whole or not at all; False where that isn't allowed."""
    tensors = _tensors(packed)
    sums = {f"sum.{name}": str(checksum(array)) for name, array in tensors.items()}
    kinds = {name: type(packed[name]).__name__ for name in MATRICES if name in packed}
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(exist_ok=True)
        _save(tensors, temporary, {"digest": digest, **kinds, **sums})
        temporary.replace(path)
    except (OSError, safetensors.SafetensorError):
        with contextlib.suppress(OSError):
            temporary.unlink()
        return False
    return True


def _save(tensors: Mapping[str, Array], path: Path, metadata: Mapping[str, str]) -> None:
    """A safetensors file, written array by array: the library's writer holds all of it twice."""
    kinds = {np.dtype(numpy): name for name, numpy in NUMPY_TYPES.items()}
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    at = 0
    # The widest items first, so that each array begins at a multiple of its own.
    ordered = sorted(tensors.items(), key=lambda entry: -entry[1].itemsize)
    for name, array in ordered:
        header[name] = {"dtype": kinds[array.dtype], "shape": list(array.shape),
                        "data_offsets": [at, at + array.nbytes]}  # fmt: skip
        at += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, array in ordered:
            np.ascontiguousarray(array).tofile(file)


def _tensors(packed: Packed) -> dict[str, Array]:
    """The arrays by the names that they have in the file."""
    tensors: dict[str, Array] = {}
    for name, value in packed.items():
        if name in MATRICES:
            tensors |= {f"{name}.{field}": array for field, array in value._asdict().items()}
        else:
            tensors[name] = value
    return tensors


def checksum(array: Array) -> int:
    """The sum of an array's bytes, eight at a time, modulo 2^64: a flipped bit changes it.

    No better checksum is as quick, and start-up waits for it: 150 MB take 20 ms.
    """
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    whole = len(flat) // 8 * 8
    total = int(np.add.reduce(flat[:whole].view(np.uint64), dtype=np.uint64))
    return (total + int.from_bytes(flat[whole:].tobytes(), "little")) % 2**64


def _read(path: Path, digest: str) -> tuple[Packed, Reading] | None:
    """What `_write` wrote, if it is there and fits; in memory that decoding reads well."""
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            remove(path)
            raise OSError("not a file")
        with safetensors.safe_open(path, framework="numpy") as checked:  # validates the layout
            metadata = checked.metadata() or {}
        if metadata.get("digest") != digest:
            return None
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        memory = huge_memory(path.stat().st_size - 8 - length)
        packed, arrays = _views(header, metadata, memory)
        sums = {name: int(metadata[f"sum.{name}"]) for name in arrays}
        reading = Reading(path, 8 + length, memory)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        log.warning("%s can't be used (%s): it is made anew", path, error)
        return None
    reading.arrays, reading.sums = arrays, sums
    return packed, reading


def _views(
    header: Mapping[str, Any], metadata: Mapping[str, str], memory: NDArray[np.uint8]
) -> tuple[Packed, dict[str, Array]]:
    """What the file's bytes will be once they are in memory: packed, and by the file's names."""
    arrays = {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            flat = memory[begin:end].view(NUMPY_TYPES[entry["dtype"]])
            arrays[name] = flat.reshape(entry["shape"])
    formats: dict[str, Any] = {form.packed.__name__: form.packed for form in FORMATS.values()}
    packed: Packed = {name: array for name, array in arrays.items() if "." not in name}
    for name in MATRICES:
        if name in metadata:
            kind = formats[metadata[name]]
            packed[name] = kind(*(arrays[f"{name}.{field}"] for field in kind._fields))
    return packed, arrays


def in_huge_memory(packed: Packed) -> Packed:
    """A copy of freshly packed arrays in such memory."""

    def move(array: Array) -> Array:
        moved = huge_memory(array.nbytes).view(array.dtype).reshape(array.shape)
        moved[...] = array
        return moved

    return {
        name: type(value)(*map(move, value)) if isinstance(value, tuple) else move(value)
        for name, value in packed.items()
    }
