"""The conversion loses nothing: every value is the reference dequantiser's, to the bit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tokenizers
from gguf import GGMLQuantizationType as Kind
from numpy.typing import NDArray

from tests.fetch.files import (
    DIM,
    HEAD_DIM,
    HEADS,
    HIDDEN,
    KV_HEADS,
    LAYERS,
    VOCAB,
    tensors,
    write_gguf,
)
from tinyllm.config import ModelConfig
from tinyllm.errors import FetchError
from tinyllm.families.tensors import GATE_UP, Source, Taken
from tinyllm.fetch.convert import convert, plain_merges
from tinyllm.files.blocks import KINDS, Blocks
from tinyllm.files.gguf import GGUF
from tinyllm.files.gguf_config import hub_config, llama3_factors, shortest
from tinyllm.files.gguf_families import LAYER
from tinyllm.files.gguf_tokenizer import build_tokenizer
from tinyllm.files.gguf_weights import GGUFWeights, half_split_order
from tinyllm.kernels import mixture
from tinyllm.kernels.formats import FORMATS
from tinyllm.kernels.own_format import own_format
from tinyllm.kernels.packed import pack
from tinyllm.tokenizer import Tokenizer
from tinyllm.weights import Checkpoint, load_weights


def interleave(rows: NDArray[np.float32], n_heads: int) -> NDArray[np.float32]:
    """What llama.cpp does to query and key rows (convert_hf_to_gguf.py, `permute`)."""
    half_split = rows.reshape(n_heads, 2, rows.shape[0] // n_heads // 2, *rows.shape[1:])
    return half_split.swapaxes(1, 2).reshape(rows.shape)


def as_stored(name: str, values: NDArray[np.float32], heads: int, kv_heads: int) -> NDArray:
    if "attn_q" in name or "attn_k" in name:
        return interleave(values, heads if "attn_q" in name else kv_heads)
    return values


def assert_same_values(source: Path, folder: Path, n_heads: int, n_kv_heads: int) -> None:
    """The folder's tensors are exactly what the gguf package reads from `source`, blocks too."""
    weights = stored = Checkpoint(folder, ModelConfig.from_folder(folder))
    theirs = gguf.GGUFReader(source).tensors
    assert len(weights) == len(theirs)
    for tensor in theirs:
        expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        name = hub_name(tensor.name)
        assert weights[name].dtype == np.float32
        back = as_stored(tensor.name, weights[name], n_heads, n_kv_heads)
        np.testing.assert_array_equal(back, expected, err_msg=name)
        blocks = stored.blocks(name)
        assert (blocks is None) == (tensor.tensor_type.name not in KINDS)
        if blocks is not None:
            np.testing.assert_array_equal(values_of(blocks), weights[name], err_msg=name)


def values_of(blocks: Blocks) -> NDArray[np.float32]:
    """The plain version of what the kernels do with blocks."""
    if blocks.kind not in ("Q8_0", "Q4_0", "Q4_1"):
        return mixture.restore(*mixture.carry(blocks))
    scales = blocks.scales.astype(np.float32)[..., None]
    if blocks.kind == "Q8_0":
        values = blocks.q.reshape(*blocks.scales.shape, 32) * scales
    else:
        nibbles = np.concatenate([blocks.q & 15, blocks.q >> 4], axis=-1).astype(np.float32)
        values = (nibbles - 8) * scales if blocks.mins is None else nibbles * scales
        if blocks.mins is not None:
            values += blocks.mins.astype(np.float32)[..., None]
    return values.reshape(*blocks.scales.shape[:-1], -1)


def hub_name(name: str) -> str:
    """Of a Llama's tensors."""
    names = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    stem = name.removesuffix(".weight")
    if stem in names:
        return f"{names[stem]}.weight"
    _, layer, stem = stem.split(".")
    return f"model.layers.{layer}.{LAYER[stem]}.weight"


