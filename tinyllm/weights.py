"""Checkpoint files → numpy arrays by our names: safetensors, sharded or not, or a GGUF file.

f32, f16, bf16, fp8 with scales, MXFP4, and all of GGUF's blocks. Float32 tensors are views into the
memory-mapped file: nothing is read until it is used, and several processes share the same pages.
The others are widened to float32, which is exact. Where a family's checkpoint keeps a tensor is its
description's to say (`families/`). Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from numpy.typing import NDArray

from tinyllm.config import ModelConfig, read_json_object
from tinyllm.errors import ConfigError, WeightsError
from tinyllm.families import BY_TYPE
from tinyllm.families.tensors import EMBED, HEAD, Source, expected, plus_one, source, take
from tinyllm.files import mxfp4
from tinyllm.files.blocks import Blocks
from tinyllm.files.gguf_weights import GGUFWeights, open_weights

Weights = Mapping[str, NDArray[np.float32]]

# Of the language model inside a checkpoint that also sees: Idefics3's, then Gemma 3's and
# Qwen3-VL's, new and old.
TEXT_PREFIXES = ("model.text_model.", "model.language_model.", "language_model.model.")
OF_EYES = ("model.visual.", "visual.", "model.vision_model.", "model.connector.", "vision_tower.",
           "model.vision_tower.", "multi_modal_projector.",
           "model.multi_modal_projector.")  # fmt: skip

expected_shapes = expected
HEAD_WEIGHT = f"{HEAD}.weight"
# Beside a matrix in fp8, and in place of one in MXFP4.
SCALES = re.compile(r"(_scale_inv|_scale|_blocks|_scales|\.k_scale|\.v_scale|input_scale|"
                    r"activation_scale)$")  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """One tensor in a file: where it is; nothing is read yet."""

    path: Path
    name: str  # the file's own
    dtype: str
    shape: tuple[int, ...]
    raw: NDArray[np.uint8]  # a view of the mapping
    start: int  # where it begins in the file

    def read(self) -> NDArray[np.float32]:
        """Its values as float32, read-only; a view where they are float32 already.

        What has to be widened is read past the mapping, whose pages would stay beside the copy.
        """
        raw = self.raw
        if self.dtype != "F32":
            raw = np.fromfile(self.path, np.uint8, self.raw.size, offset=self.start)
        return _to_float32(raw, self.dtype, self.shape, f"{self.path}: tensor {self.name}")

    def one(self, i: int) -> Stored:
        """The i-th of a stack, (n, …), as a tensor of its own."""
        size = self.raw.size // self.shape[0]
        raw = self.raw[i * size : (i + 1) * size]
        return replace(self, shape=self.shape[1:], raw=raw, start=self.start + i * size)


@dataclass(frozen=True)
class StoredInGGUF(Stored):
    """One tensor in a GGUF file, by its hub name; `raw` is empty, for its bytes are in blocks."""

    weights: GGUFWeights

    def read(self) -> NDArray[np.float32]:
        array = self.weights.values(self.name)
        array.flags.writeable = False
        return array


class Checkpoint(Mapping[str, NDArray[np.float32]]):
    """A folder's tensors by our names, each read when it is asked for, and not kept.

    Raises:
        WeightsError: no safetensors file; a truncated or corrupt one; an unsupported dtype; a
            missing, unexpected, repeated or misshapen tensor. The message names file and tensor.
    """

    def __init__(self, folder: Path, config: ModelConfig) -> None:
        self.folder, self.config = folder, config
        names = BY_TYPE[config.family].names
        self._stored = plain_names(index_folder(folder, is_text_tensor), names.prefixes)
        self._shapes = expected(config)
        self._sources = {ours: source(ours, names, config) for ours in self._shapes}
        self._check(re.compile(names.ignored))

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    def __getitem__(self, ours: str) -> NDArray[np.float32]:
        found = self._sources[ours]
        if found.either or len(found.names) == 1:
            array = take(self._whole(self._present(found)[0], found), found, ours, self.config)
        else:
            array = np.stack([self._whole(name, found) for name in found.names])
        if found.plus_one:
            array = plus_one(array)
        array = np.ascontiguousarray(array)
        array.flags.writeable = False
        return array

    def blocks(self, ours: str) -> Blocks | None:
        """A matrix as a GGUF file's own integers and scales; None where it isn't stored as such.

        MXFP4 is: of the kinds that a GGUF file has, one holds it exactly.
        """
        found = self._sources[ours]
        name = self._present(found)[0]
        stored = self._stored.get(name)
        if stored is None and found.expert is not None:
            own = mxfp4.as_five_bits(*self._mxfp4(name, found.expert))
            taken = found.taken
            if own is None or taken is None or taken.layout != "alternating columns":
                return own
            return own.rows(np.arange(taken.part, len(own.q), len(taken.fused)))
        by_rows = found.taken is None or "columns" not in found.taken.layout
        if not isinstance(stored, StoredInGGUF) or found.plus_one or not by_rows:
            return None
        if found.expert is not None or len(stored.shape) != 2:
            return None
        which = take(np.arange(stored.shape[0]), found, ours, self.config)  # a fused matrix's rows
        if (len(which), stored.shape[1]) != self._shapes[ours]:
            return None
        blocks = stored.weights.blocks(stored.name)
        if blocks is None or len(which) == stored.shape[0]:
            return blocks
        return blocks.rows(which)

    def _mxfp4(self, name: str, expert: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """One expert's matrix in MXFP4: blocks (rows, G, 16), powers (rows, G)."""
        blocks, powers = (self._stored[f"{name}_{end}"].one(expert) for end in ("blocks", "scales"))
        return blocks.raw.reshape(blocks.shape), powers.raw.reshape(powers.shape)

    def _present(self, found: Source) -> list[str]:
        """Which of a tensor's names the checkpoint has."""
        return [n for n in found.names if n in self._stored or f"{n}_blocks" in self._stored]

    def _whole(self, name: str, found: Source) -> NDArray[np.float32]:
        """One tensor of the checkpoint, widened with the scales that stand beside it."""
        stored = self._stored.get(name)
        if stored is None:
            n, rows, groups, _ = self._stored[f"{name}_blocks"].shape
            if found.expert is not None:  # indexed by expert alone
                matrix = mxfp4.widen(*self._mxfp4(name, found.expert)).T
                return np.broadcast_to(matrix, (n, groups * 32, rows))
            return np.stack([mxfp4.widen(*self._mxfp4(name, e)).T for e in range(n)])
        for suffix in ("_scale_inv", "_scale"):
            if f"{name}{suffix}" in self._stored:
                return scaled(stored.read(), self._stored[f"{name}{suffix}"].read())
        if stored.dtype.startswith("F8"):
            raise WeightsError(f"{stored.path}: tensor {name} is fp8, but {name}_scale_inv isn't "
                               "there; take the checkpoint in bf16")  # fmt: skip
        if found.expert is not None:  # of a layer's experts one is read, and not all for each
            return np.broadcast_to(stored.one(found.expert).read(), stored.shape)
        return stored.read()

    def _check(self, ignored: re.Pattern[str]) -> None:
        """Every tensor is there, of its shape, and none is left over."""
        used: set[str] = set()
        for ours, shape in self._shapes.items():
            found = self._sources[ours]
            present = self._present(found)
            if not present or (len(present) < len(found.names) and not found.either):
                missing = next(n for n in found.names if n not in present)
                raise WeightsError(
                    f"{self.folder}: tensor {missing} {shape} is missing from the checkpoint"
                )
            used.update(found.names)
            got = self._shape(present, found, ours)
            if got != shape:
                stored = self._stored.get(present[0])
                where = stored.path if stored else self.folder
                raise WeightsError(
                    f"{where}: tensor {present[0]} has shape {stored.shape if stored else got}"
                    f"{'' if stored and stored.shape == got else f' ({got} for {ours})'}, but "
                    f"config.json asks for {shape}"
                )
        for name, stored in self._stored.items():
            if name not in used and not ignored.search(name) and not self._beside(name, used):
                self._refuse_left_over(name, stored)

    def _shape(self, present: list[str], found: Source, ours: str) -> tuple[int, ...]:
        """The shape that a tensor of ours would have, without reading it."""
        stored = self._stored.get(present[0])
        if stored is None:  # MXFP4: (experts, rows, groups, 16 bytes of 2)
            experts, rows, groups, _ = self._stored[f"{present[0]}_blocks"].shape
            shape: tuple[int, ...] = (experts, groups * 32, rows)
        else:
            shape = stored.shape
        nothing = np.broadcast_to(np.float32(0), shape)
        try:
            got = take(nothing, found, ours, self.config).shape
        except (ValueError, IndexError):
            return shape
        return got if found.either or len(found.names) == 1 else (len(found.names), *got)

    def _beside(self, name: str, used: set[str]) -> bool:
        """Scales of a tensor that is used."""
        stem = SCALES.sub("", name)
        return stem != name and (stem in used or any(u.startswith(f"{stem}.") for u in used)
                                 or f"{stem}.weight" in used)  # fmt: skip

    def _refuse_left_over(self, name: str, stored: Stored) -> None:
        tied = self.config.tie_embeddings
        head = source(HEAD_WEIGHT, BY_TYPE[self.config.family].names, self.config).names
        if tied and name in head:
            # Some exporters write the tied head a second time: fine as long as it is the same.
            if np.array_equal(stored.read(), self[EMBED]):
                return
            raise WeightsError(
                f"{stored.path}: {name} differs from {EMBED}, but config.json "
                "says tie_word_embeddings; correct one of the two"
            )
        raise WeightsError(
            f"{stored.path}: unexpected tensor {name} {stored.shape}; the config has none"
        )


