"""config.py: hub keys become our names, and what can't be run is refused by key."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.llama_folders import LLAMA3_ROPE, SMALL, small_config
from tinyllm.config import ModelConfig, RopeScaling, read_json_object
from tinyllm.errors import ConfigError, TinyllmError

MISSING = object()


def without(*keys: str) -> dict[str, Any]:
    return {key: value for key, value in SMALL.items() if key not in keys}


def test_every_key_becomes_a_name() -> None:
    assert ModelConfig.from_hf(SMALL) == ModelConfig(
        dim=48, hidden_dim=80, n_layers=3, n_heads=6, n_kv_heads=2, head_dim=10, vocab_size=99,
        max_seq_len=256, rope_theta=10000.0, norm_eps=1e-5, tie_embeddings=True, bos_id=1,
        eos_ids=(2,), rope_scaling=None,
    )  # fmt: skip


def test_what_a_checkpoint_may_leave_out() -> None:
    raw = without("num_key_value_heads", "head_dim", "rope_theta", "rms_norm_eps", "hidden_act",
                  "tie_word_embeddings", "bos_token_id", "eos_token_id",
                  "max_position_embeddings")  # fmt: skip
    config = ModelConfig.from_hf(raw)
    assert (config.n_kv_heads, config.head_dim) == (6, 8)  # as many as heads; dim / n_heads
    assert (config.rope_theta, config.norm_eps, config.max_seq_len) == (10_000.0, 1e-6, 2048)
    assert (config.tie_embeddings, config.bos_id, config.eos_ids) == (False, None, ())


def test_null_is_as_good_as_missing() -> None:
    nulls = dict.fromkeys(("head_dim", "num_key_value_heads", "rope_scaling", "bos_token_id"))
    config = ModelConfig.from_hf(small_config(**nulls))
    assert (config.head_dim, config.n_kv_heads, config.bos_id) == (8, 6, None)


def test_model_type_alone_will_do() -> None:
    """Some exports name no architecture."""
    assert ModelConfig.from_hf(small_config(architectures=None)) == ModelConfig.from_hf(SMALL)
    with pytest.raises(ConfigError, match="architectures"):
        ModelConfig.from_hf(small_config(architectures=[], model_type="mamba2"))


@pytest.mark.parametrize(
    ("eos", "expected"), [(2, (2,)), ([2], (2,)), ([2, 7], (2, 7)), (None, ()), ([], ())]
)
def test_one_end_token_or_several(eos: Any, expected: tuple[int, ...]) -> None:
    assert ModelConfig.from_hf(small_config(eos_token_id=eos)).eos_ids == expected


def test_whole_numbers_may_stand_for_floats() -> None:
    assert ModelConfig.from_hf(small_config(rope_theta=10000)).rope_theta == 10_000.0


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_rope_scaling(key: str) -> None:
    linear = ModelConfig.from_hf(small_config(**{key: {"type": "linear", "factor": 4}}))
    assert linear.rope_scaling == RopeScaling("linear", 4.0)
    llama3 = ModelConfig.from_hf(small_config(**{key: LLAMA3_ROPE}))
    assert llama3.rope_scaling == RopeScaling("llama3", 8.0, 1.0, 4.0, 64)
    plain = ModelConfig.from_hf(small_config(**{key: {"rope_type": "default"}}))
    assert plain.rope_scaling is None


def test_theta_inside_rope_parameters() -> None:
    """Where transformers 5 writes it."""
    raw = without("rope_theta") | {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
    assert ModelConfig.from_hf(raw).rope_theta == 5e5


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("architectures", ["Mamba2ForCausalLM"]), ("architectures", "Llama"),
        ("architectures", 7), ("architectures", [["LlamaForCausalLM"]]),
        ("hidden_act", "mish"), ("hidden_act", 3),
        ("attention_bias", 1), ("mlp_bias", "no"), ("sliding_window", 4096),
        ("quantization_config", {"quant_method": "gptq"}),
        ("hidden_size", MISSING), ("hidden_size", "48"), ("hidden_size", 48.5),
        ("hidden_size", True), ("hidden_size", -48), ("hidden_size", 0), ("hidden_size", [48]),
        ("intermediate_size", MISSING), ("intermediate_size", {}), ("intermediate_size", -1),
        ("num_hidden_layers", MISSING), ("num_hidden_layers", "3"), ("num_hidden_layers", 0),
        ("num_attention_heads", MISSING), ("num_attention_heads", 0),
        ("num_attention_heads", -6), ("num_attention_heads", None),
        ("num_key_value_heads", 0), ("num_key_value_heads", 4), ("num_key_value_heads", "two"),
        ("head_dim", 7), ("head_dim", -2), ("head_dim", "10"),
        ("vocab_size", MISSING), ("vocab_size", 0), ("vocab_size", 1.5),
        ("max_position_embeddings", 0), ("max_position_embeddings", "256"),
        ("rope_theta", 0), ("rope_theta", -1.0), ("rope_theta", "1e4"), ("rope_theta", []),
        ("rope_theta", float("nan")), ("rope_theta", float("inf")),
        ("rms_norm_eps", -1e-5), ("rms_norm_eps", "tiny"), ("rms_norm_eps", float("nan")),
        ("rms_norm_eps", float("inf")),
        ("tie_word_embeddings", "yes"), ("tie_word_embeddings", 1),
        ("bos_token_id", "1"), ("bos_token_id", True),
        ("bos_token_id", 1.0),
        ("eos_token_id", "2"), ("eos_token_id", [2, None]), ("eos_token_id", {"id": 2}),
        ("rope_scaling", [1]), ("rope_scaling", "linear"), ("rope_scaling", {"type": "yarn"}),
        ("rope_scaling", {"type": "linear"}), ("rope_scaling", {"type": "linear", "factor": "2"}),
        ("rope_scaling", {"type": "linear", "factor": 0.0}),
        ("rope_scaling", {"type": ["linear"], "factor": 2.0}),
        ("rope_scaling", {"rope_type": "llama3", "factor": 8.0}),
        ("rope_scaling", {**LLAMA3_ROPE, "low_freq_factor": 4.0}),
    ],
    ids=lambda value: str(value)[:30] if value is not MISSING else "missing",
)  # fmt: skip
def test_what_is_refused_and_by_which_key(key: str, value: Any) -> None:
    raw = without(key) if value is MISSING else small_config(**{key: value})
    with pytest.raises(ConfigError) as caught:
        ModelConfig.from_hf(raw)
    ours = {
        "hidden_size": "dim",
        "intermediate_size": "hidden_dim",
        "num_hidden_layers": "n_layers",
        "num_key_value_heads": "n_kv_heads",
        "max_position_embeddings": "max_seq_len",
        "rms_norm_eps": "norm_eps",
        "rope_scaling": "rope type",
    }
    text = str(caught.value)
    assert key in text or ours.get(key, key) in text, text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=5,
)


@given(st.sampled_from([*SMALL, "rope_scaling", "rope_parameters", "text_config"]), JSON)
def test_any_value_is_taken_or_refused_but_never_a_crash(key: str, value: Any) -> None:
    try:
        config = ModelConfig.from_hf(small_config(**{key: value}))
    except TinyllmError:
        return
    assert config.n_heads % config.n_kv_heads == 0
    assert all(type(n) is int for n in (config.dim, config.n_layers, config.vocab_size))


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ModelConfig.from_hf(SMALL).dim = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (None, "missing"),
        (b"", "JSON"),
        (b"{", "JSON"),
        (b"\xff\xfe{}", "JSON"),
        (b"[1, 2]", "object"),
        (b"null", "object"),
        (b"[" * 100_000, "JSON"),
        (b'{"hidden_size": ' + b"9" * 5_000 + b"}", ""),
        (b"\xef\xbb\xbf" + json.dumps(SMALL).encode(), "JSON"),
        (json.dumps(small_config(vocab_size="many")).encode(), "vocab_size"),
    ],
    ids=[
        "missing",
        "empty",
        "cut",
        "not utf-8",
        "list",
        "null",
        "deep",
        "huge number",
        "BOM",
        "type",
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, content: bytes | None, word: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        ModelConfig.from_folder(tmp_path)
    assert str(caught.value).count(str(tmp_path / "config.json")) == 1
    assert word in str(caught.value)


def test_a_folder_in_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    with pytest.raises(ConfigError, match=r"config\.json"):
        read_json_object(tmp_path / "config.json")


def test_the_real_config(weights_folder: Path) -> None:
    config = ModelConfig.from_folder(weights_folder)
    assert (config.dim, config.hidden_dim, config.n_layers) == (576, 1536, 30)
    assert (config.n_heads, config.n_kv_heads, config.head_dim) == (9, 3, 64)
    assert (config.vocab_size, config.max_seq_len) == (49_152, 8192)
    assert (config.rope_theta, config.norm_eps, config.tie_embeddings) == (1e5, 1e-5, True)
    assert (config.bos_id, config.eos_ids) == (1, (2,))