@pytest.mark.long
def test_the_real_weights_to_the_bit(weights_folder: Path, gguf_file: Path) -> None:
    assert_same_values(gguf_file, weights_folder, n_heads=9, n_kv_heads=3)


@pytest.mark.parametrize(
    "kind",
    [Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1],
    ids=lambda k: k.name,
)
def test_a_small_model_to_the_bit(tmp_path: Path, kind: Kind) -> None:
    source = write_gguf(tmp_path / "m.gguf", kind)
    folder = tmp_path / "out"
    folder.mkdir()
    seen: list[tuple[int, int]] = []
    convert(source, folder, lambda done, total: seen.append((done, total)))
    assert_same_values(source, folder, HEADS, KV_HEADS)
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert (folder / "model.gguf").stat().st_ino == source.stat().st_ino  # no second copy


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


def test_merges_are_written_as_text_and_mean_the_same(tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "m.gguf")
    convert(source, tmp_path)
    path = tmp_path / "tokenizer.json"
    merges = json.loads(path.read_text(encoding="utf-8"))["model"]["merges"]
    assert merges and all(isinstance(merge, str) for merge in merges)
    with GGUF(source) as file:
        assert tokenizers.Tokenizer.from_file(str(path)).to_str() == build_tokenizer(file).to_str()
    spaced: dict[str, Any] = {"model": {"merges": [["a b", "c"]]}}
    assert plain_merges(spaced)["model"]["merges"] == [["a b", "c"]]


def test_row_order() -> None:
    """Pairs (0, 1), (2, 3) of each head become (0, d/2), (1, d/2 + 1)."""
    assert half_split_order(12, n_heads=2).tolist() == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]
    rows = np.arange(24, dtype=np.float32)[:, None]
    np.testing.assert_array_equal(interleave(rows, 3)[half_split_order(24, 3)], rows)


def test_shortest_decimal() -> None:
    assert shortest(float(np.float32(1e-5))) == 1e-5
    assert shortest(float(np.float32(1e-6))) == 1e-6
    assert shortest(500000.0) == 500000.0