def load_weights(folder: Path, config: ModelConfig) -> dict[str, NDArray[np.float32]]:
    """All tensors of a checkpoint folder by our names, float32, C-contiguous, read-only.

    Raises:
        WeightsError: as `Checkpoint`.
    """
    return dict(Checkpoint(folder, config))


def is_text_tensor(name: str) -> bool:
    """Whether a tensor is the language model's, in a checkpoint that also encodes images."""
    return not name.startswith(OF_EYES)


def plain_names(stored: Mapping[str, Stored], prefixes: tuple[str, ...]) -> dict[str, Stored]:
    """The same tensors; a language model that is part of a larger one gets its own names back."""
    for prefix in TEXT_PREFIXES:
        if any(name.startswith(prefix) for name in stored):
            return {
                f"model.{name.removeprefix(prefix)}"
                if name.startswith(prefix)
                else name.removeprefix("language_model."): s
                for name, s in stored.items()
            }
    for prefix in prefixes:
        if any(name.startswith(prefix) for name in stored):
            return {name.removeprefix(prefix): s for name, s in stored.items()}
    return dict(stored)


def index_folder(folder: Path, keep: Callable[[str], bool] | None = None) -> dict[str, Stored]:
    """Every tensor in a folder's weight files, by the file's own names; nothing is read."""
    found: dict[str, Stored] = {}
    for path in checkpoint_files(folder):
        for stored in index_file(path, keep):
            if stored.name in found:
                raise WeightsError(
                    f"{path}: tensor {stored.name} is also in {found[stored.name].path.name}"
                )
            found[stored.name] = stored
    return found


