"""A GGUF file becomes a model folder as the hub would hold it, with nothing lost.

    model.safetensors      every tensor in float32: exactly the file's dequantised values
    model.q4.safetensors   the same tensors in their stored blocks (see `carried`)
    config.json            as `transformers` reads it
    generation_config.json tokenizer.json tokenizer_config.json

Two traps are undone on the way. llama.cpp rotates neighbouring pairs of a head's rows (0,1), (2,3)
… and so stores the query and key rows in that order; the checkpoint, and `apply_rope`, pair row i
with row i + head_dim/2. And the file's `smollm` pre-tokenizer splits numbers into single digits,
which must be spelled out in tokenizer.json.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from tinyllm.errors import FetchError
from tinyllm.files import carried
from tinyllm.files.gguf import GGUF, Blocks

# GGUF's tensor names → the hub's. `{i}` is the layer.
GLOBAL_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
CONTROL, USER_DEFINED = 3, 4  # tokenizer.ggml.token_type


def hub_name(name: str) -> str:
    """`blk.3.attn_q.weight` → `model.layers.3.self_attn.q_proj.weight`; FetchError if unknown."""
    if name in GLOBAL_NAMES:
        return GLOBAL_NAMES[name]
    head, _, rest = name.partition(".")
    layer, _, rest = rest.partition(".")
    stem, _, kind = rest.rpartition(".")
    if head == "blk" and layer.isdecimal() and stem in LAYER_NAMES and kind == "weight":
        return f"model.layers.{int(layer)}.{LAYER_NAMES[stem]}.weight"
    raise FetchError(f"tensor {name!r} has no place in a Llama model; this GGUF is of another kind")


def half_split_order(n_rows: int, n_heads: int) -> NDArray[np.intp]:
    """Row order that turns interleaved rotary pairs into half-split ones, head by head.

    Within a head the file holds rows 0, d/2, 1, d/2 + 1, …; we want 0, 1, …, d/2, d/2 + 1, …
    Returns (n_rows,) indices: `stored[order]` is the checkpoint's order.
    """
    return np.arange(n_rows).reshape(n_heads, -1, 2).swapaxes(1, 2).reshape(-1)


def convert(source: Path, folder: Path, progress: Callable[[int, int], None] | None = None) -> None:
    """Write the model folder's files from the GGUF file `source` into the folder `folder`.

    `progress(done, total)` counts tensors. Raises `FetchError` on files we cannot convert.
    """
    with GGUF(source) as gguf:
        config = hub_config(gguf)
        write_json(folder / "config.json", config)
        write_json(
            folder / "generation_config.json",
            {k: config[k] for k in ("bos_token_id", "eos_token_id", "pad_token_id") if k in config},
        )
        build_tokenizer(gguf).save(str(folder / "tokenizer.json"))
        write_json(folder / "tokenizer_config.json", tokenizer_config(gguf, config))

        blocks: dict[str, Blocks] = {}
        values: dict[str, NDArray[np.float32]] = {}
        for done, info in enumerate(gguf, 1):
            name = hub_name(info.name)
            if name in blocks:
                raise FetchError(f"{source}: two tensors would both be named {name!r}")
            blocks[name] = checkpoint_rows(gguf.blocks(info.name), name, config)
            values[name] = np.ascontiguousarray(blocks[name].values())
            if progress is not None:
                progress(done, len(gguf.tensors))
        save_file(values, folder / "model.safetensors", metadata={"format": "pt"})
        carried.save_blocks(folder / carried.FILE_NAME, blocks)
        del blocks, values  # views of the mapped file, which closes here


def checkpoint_rows(blocks: Blocks, name: str, config: dict[str, Any]) -> Blocks:
    """Undo llama.cpp's reordering of query and key rows; every other tensor stays as it is."""
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
    key = heads.get(name.split(".")[-2])
    if key is None:
        return blocks
    n_heads: int = config[key]
    array = blocks.plain if blocks.plain is not None else blocks.q
    assert array is not None
    if array.ndim < 2 or array.shape[0] % (2 * n_heads):
        raise FetchError(
            f"tensor {name!r} of shape {array.shape} does not split over {n_heads} heads"
        )
    return blocks.rows(half_split_order(array.shape[0], n_heads))


