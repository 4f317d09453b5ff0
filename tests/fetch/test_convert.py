"""The conversion loses nothing: every value is the reference dequantiser's, to the bit."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from numpy.typing import NDArray

from tests.fetch.files import HEAD_DIM, HEADS, KV_HEADS, LAYERS, VOCAB, tensors, write_gguf
from tinyllm.config import ModelConfig
from tinyllm.errors import FetchError, WeightsError
from tinyllm.fetch.convert import convert, half_split_order, hub_name, shortest
from tinyllm.files import carried
from tinyllm.tokenizer import Tokenizer
from tinyllm.weights import load_weights


def interleave(rows: NDArray[np.float32], n_heads: int) -> NDArray[np.float32]:
    """What llama.cpp does to query and key rows (convert_hf_to_gguf.py, `permute`)."""
    half_split = rows.reshape(n_heads, 2, rows.shape[0] // n_heads // 2, *rows.shape[1:])
    return half_split.swapaxes(1, 2).reshape(rows.shape)


def as_stored(name: str, values: NDArray[np.float32], heads: int, kv_heads: int) -> NDArray:
    if "attn_q" in name or "attn_k" in name:
        return interleave(values, heads if "attn_q" in name else kv_heads)
    return values


def assert_same_values(source: Path, folder: Path, n_heads: int, n_kv_heads: int) -> None:
    """Both weight files of `folder` hold exactly what the gguf package reads from `source`."""
    weights = load_weights(folder, ModelConfig.from_folder(folder))
    blocks = carried.load_blocks(folder)
    stored = gguf.GGUFReader(source).tensors
    assert set(weights) == set(blocks) == {hub_name(tensor.name) for tensor in stored}
    for tensor in stored:
        expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        name = hub_name(tensor.name)
        for values in (weights[name], blocks[name].values()):
            assert values.dtype == np.float32
            back = as_stored(tensor.name, values, n_heads, n_kv_heads)
            np.testing.assert_array_equal(back, expected, err_msg=name)


@pytest.mark.long
def test_the_real_weights_to_the_bit(weights_folder: Path, gguf_file: Path) -> None:
    assert_same_values(gguf_file, weights_folder, n_heads=9, n_kv_heads=3)


@pytest.mark.reference
def test_the_reference_loads_the_folder_whole(weights_folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    _, report = AutoModelForCausalLM.from_pretrained(weights_folder, output_loading_info=True)
    assert not any(report.values())


@pytest.mark.parametrize(
    "kind", [Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1], ids=lambda k: k.name
)
def test_a_small_model_to_the_bit(tmp_path: Path, kind: Kind) -> None:
    source = write_gguf(tmp_path / "m.gguf", kind)
    folder = tmp_path / "out"
    folder.mkdir()
    seen: list[tuple[int, int]] = []
    convert(source, folder, lambda done, total: seen.append((done, total)))
    assert_same_values(source, folder, HEADS, KV_HEADS)
    assert seen == [(i + 1, len(tensors())) for i in range(len(tensors()))]


def test_the_config(tmp_path: Path) -> None:
    convert(write_gguf(tmp_path / "m.gguf"), tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    assert raw["architectures"] == ["LlamaForCausalLM"]
    assert raw["rms_norm_eps"] == 1e-5
    assert raw["rope_theta"] == 100000
    assert raw["tie_word_embeddings"] is True
    config = ModelConfig.from_folder(tmp_path)
    assert (config.n_layers, config.n_heads, config.n_kv_heads) == (LAYERS, HEADS, KV_HEADS)
    assert (config.head_dim, config.vocab_size) == (HEAD_DIM, len(VOCAB))
    assert (config.bos_id, config.eos_ids, config.max_seq_len) == (1, (2,), 128)


def test_an_untied_head(tmp_path: Path) -> None:
    weights = tensors()
    weights["output.weight"] = weights["token_embd.weight"] + 1
    convert(write_gguf(tmp_path / "m.gguf", Kind.F32, weights=weights), tmp_path)
    config = ModelConfig.from_folder(tmp_path)
    assert not config.tie_embeddings
    loaded = load_weights(tmp_path, config)
    np.testing.assert_array_equal(loaded["lm_head.weight"], weights["output.weight"])


def test_the_tokenizer_splits_digits(tmp_path: Path) -> None:
    convert(write_gguf(tmp_path / "m.gguf"), tmp_path)
    tokenizer = Tokenizer.from_folder(tmp_path)
    pieces = [tokenizer.token_text(id) for id in tokenizer.encode("hello world 1024")]
    assert pieces == ["hello", " w", "o", "r", "l", "d", " ", "1", "0", "2", "4"]
    assert tokenizer.eos_ids == (2,)
    assert tokenizer.chat_template is not None


def test_row_order() -> None:
    """Pairs (0, 1), (2, 3) of each head become (0, d/2), (1, d/2 + 1)."""
    assert half_split_order(12, n_heads=2).tolist() == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]
    rows = np.arange(24, dtype=np.float32)[:, None]
    np.testing.assert_array_equal(interleave(rows, 3)[half_split_order(24, 3)], rows)


def test_names() -> None:
    assert hub_name("blk.12.attn_k.weight") == "model.layers.12.self_attn.k_proj.weight"
    assert hub_name("token_embd.weight") == "model.embed_tokens.weight"
    for odd in ("blk.x.attn_k.weight", "blk.0.attn_k.bias", "blk.0.attn_z.weight", "rope_freqs"):
        with pytest.raises(FetchError, match="no place in a Llama model"):
            hub_name(odd)


def test_shortest_decimal() -> None:
    assert shortest(float(np.float32(1e-5))) == 1e-5
    assert shortest(float(np.float32(1e-6))) == 1e-6
    assert shortest(500000.0) == 500000.0


BROKEN = {
    "another architecture": ({"general.architecture": "mamba"}, "'mamba' model"),
    "experts": ({"llama.expert_count": 8}, "llama.expert_count"),
    "stretched rotary": ({"llama.rope.scaling.type": "yarn"}, "llama.rope.scaling.type"),
    "partial rotary": ({"llama.rope.dimension_count": 8}, "part of a head"),
    "another pre-tokenizer": ({"tokenizer.ggml.pre": "llama-bpe"}, "llama-bpe"),
    "another tokenizer": ({"tokenizer.ggml.model": "llama"}, "not one that is converted"),
    "no layer count": ({"llama.block_count": None}, "llama.block_count"),
    "a mistyped layer count": ({"llama.block_count": "two"}, "llama.block_count"),
    "a billion layers": ({"llama.block_count": 10**9}, "its tensors say otherwise"),
    "no heads": ({"llama.attention.head_count": 0}, "head_count"),
    "heads that do not fit": ({"llama.attention.head_count_kv": 3}, "does not split over 3 heads"),
    "heads a layer": ({"llama.attention.head_count_kv": [2, 2]}, "head_count_kv"),
    "too few token types": ({"tokenizer.ggml.token_type": [1, 1]}, "vocabulary is damaged"),
    "doubled tokens": ({"tokenizer.ggml.tokens": ["a"] * len(VOCAB)}, "vocabulary is damaged"),
    "merges of nothing": ({"tokenizer.ggml.merges": ["zz yy"]}, "vocabulary is damaged"),
    "merges without a space": ({"tokenizer.ggml.merges": ["zz"]}, "vocabulary is damaged"),
    "eos outside": ({"tokenizer.ggml.eos_token_id": 10**6}, "eos token 1000000 is outside"),
    "a space in front": ({"tokenizer.ggml.add_space_prefix": True}, "space prefix"),
}


@pytest.mark.parametrize(("change", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_what_cannot_be_converted_says_why(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    with pytest.raises(FetchError, match=message):
        convert(write_gguf(tmp_path / "m.gguf", change=change), tmp_path)


def test_a_missing_embedding(tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "m.gguf", drop=("token_embd.weight",))
    with pytest.raises(FetchError, match=r"no tensor 'token_embd\.weight'"):
        convert(source, tmp_path)


def test_carried_blocks_that_do_not_fit(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    path = tmp_path / carried.FILE_NAME
    with pytest.raises(WeightsError, match=r"model\.q4\.safetensors"):
        carried.load_blocks(tmp_path)
    save_file({"t.q8": np.zeros((4, 64), np.int8)}, path)
    with pytest.raises(WeightsError, match="'t' do not fit"):
        carried.load_blocks(path)
    save_file({"t.q8": np.zeros((4, 64), np.int8), "t.scales": np.zeros((4, 3), np.float16)}, path)
    with pytest.raises(WeightsError, match="'t' do not fit"):
        carried.load_blocks(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(WeightsError, match=r"model\.q4\.safetensors"):
        carried.load_blocks(path)