def read_folder(
    folder: Path, keep: Callable[[str], bool] | None = None
) -> dict[str, tuple[Path, NDArray[np.float32]]]:
    """Every tensor in a folder's weight files, with the file that it came from.

    `keep` says by name which ones are wanted; the others aren't read.
    """
    stored = index_folder(folder, keep)
    return {name: (entry.path, entry.read()) for name, entry in stored.items()}


def checkpoint_files(folder: Path) -> list[Path]:
    """The weight files of a folder: model.safetensors, the shards that its index names, or GGUF.

    Of a split GGUF model the first part stands for all.
    """
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if not index.is_file() and (ggufs := sorted(folder.glob("model*.gguf"))):
        return ggufs[:1]
    if not index.is_file():
        pickled = sorted(p.name for p in folder.glob("*") if p.suffix in (".bin", ".pt", ".pth"))
        remedy = (
            f" ({', '.join(pickled)}: pickles are never loaded; convert them)" if pickled else ""
        )
        raise WeightsError(f"{folder} has no model.safetensors and no {index.name}{remedy}")
    try:
        weight_map = read_json_object(index).get("weight_map")
    except ConfigError as error:
        raise WeightsError(str(error)) from None
    if not isinstance(weight_map, dict) or not weight_map:
        raise WeightsError(f"{index}: weight_map is missing or empty")
    for shard in weight_map.values():
        # A shard is a file of this folder: a path could reach anywhere on the reader's disk.
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise WeightsError(f"{index}: shard {shard!r} is not a plain file name")
        if not (folder / shard).is_file():
            raise WeightsError(f"{folder / shard} is missing, but {index.name} names it")
    files = sorted({folder / shard for shard in weight_map.values()})
    for name, shard in weight_map.items():
        if name not in _header(folder / shard):
            raise WeightsError(
                f"{folder / shard}: tensor {name} is missing, but the index puts it here"
            )
    return files