def hub_config(gguf: GGUF) -> dict[str, Any]:
    """The file's hyperparameters as a `config.json`."""
    if get(gguf, "general.architecture", str) != "llama":
        raise FetchError(
            f"{gguf.path} holds a {gguf.metadata['general.architecture']!r} model; "
            "only the Llama family is converted"
        )
    for key in gguf.metadata:
        if key.startswith(("llama.rope.scaling", "llama.expert")):
            raise FetchError(f"{gguf.path} uses {key}, which tinyllm does not run")
    dim = get(gguf, "llama.embedding_length", int)
    n_heads = get(gguf, "llama.attention.head_count", int)
    head_dim = get(gguf, "llama.attention.key_length", int, dim // n_heads)
    if gguf.metadata.get("llama.rope.dimension_count", head_dim) != head_dim:
        raise FetchError(f"{gguf.path}: rotary over part of a head is not run here")
    embedding = gguf.tensors.get("token_embd.weight")
    if embedding is None:
        raise FetchError(f"{gguf.path} has no tensor 'token_embd.weight'")
    n_layers = get(gguf, "llama.block_count", int)
    if n_layers != len({name.split(".")[1] for name in gguf.tensors if name.startswith("blk.")}):
        raise FetchError(f"{gguf.path}: llama.block_count is {n_layers}, its tensors say otherwise")
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "hidden_size": dim,
        "initializer_range": 0.02,
        "intermediate_size": get(gguf, "llama.feed_forward_length", int),
        "max_position_embeddings": get(gguf, "llama.context_length", int),
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": n_heads,
        "num_hidden_layers": n_layers,
        "num_key_value_heads": get(gguf, "llama.attention.head_count_kv", int, n_heads),
        "head_dim": head_dim,
        "rms_norm_eps": shortest(get(gguf, "llama.attention.layer_norm_rms_epsilon", float)),
        "rope_scaling": None,
        "rope_theta": shortest(get(gguf, "llama.rope.freq_base", float, 10000.0)),
        "tie_word_embeddings": "output.weight" not in gguf.tensors,
        "torch_dtype": "float32",
        "use_cache": True,
        "vocab_size": embedding.shape[0],
    }
    for role in ("bos", "eos", "pad"):
        gguf_role = {"pad": "padding"}.get(role, role)
        token = gguf.metadata.get(f"tokenizer.ggml.{gguf_role}_token_id")
        if token is not None:
            config[f"{role}_token_id"] = token
    return config


def shortest(value: float) -> float:
    """The decimal a float32 was written from: 9.999999747e-06 → 1e-05."""
    return float(str(np.float32(value)))


def build_tokenizer(gguf: GGUF) -> Tokenizer:
    """The file's vocabulary and merges as a `tokenizers` object."""
    pre = gguf.metadata.get("tokenizer.ggml.pre")
    if get(gguf, "tokenizer.ggml.model", str) != "gpt2" or pre != "smollm":
        raise FetchError(
            f"{gguf.path}: its tokenizer ({gguf.metadata['tokenizer.ggml.model']}, {pre}) is not "
            "one that is converted here (gpt2, smollm); pull the model's hub folder instead"
        )
    tokens = get(gguf, "tokenizer.ggml.tokens", list)
    merges = [tuple(merge.split(" ")) for merge in get(gguf, "tokenizer.ggml.merges", list)]
    kinds = get(gguf, "tokenizer.ggml.token_type", np.ndarray).tolist()
    if len(kinds) != len(tokens) or len(set(tokens)) != len(tokens):
        raise FetchError(f"{gguf.path}: its vocabulary is damaged (token types or doubles)")
    if gguf.metadata.get("tokenizer.ggml.add_space_prefix") or gguf.metadata.get(
        "tokenizer.ggml.add_bos_token"
    ):
        raise FetchError(f"{gguf.path}: a space prefix or an added BOS token is not converted here")
    try:
        model = models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges)
    except Exception as error:  # tokenizers raises bare Exception
        raise FetchError(f"{gguf.path}: its vocabulary is damaged: {error}") from error
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    for token, kind in zip(tokens, kinds, strict=True):
        if kind in (CONTROL, USER_DEFINED):
            special = kind == CONTROL
            tokenizer.add_tokens([AddedToken(token, special=special, normalized=False)])
    return tokenizer


def tokenizer_config(gguf: GGUF, config: dict[str, Any]) -> dict[str, Any]:
    """`tokenizer_config.json`: the chat template and which token plays which role."""
    tokens = gguf.metadata["tokenizer.ggml.tokens"]
    raw: dict[str, Any] = {
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": config["max_position_embeddings"],
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    for role in ("bos", "eos", "pad"):
        token = config.get(f"{role}_token_id")
        if token is not None and not 0 <= token < len(tokens):
            raise FetchError(f"{gguf.path}: its {role} token {token} is outside the vocabulary")
        if token is not None:
            raw[f"{role}_token"] = tokens[token]
    template = gguf.metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        raw["chat_template"] = template
    return raw


def get(gguf: GGUF, key: str, kind: type, default: Any = None) -> Any:
    """A metadata value of the expected type, or `FetchError` naming the key."""
    value: Any = gguf.metadata.get(key, default)
    known = isinstance(value, kind)
    if kind is int:  # every whole number that we read is a count
        known = known and 0 < value < 1 << 31
    if not known:
        raise FetchError(
            f"{gguf.path}: metadata {key!r} should be a {kind.__name__}, not {value!r:.80}"
        )
    return value


def write_json(path: Path, value: object) -> None:
    """Write JSON as the hub does: two spaces, UTF-8, a newline at the end."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
