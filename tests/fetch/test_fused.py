"""Phi-3's fused matrices in a file's own blocks: values, and logits, of the plain checkpoint's."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from numpy.typing import NDArray

from tests.fetch.files import MERGES, SPECIALS, VOCAB
from tests.llama_folders import write_safetensors
from tinyllm.config import ModelConfig
from tinyllm.fetch.convert import convert
from tinyllm.model import Model
from tinyllm.weights import Checkpoint, load_weights

DIM, HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM = 256, 512, 2, 8, 2, 32
SHORT, LONG = np.linspace(1, 1.4, 12), np.linspace(1.5, 7, 12)  # 3/4 of a head turns
IDS = np.random.default_rng(3).integers(0, len(VOCAB), 24).tolist()


def blocks(kind: Kind, rows: int, columns: int, seed: int) -> NDArray[np.uint8]:
    """Random blocks with scales of a matrix's size: (rows, bytes)."""
    rng, (values, nbytes) = np.random.default_rng(seed), gguf.GGML_QUANT_SIZES[kind]
    raw = rng.integers(0, 256, (rows, columns // values, nbytes), dtype=np.uint8)
    for at in [208] if kind == Kind.Q6_K else [0, 2]:
        scales = (rng.standard_normal(raw.shape[:2]) / 8192).astype("<f2")
        raw[..., at : at + 2] = scales[..., None].view(np.uint8)
    return raw.reshape(rows, -1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A GGUF file's folder, and a checkpoint of the values that the gguf package reads in it.

    All matrices are in blocks: the kernels' format rounds what isn't, to 8 bits.
    """
    ours, theirs = tmp_path_factory.mktemp("gguf"), tmp_path_factory.mktemp("plain")
    writer = gguf.GGUFWriter(ours / "m.gguf", "phi3")
    writer.add_context_length(128)
    writer.add_embedding_length(DIM)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(24)
    writer.add_rope_scaling_orig_ctx_len(64)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(VOCAB)
    writer.add_token_types([3] * len(SPECIALS) + [1] * (len(VOCAB) - len(SPECIALS)))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    plain: dict[str, NDArray[np.float32]] = {}
    rng = np.random.default_rng(0)

    def add(name: str, hub: str, *shape: int, kind: Kind = Kind.F32) -> None:
        if kind == Kind.F32:
            values = rng.normal(size=shape).astype(np.float32)
            writer.add_tensor(name, values)
        else:
            raw = blocks(kind, *shape, seed=len(plain))
            values = gguf.quants.dequantize(raw, kind)
            writer.add_tensor(name, raw, raw_dtype=kind)
        plain[hub] = values

    add("token_embd.weight", "model.embed_tokens.weight", len(VOCAB), DIM, kind=Kind.Q4_K)
    add("output_norm.weight", "model.norm.weight", DIM)
    add("output.weight", "lm_head.weight", len(VOCAB), DIM, kind=Kind.Q6_K)
    for i in range(LAYERS):
        block, hub = f"blk.{i}.", f"model.layers.{i}."
        add(f"{block}attn_norm.weight", f"{hub}input_layernorm.weight", DIM)
        add(f"{block}ffn_norm.weight", f"{hub}post_attention_layernorm.weight", DIM)
        add(f"{block}attn_qkv.weight", f"{hub}self_attn.qkv_proj.weight",
            (HEADS + 2 * KV_HEADS) * HEAD_DIM, DIM, kind=Kind.Q4_K)  # fmt: skip
        add(f"{block}attn_output.weight", f"{hub}self_attn.o_proj.weight", DIM, DIM, kind=Kind.Q4_K)
        add(f"{block}ffn_up.weight", f"{hub}mlp.gate_up_proj.weight", 2 * HIDDEN, DIM,
            kind=Kind.Q4_K)  # fmt: skip
        add(f"{block}ffn_down.weight", f"{hub}mlp.down_proj.weight", DIM, HIDDEN, kind=Kind.Q6_K)
    for length, factors in (("short", SHORT), ("long", LONG)):
        writer.add_tensor(f"rope_factors_{length}.weight", factors.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    convert(ours / "m.gguf", ours)
    write_safetensors(theirs / "model.safetensors", plain)
    raw = {
        "architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "hidden_size": DIM,
        "intermediate_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "vocab_size": len(VOCAB), "rms_norm_eps": 1e-5,
        "max_position_embeddings": 128, "original_max_position_embeddings": 64,
        "tie_word_embeddings": False, "partial_rotary_factor": 0.75, "rope_theta": 10000.0,
        "rope_scaling": {"type": "longrope", "short_factor": SHORT.tolist(),
                         "long_factor": LONG.tolist()},
    }  # fmt: skip
    (theirs / "config.json").write_text(json.dumps(raw))
    return ours, theirs


def model_of(folder: Path) -> Model:
    config = ModelConfig.from_folder(folder)
    return Model(config, load_weights(folder, config))


def test_values_and_logits(folders: tuple[Path, Path]) -> None:
    """To the bit: q, k, v and gate, up out of one matrix each, by rows of blocks."""
    ours, theirs = map(model_of, folders)
    for name, array in theirs.weights.items():
        np.testing.assert_array_equal(ours.weights[name], array, err_msg=name)
    for context in (64, 128):  # short factors, and long ones
        logits = [model.forward(IDS, model.new_cache(context)) for model in (ours, theirs)]
        # The factors are 32-bit numbers in a GGUF file.
        np.testing.assert_allclose(*logits, rtol=0, atol=1e-5)
    assert np.abs(logits[0]).max() > 0.1


def test_the_blocks_are_handed_over_as_they_are(folders: tuple[Path, Path]) -> None:
    """For the kernels: each part of a fused matrix in the file's own bits."""
    config = ModelConfig.from_folder(folders[0])
    stored, weights = Checkpoint(folders[0], config), model_of(folders[1]).weights
    for part in ("self_attn.q_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"):
        name = f"model.layers.1.{part}.weight"
        own = stored.blocks(name)
        assert own is not None and own.kind == "Q4_K"
        assert weights[name].shape == stored[name].shape


@pytest.mark.long
def test_the_kernels_compute_in_them(folders: tuple[Path, Path]) -> None:
    from tinyllm.compiled import CompiledModel

    readable = model_of(folders[1])
    config = ModelConfig.from_folder(folders[0])
    compiled = CompiledModel(config, folders[0], "gguf", threads=2, kv_cache_mb=8)
    want = readable.forward(IDS, readable.new_cache(64))
    got = compiled.forward(IDS, compiled.new_cache(), logits="all")
    assert np.abs(got - want).max() < 2e-3 * np.abs(want).max()