def index_file(path: Path, keep: Callable[[str], bool] | None = None) -> Iterator[Stored]:
    """Each tensor of one file; the file is mapped, not read.

    The library checks the file (header, offsets, length); it can't hand bf16 to numpy, so the
    bytes are taken from the mapping here. Format: https://github.com/huggingface/safetensors.
    """
    if path.suffix == ".gguf":
        weights = open_weights(path)
        nothing = np.empty(0, np.uint8)
        for name, shape in weights.shapes().items():
            if keep is None or keep(name):
                yield StoredInGGUF(path, name, weights.kind(name), shape, nothing, 0, weights)
        return
    header = _header(path)
    with path.open("rb") as file:
        data_start = 8 + int.from_bytes(file.read(8), "little")
    mapped = np.memmap(path, dtype=np.uint8, mode="r")
    for name, entry in header.items():
        if keep is not None and not keep(name):
            continue
        begin, end = entry["data_offsets"]
        raw = mapped[data_start + begin : data_start + end]
        yield Stored(path, name, entry["dtype"], tuple(entry["shape"]), raw, data_start + begin)


def _header(path: Path) -> dict[str, dict[str, Any]]:
    try:
        with safetensors.safe_open(path, framework="numpy"):  # validates the whole layout
            pass
        with path.open("rb") as file:
            header: dict[str, dict[str, Any]] = json.loads(
                file.read(int.from_bytes(file.read(8), "little")), object_pairs_hook=_once_each
            )
    except FileNotFoundError:
        raise WeightsError(f"{path} is missing") from None
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise WeightsError(
            f"{path} is not a whole safetensors file ({error}); fetch or export it again"
        ) from None
    header.pop("__metadata__", None)
    return header


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON lets a key stand twice and readers take the last one; a tensor may not."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name in found if sum(name == key for key, _ in pairs) > 1)
        raise ValueError(f"{twice} stands in its header twice")
    return found


def _to_float32(
    raw: NDArray[np.uint8], dtype: str, shape: tuple[int, ...], what: str
) -> NDArray[np.float32]:
    if dtype == "F32":
        array = raw.view(np.float32) if raw.ctypes.data % 4 == 0 else raw.copy().view(np.float32)
    elif dtype == "F16":
        array = raw.view(np.float16).astype(np.float32)
    elif dtype == "BF16":
        # A bfloat16 is the upper half of a float32.
        array = (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    elif dtype == "F8_E4M3":
        array = E4M3[raw]
    elif dtype == "F8_E8M0":  # a power of two
        array = np.ldexp(np.float32(1), raw.astype(np.int32) - 127).astype(np.float32)
    else:
        raise WeightsError(f"{what} has dtype {dtype}; f32, f16, bf16 and fp8 (e4m3) are supported")
    # An ndarray over the mapping: memmap's own class makes every slice slow.
    array = np.asarray(array).reshape(shape)
    array.flags.writeable = False
    return array


def _e4m3() -> NDArray[np.float32]:
    """The 256 values of an 8-bit float: sign, 4 bits of exponent (bias 7), 3 of fraction.

    No infinities; all ones is not a number. Micikevicius et al. 2022, arXiv 2209.05433.
    """
    code = np.arange(256)
    exponent, fraction = code >> 3 & 15, code & 7
    normal = np.ldexp(1 + fraction / 8, exponent - 7)
    values = np.where(exponent == 0, np.ldexp(fraction / 8, -6), normal)
    values[(code & 127) == 127] = np.nan
    return np.where(code < 128, values, -values).astype(np.float32)


E4M3 = _e4m3()


def scaled(array: NDArray[np.float32], scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """An fp8 matrix times its scales: one of all, one a row, or one a square block.

    Blocks are as long as the scales' shape says, the last ones cut short (128 × 128 in practice).
    """
    if scales.ndim < 2 and scales.size > 1:
        scales = scales.reshape(-1, 1)
    if scales.size > 1:
        for axis in (0, 1):
            if scales.shape[axis] > 1:
                block = -(-array.shape[axis] // scales.shape[axis])
                block = block if block == 1 else 1 << (block - 1).bit_length()
                scales = np.repeat(scales, block, axis)[
                    : array.shape[0] if axis == 0 else None,
                    : array.shape[1] if axis == 1 else None,
                ]
    return array * scales