BROKEN = {
    "another architecture": (
        {"general.architecture": "mamba"},
        "'mamba' model; GGUF files of llama",
    ),
    "a key that changes numbers": ({"llama.logit_scale": 0.5}, "sets llama.logit_scale to 0.5"),
    "strange rotary": ({"llama.rope.scaling.type": "dizzy"}, "'dizzy': not run here"),
    "another pre-tokenizer": ({"tokenizer.ggml.pre": "klingon"}, "cuts words by 'klingon'"),
    "another tokenizer": ({"tokenizer.ggml.model": "bert"}, r"WordPiece; .*hf:OWNER/NAME"),
    "no layer count": ({"llama.block_count": None}, "llama.block_count"),
    "a mistyped layer count": ({"llama.block_count": "two"}, "llama.block_count"),
    "a billion layers": ({"llama.block_count": 10**9}, "should have 1000000000 layers"),
    "no heads": ({"llama.attention.head_count": 0}, "head_count"),
    "heads that do not fit": ({"llama.attention.head_count_kv": 3}, "does not split over 3 heads"),
    "heads a layer": ({"llama.attention.head_count_kv": [2, 2]}, "head_count_kv"),
    "too few token types": ({"tokenizer.ggml.token_type": [1, 1]}, "vocabulary is damaged"),
    "doubled tokens": ({"tokenizer.ggml.tokens": ["a"] * len(VOCAB)}, "vocabulary is damaged"),
    "merges of nothing": ({"tokenizer.ggml.merges": ["zz yy"]}, "vocabulary is damaged"),
    "merges without a space": ({"tokenizer.ggml.merges": ["zz"]}, "vocabulary is damaged"),
    "eos outside": ({"tokenizer.ggml.eos_token_id": 10**6}, "eos token 1000000 is outside"),
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


# -- what files say beside the plain things --------------------------------------------------------


def config_of(tmp_path: Path, change: dict[str, object], **more: NDArray[np.float32]) -> Any:
    source = write_gguf(tmp_path / "m.gguf", change=change, weights={**tensors(), **more})
    with GGUF(source) as file:
        return hub_config(file)


def test_a_window_makes_it_a_mistral(tmp_path: Path) -> None:
    config = config_of(tmp_path, {"llama.attention.sliding_window": 64})
    assert (config["model_type"], config["sliding_window"]) == ("mistral", 64)


def test_ends_by_every_key(tmp_path: Path) -> None:
    change = {"tokenizer.ggml.eot_token_id": 1, "tokenizer.ggml.eom_token_id": 0}
    convert(write_gguf(tmp_path / "m.gguf", change=change), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["eos_token_id"] == [0, 1, 2]
    assert Tokenizer.from_folder(tmp_path).eos_ids == (0, 1, 2)


def test_a_tokenizer_that_adds_bos(tmp_path: Path) -> None:
    convert(
        write_gguf(tmp_path / "m.gguf", change={"tokenizer.ggml.add_bos_token": True}), tmp_path
    )
    assert Tokenizer.from_folder(tmp_path).bos_ids == (1,)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama_3s_own_scaling(tmp_path: Path, factor: float) -> None:
    factors = llama3_factors(100000.0, HEAD_DIM, factor).astype(np.float32)
    config = config_of(tmp_path, {}, **{"rope_freqs.weight": factors})
    assert config["rope_scaling"] == {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


def test_any_other_factors(tmp_path: Path) -> None:
    factors = np.linspace(1, 3, HEAD_DIM // 2, dtype=np.float32)
    scaling = config_of(tmp_path, {}, **{"rope_freqs.weight": factors})["rope_scaling"]
    assert scaling["rope_type"] == "longrope"
    assert np.float32(scaling["long_factor"]).tolist() == factors.tolist()
    assert scaling["short_factor"] == scaling["long_factor"]
    assert scaling["attention_factor"] == 1.0


def test_stretched_rotary(tmp_path: Path) -> None:
    change: dict[str, object] = {
        "llama.rope.scaling.type": "yarn",
        "llama.rope.scaling.factor": 4.0,
        "llama.rope.scaling.original_context_length": 32,
    }
    assert config_of(tmp_path, change)["rope_scaling"] == {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    change = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0}
    assert config_of(tmp_path, change)["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}
    assert config_of(tmp_path, {"llama.rope.scaling.type": "none"})["rope_scaling"] is None


def test_biases_have_their_place(tmp_path: Path) -> None:
    bias = np.arange(HEADS * HEAD_DIM, dtype=np.float32)
    more = {f"blk.{i}.attn_q.bias": bias for i in range(LAYERS)}
    config = config_of(tmp_path, {}, **more)
    assert config["attention_bias"] is True
    with GGUF(tmp_path / "m.gguf") as file:
        read = GGUFWeights(file).values("model.layers.0.self_attn.q_proj.bias")
    np.testing.assert_array_equal(interleave(read[:, None], HEADS)[:, 0], bias)


WITH_EXPERTS: dict[str, object] = {"llama.expert_count": 4, "llama.expert_used_count": 2}


def with_experts() -> dict[str, NDArray[Any]]:
    """The tiny model's tensors with four experts a layer."""
    weights = {n: w for n, w in tensors().items() if "ffn_" not in n or "norm" in n}
    rng = np.random.default_rng(1)
    for i in range(LAYERS):
        weights[f"blk.{i}.ffn_gate_inp.weight"] = rng.normal(size=(4, DIM)).astype(np.float32)
        for name in ("gate", "up", "down"):
            shape = (4, DIM, HIDDEN) if name == "down" else (4, HIDDEN, DIM)
            stack = rng.normal(size=shape).astype(np.float32)
            weights[f"blk.{i}.ffn_{name}_exps.weight"] = stack
    return weights


def test_stacked_experts(tmp_path: Path) -> None:
    weights = with_experts()
    source = write_gguf(tmp_path / "m.gguf", Kind.F32, change=WITH_EXPERTS, weights=weights)
    with GGUF(source) as file:
        config, read = hub_config(file), GGUFWeights(file)
        assert config["model_type"] == "mixtral"
        assert (config["num_local_experts"], config["num_experts_per_tok"]) == (4, 2)
        name = "model.layers.1.block_sparse_moe.experts.3.w2.weight"
        assert read.shapes()[name] == (DIM, HIDDEN)
        np.testing.assert_array_equal(read.values(name), weights["blk.1.ffn_down_exps.weight"][3])


def test_an_expert_keeps_the_files_own_numbers(tmp_path: Path) -> None:
    """In the kernels' layout, each a matrix of its own; experts of another kind than the rest."""
    kinds = {f"blk.{i}.ffn_{name}_exps": Kind.Q5_1 for i in range(LAYERS)
             for name in ("gate", "up", "down")} | {f"blk.{i}.ffn_gate_inp": Kind.F32
                                                    for i in range(LAYERS)}  # fmt: skip
    convert(write_gguf(tmp_path / "m.gguf", Kind.Q8_0, change=WITH_EXPERTS, weights=with_experts(),
                       by_prefix=kinds), tmp_path)  # fmt: skip
    config = ModelConfig.from_folder(tmp_path)
    assert own_format(tmp_path) == "gguf"
    stored = Checkpoint(tmp_path, config)
    packed = pack(config, stored, "gguf", stored)
    form = FORMATS["gguf"]
    names = [f"model.layers.{i}.mlp.experts.{e}" for i in range(LAYERS) for e in range(4)]
    ends = np.append(packed["expert_down"].starts[1:, 0], packed["expert_down"].values.size)
    for matrix, name in enumerate(names):
        down = packed["expert_down"]
        assert (down.kinds[matrix] == mixture.Q5).all()
        starts = down.starts[matrix]
        one = mixture.Mixture(down.values[0, starts[0] : ends[matrix]], down.kinds[matrix],
                              starts - starts[0])  # fmt: skip
        got = form.stands_for(one, DIM)
        np.testing.assert_array_equal(got, stored[f"{name}.down_proj.weight"])
    router = FORMATS["f32"].stands_for(type(packed["router"])(packed["router"].values[1]), 4)
    np.testing.assert_array_equal(router, stored["model.layers.1.mlp.router.weight"])


def test_a_tensor_without_a_place(tmp_path: Path) -> None:
    more = {"blk.0.attn_z.weight": np.ones(4, np.float32)}
    source = write_gguf(tmp_path / "m.gguf", weights={**tensors(), **more})
    with pytest.raises(FetchError, match=r"'blk\.0\.attn_z\.weight' has no place in a LlamaFor"):
        convert(source, tmp_path)


def test_blocks_of_a_fused_matrix_are_its_rows(tmp_path: Path) -> None:
    """Gate and up in one tensor, as Phi-3 has them: each is handed over unrounded."""
    convert(write_gguf(tmp_path / "m.gguf", Kind.Q5_1), tmp_path)
    config = ModelConfig.from_folder(tmp_path)
    stored, fused = Checkpoint(tmp_path, config), "model.layers.0.mlp.gate_proj"
    values = stored[f"{fused}.weight"]
    stored.config = replace(config, hidden_dim=config.hidden_dim // 2)
    for part, name in enumerate(GATE_UP):
        ours = f"model.layers.0.{name}.weight"
        stored._sources[ours] = Source(
            (f"{fused}.weight",), taken=Taken(fused, part, "rows", GATE_UP)
        )
        stored._shapes[ours] = (len(values) // 2, values.shape[1])
        blocks = stored.blocks(ours)
        assert blocks is not None
        half = slice(part * len(values) // 2, (part + 1) * len(values) // 2)
        np.testing.assert_array_equal(values_of(blocks), values[half])
        np.testing.assert_array_equal(stored[ours], values[half])
