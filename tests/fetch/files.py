"""Small GGUF files and wheels for the tests in this folder, written by the `gguf` package."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from tokenizers.pre_tokenizers import ByteLevel

DIM, HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM = 64, 96, 2, 4, 2, 16
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LETTERS = SPECIALS + sorted(ByteLevel.alphabet())
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ w"]
VOCAB = LETTERS + [merge.replace(" ", "") for merge in MERGES]
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tensors(seed: int = 0) -> dict[str, np.ndarray]:
    """A tiny random Llama's tensors, GGUF names, float32."""
    rng = np.random.default_rng(seed)
    shapes = {
        "token_embd.weight": (len(VOCAB), DIM),
        "output_norm.weight": (DIM,),
    }
    for i in range(LAYERS):
        shapes |= {
            f"blk.{i}.attn_norm.weight": (DIM,),
            f"blk.{i}.ffn_norm.weight": (DIM,),
            f"blk.{i}.attn_q.weight": (HEADS * HEAD_DIM, DIM),
            f"blk.{i}.attn_k.weight": (KV_HEADS * HEAD_DIM, DIM),
            f"blk.{i}.attn_v.weight": (KV_HEADS * HEAD_DIM, DIM),
            f"blk.{i}.attn_output.weight": (DIM, HEADS * HEAD_DIM),
            f"blk.{i}.ffn_gate.weight": (HIDDEN, DIM),
            f"blk.{i}.ffn_up.weight": (HIDDEN, DIM),
            f"blk.{i}.ffn_down.weight": (DIM, HIDDEN),
        }
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def write_gguf(
    path: Path,
    kind: Kind = Kind.Q4_1,
    *,
    drop: tuple[str, ...] = (),
    change: dict[str, object] | None = None,
    weights: dict[str, np.ndarray] | None = None,
    by_prefix: Mapping[str, Kind] | None = None,
) -> Path:
    """A whole tiny model: matrices in `kind`, norms in F32. `change` replaces metadata.

    `by_prefix` gives tensors whose names begin so another kind.
    """
    writer = gguf.GGUFWriter(path, "llama")
    meta: dict[str, object] = {
        "llama.block_count": LAYERS,
        "llama.context_length": 128,
        "llama.embedding_length": DIM,
        "llama.feed_forward_length": HIDDEN,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.rope.freq_base": 100000.0,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": HEAD_DIM,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": VOCAB,
        "tokenizer.ggml.token_type": [3] * len(SPECIALS) + [1] * (len(VOCAB) - len(SPECIALS)),
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.chat_template": TEMPLATE,
    }
    meta |= change or {}
    for key, value in meta.items():
        if value is None or key in drop:
            continue
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            assert isinstance(value, list)
            writer.add_array(key, value)
    for name, array in (weights if weights is not None else tensors()).items():
        if name in drop:
            continue
        own = next((k for p, k in (by_prefix or {}).items() if name.startswith(p)), kind)
        to = Kind.F32 if array.ndim == 1 else own
        writer.add_tensor(name, gguf.quants.quantize(array, to), raw_dtype=to)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_wheel(path: Path, members: dict[str, Path | bytes]) -> Path:
    """A zip file with the given members."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            if isinstance(content, Path):
                archive.write(content, name)
            else:
                archive.writestr(name, content)
    return path
