"""Small random Llama models, in memory and as checkpoint folders, and folders gone bad."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

from tinyllm.config import ModelConfig
from tinyllm.model import Model
from tinyllm.weights import expected_shapes

SMALL: dict[str, Any] = {  # config.json of a model in which no two lengths are the same
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "vocab_size": 99,
    "max_position_embeddings": 256,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def small_config(**changes: Any) -> dict[str, Any]:
    """SMALL with some keys changed."""
    return {**SMALL, **changes}


def random_weights(
    config: ModelConfig, seed: int = 0, dtype: Any = np.float32
) -> dict[str, NDArray[Any]]:
    """Normal weights, scaled so that activations and logits are of order one."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in expected_shapes(config).items():
        values = rng.normal(size=shape)
        if len(shape) == 1:
            values = 1 + 0.2 * values
        else:
            values *= 0.3 if "embed_tokens" in name else 1.5 / np.sqrt(shape[1])
        weights[name] = values.astype(np.float32).astype(dtype)
    return weights


def small_model(seed: int = 0, dtype: Any = np.float32, **changes: Any) -> Model:
    """A model of `SMALL`'s shape with random weights."""
    config = ModelConfig.from_hf(small_config(**changes))
    return Model(config, random_weights(config, seed, dtype))


def write_safetensors(
    path: Path, tensors: Mapping[str, NDArray[Any]], dtype: str = "F32", pad: int = 0
) -> None:
    """A safetensors file by hand: 8 bytes of header length, the header in JSON, then the data.

    `pad` spaces more of header move the data to an odd place.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, array in tensors.items():
        raw = encode(array, dtype)
        header[name] = {
            "dtype": dtype,
            "shape": list(array.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    write_raw_safetensors(path, header, data, pad)


def write_raw_safetensors(path: Path, header: Any, data: bytes, pad: int = 0) -> None:
    """The same from a header as it is to stand there, right or wrong."""
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8 + pad)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def encode(array: NDArray[Any], dtype: str) -> bytes:
    """An array's bytes in F32, F16 or BF16 (rounded to nearest even), F64 or I8."""
    if dtype == "BF16":
        bits = np.ascontiguousarray(array, np.float32).view(np.uint32).astype(np.uint64)
        rounded = bits + 0x7FFF + ((bits >> 16) & 1)
        return (rounded >> 16).astype(np.uint16).tobytes()
    numpy_dtype = {"F32": np.float32, "F16": np.float16, "F64": np.float64, "I8": np.int8}[dtype]
    return array.astype(numpy_dtype).tobytes()


def write_folder(
    folder: Path,
    raw: Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
    dtype: str = "F32",
    shards: int = 1,
    tokenizer: bool = True,
) -> ModelConfig:
    """A whole checkpoint folder of random weights; returns its config."""
    raw = SMALL if raw is None else raw
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(raw))
    config = ModelConfig.from_hf(raw)
    weights = random_weights(config, seed)
    if shards == 1:
        write_safetensors(folder / "model.safetensors", weights, dtype)
    else:
        write_shards(folder, weights, shards, dtype)
    if tokenizer:
        write_tokenizer(folder, config.vocab_size)
    return config


def write_shards(
    folder: Path, weights: Mapping[str, NDArray[Any]], shards: int, dtype: str = "F32"
) -> dict[str, str]:
    """The tensors dealt out over several files, with their index; returns the weight map."""
    weight_map = {}
    for k in range(shards):
        file_name = f"model-{k + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: weights[name] for name in list(weights)[k::shards]}
        write_safetensors(folder / file_name, part, dtype)
        weight_map |= dict.fromkeys(part, file_name)
    write_index(folder, weight_map)
    return weight_map


def write_index(folder: Path, weight_map: Any) -> None:
    """model.safetensors.index.json."""
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def write_tokenizer(folder: Path, vocab_size: int) -> None:
    """A byte-level tokenizer: three control tokens, then printable ASCII as far as ids go."""
    vocab = {letter: 3 + i for i, letter in enumerate(map(chr, range(33, 127)))}
    vocab = {"<unk>": 0, **{k: i for k, i in vocab.items() if i < vocab_size}}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, [], unk_token="<unk>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.save(str(folder / "tokenizer.json"))
