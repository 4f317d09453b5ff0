"""Checkpoint files → numpy arrays: safetensors, sharded or not, in f32, f16 or bf16.

Float32 tensors are views into the memory-mapped file: nothing is read until it is used, and
several processes share the same pages. Half-precision tensors are widened to float32, which is
exact. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from numpy.typing import NDArray

from tinyllm.config import ModelConfig, read_json_object
from tinyllm.errors import ConfigError, WeightsError

Weights = Mapping[str, NDArray[np.float32]]

TEXT_PREFIX = "model.text_model."  # of the language model inside an Idefics3 checkpoint

# Buffers that old exporters saved beside the parameters; they can be recomputed from the config.
IGNORED_TENSORS = re.compile(r"\.(rotary_emb\.inv_freq|self_attn\.masked_bias)$")


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of a checkpoint with its shape; matrices are (out_features, in_features)."""
    dim, hidden = config.dim, config.hidden_dim
    q_dim, kv_dim = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, dim)}
    for i in range(config.n_layers):
        block = f"model.layers.{i}"
        shapes |= {
            f"{block}.input_layernorm.weight": (dim,),
            f"{block}.self_attn.q_proj.weight": (q_dim, dim),
            f"{block}.self_attn.k_proj.weight": (kv_dim, dim),
            f"{block}.self_attn.v_proj.weight": (kv_dim, dim),
            f"{block}.self_attn.o_proj.weight": (dim, q_dim),
            f"{block}.post_attention_layernorm.weight": (dim,),
            f"{block}.mlp.gate_proj.weight": (hidden, dim),
            f"{block}.mlp.up_proj.weight": (hidden, dim),
            f"{block}.mlp.down_proj.weight": (dim, hidden),
        }
    shapes["model.norm.weight"] = (dim,)
    if not config.tie_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, dim)
    return shapes


def load_weights(folder: Path, config: ModelConfig) -> dict[str, NDArray[np.float32]]:
    """All tensors of a checkpoint folder by their hub names, float32, C-contiguous, read-only.

    Raises:
        WeightsError: no safetensors file; a truncated or corrupt one; an unsupported dtype; a
            missing, unexpected, repeated or misshapen tensor. The message names file and tensor.
    """
    tensors = text_tensors(read_folder(folder, keep=is_text_tensor))
    return match_tensors(tensors, expected_shapes(config), folder, config.tie_embeddings)


def is_text_tensor(name: str) -> bool:
    """Whether a tensor is the language model's, in a checkpoint that also encodes images."""
    return not name.startswith(("model.vision_model.", "model.connector."))


def text_tensors(
    tensors: Mapping[str, tuple[Path, NDArray[np.float32]]],
) -> Mapping[str, tuple[Path, NDArray[np.float32]]]:
    """The same tensors; a language model that is part of a larger one gets its own names back."""
    if not any(name.startswith(TEXT_PREFIX) for name in tensors):
        return tensors
    return {
        f"model.{name.removeprefix(TEXT_PREFIX)}" if name.startswith(TEXT_PREFIX) else name: entry
        for name, entry in tensors.items()
    }


def read_folder(
    folder: Path, keep: Callable[[str], bool] | None = None
) -> dict[str, tuple[Path, NDArray[np.float32]]]:
    """Every tensor in a folder's safetensors files, with the file that it came from.

    `keep` says by name which ones are wanted; the others aren't read.
    """
    tensors: dict[str, tuple[Path, NDArray[np.float32]]] = {}
    for path in checkpoint_files(folder):
        for name, array in read_safetensors(path, keep):
            if name in tensors:
                raise WeightsError(f"{path}: tensor {name} is also in {tensors[name][0].name}")
            tensors[name] = (path, array)
    return tensors


def match_tensors(
    tensors: Mapping[str, tuple[Path, NDArray[np.float32]]],
    shapes: Mapping[str, tuple[int, ...]],
    folder: Path,
    tied: bool,
) -> dict[str, NDArray[np.float32]]:
    """Check what was read against what the config asks for; raises WeightsError as load_weights."""
    weights: dict[str, NDArray[np.float32]] = {}
    for name, shape in shapes.items():
        if name not in tensors:
            raise WeightsError(f"{folder}: tensor {name} {shape} is missing from the checkpoint")
        path, array = tensors[name]
        if array.shape != shape:
            raise WeightsError(
                f"{path}: tensor {name} has shape {array.shape}, but config.json asks for {shape}"
            )
        weights[name] = array
    for name in sorted(set(tensors) - set(shapes)):
        path, array = tensors[name]
        if IGNORED_TENSORS.search(name):
            continue
        if name == "lm_head.weight" and tied:
            # Some exporters write the tied head a second time: fine as long as it is the same.
            if np.array_equal(array, weights["model.embed_tokens.weight"]):
                continue
            raise WeightsError(
                f"{path}: lm_head.weight differs from model.embed_tokens.weight, but config.json "
                "says tie_word_embeddings; correct one of the two"
            )
        raise WeightsError(f"{path}: unexpected tensor {name} {array.shape}; the config has none")
    return weights


def checkpoint_files(folder: Path) -> list[Path]:
    """The weight files of a folder: `model.safetensors`, or the shards that its index names."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
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


def read_safetensors(
    path: Path, keep: Callable[[str], bool] | None = None
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield (name, float32 array) for each tensor of one file; f32 ones are mapped, not read.

    The library checks the file (header, offsets, length); it can't hand bf16 to numpy, so the
    bytes are taken from the mapping here. Format: https://github.com/huggingface/safetensors.
    """
    header = _header(path)
    with path.open("rb") as file:
        data_start = 8 + int.from_bytes(file.read(8), "little")
    mapped = np.memmap(path, dtype=np.uint8, mode="r")
    for name, entry in header.items():
        if keep is not None and not keep(name):
            continue
        begin, end = entry["data_offsets"]
        raw = mapped[data_start + begin : data_start + end]
        yield (
            name,
            _to_float32(raw, entry["dtype"], tuple(entry["shape"]), f"{path}: tensor {name}"),
        )


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
        array = raw.copy().view(np.float16).astype(np.float32)
    elif dtype == "BF16":
        # A bfloat16 is the upper half of a float32.
        array = (raw.copy().view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    else:
        raise WeightsError(f"{what} has dtype {dtype}; f32, f16 and bf16 are supported")
    # An ndarray over the mapping: memmap's own class makes every slice slow.
    array = np.asarray(array).reshape(shape)
    array.flags.writeable = False
    return array
