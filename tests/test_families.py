"""families/: keys are used or refused, never passed over; names of every checkpoint become ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import families_readme
from tests.families_folder import FAMILIES, config_keys
from tests.golden.families import LENGTHS, kept, load_goldens, tokens, write_checkpoint
from tests.llama_folders import small_config, write_tokenizer
from tests.seeing_folders import GEMMA, QWEN_MOE
from tests.tiny import bytes_tokenizer
from tinyllm import families
from tinyllm.config import ModelConfig
from tinyllm.decode import Session
from tinyllm.errors import ConfigError
from tinyllm.families.parts import Layer
from tinyllm.families.tensors import Names, expected, source, split, take
from tinyllm.lm import LM
from tinyllm.model import Model
from tinyllm.weights import load_weights

GOLDENS = load_goldens()


def keys_of(name: str, **changes: Any) -> dict[str, Any]:
    model_type, keys = config_keys(name)
    return {"model_type": model_type, **keys, **changes}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_configuration_is_read_and_its_tensors_are_known(name: str) -> None:
    config = ModelConfig.from_hf(keys_of(name))
    assert config.family == FAMILIES[name][0]
    shapes = expected(config)
    assert all(min(shape) >= 1 for shape in shapes.values())
    assert hash(config) == hash(ModelConfig.from_hf(keys_of(name)))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_key_that_nobody_understands_is_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigError, match="attn_magic"):
        ModelConfig.from_hf(keys_of(name, attn_magic=3))
    ModelConfig.from_hf(keys_of(name, attn_magic=None, initializer_range=0.5, use_cache=False))


def test_an_unknown_architecture_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"Qwen3NextForCausalLM.*nearest.*Qwen3"):
        ModelConfig.from_hf({"architectures": ["Qwen3NextForCausalLM"], "model_type": "qwen3_next"})


def test_model_type_and_architectures_must_agree() -> None:
    """The reference goes by the former, whose multipliers would be passed over."""
    with pytest.raises(ConfigError, match=r"model_type is 'granite'.*LlamaForCausalLM"):
        ModelConfig.from_hf(small_config(model_type="granite"))
    with pytest.raises(ConfigError, match="two families"):
        both = ["LlamaForCausalLM", "GraniteForCausalLM"]
        ModelConfig.from_hf(small_config(architectures=both))


def test_rope_scaling_goes_before_rope_parameters() -> None:
    """Yarn added by hand beside a default that transformers 5 wrote: the reference takes it."""
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    default = {"rope_type": "default", "rope_theta": 5e5}
    config = ModelConfig.from_hf(small_config(rope_scaling=yarn, rope_parameters=default))
    assert config.rope_scaling is not None and config.rope_scaling.kind == "yarn"
    assert config.rope_theta == 1e4  # of rope_theta beside them, not of the forgotten one


def test_rotary_parameters_by_kind_of_layer_are_refused_where_there_is_one_kind() -> None:
    nested = {"full_attention": {"rope_type": "default"}}
    with pytest.raises(ConfigError, match="nested"):
        ModelConfig.from_hf(small_config(rope_parameters=nested))
    with pytest.raises(ConfigError, match="mrope_section"):
        ModelConfig.from_hf(small_config(rope_scaling={"type": "default", "mrope_section": [1]}))


def test_mistral_has_a_window_unless_it_is_null() -> None:
    keys = keys_of("mistral")
    del keys["sliding_window"]
    assert ModelConfig.from_hf(keys).layer(0) == Layer(4096)
    assert ModelConfig.from_hf(keys_of("mistral", sliding_window=None)).layer(0) == Layer(None)


@pytest.mark.parametrize("name", ["gemma3", "olmo3"])
def test_what_the_reference_passes_over_by_kind_of_layer_is_refused(name: str) -> None:
    """It reads an old `type` in rope_scaling as "default", and no `truncate` that is nested."""
    with pytest.raises(ConfigError, match=r"type is 'linear'.*rope_type alone"):
        ModelConfig.from_hf(keys_of(name, rope_scaling={"type": "linear", "factor": 2.0}))
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    nested = {"full_attention": {**yarn, "truncate": False}}
    with pytest.raises(ConfigError, match="truncate is False"):
        ModelConfig.from_hf(keys_of(name, rope_parameters=nested))


def test_a_share_of_a_head_that_a_family_does_not_have_is_refused() -> None:
    """The reference turns a Llama's heads whole, whatever the file says."""
    for keys in ({"partial_rotary_factor": 0.5}, {"rope_parameters": {
            "rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}}):  # fmt: skip
        with pytest.raises(ConfigError, match=r"partial_rotary_factor is 0\.5"):
            ModelConfig.from_hf(small_config(**keys))
    whole = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0}
    assert ModelConfig.from_hf(small_config(rope_parameters=whole)).rotary_dim is None


def test_two_families_of_one_house_have_their_own_rotary_bases() -> None:
    """Where the file has none."""
    for name, theta in (("cohere", 500_000.0), ("cohere2", 10_000.0)):
        assert ModelConfig.from_hf(keys_of(name)).rope_theta == theta


@pytest.mark.parametrize("name", ["gpt_oss", "apertus", "ministral3"])
def test_rotary_parameters_that_are_null_are_the_familys_own(name: str) -> None:
    keys = keys_of(name)
    keys.pop("rope_parameters", None)
    without = ModelConfig.from_hf(keys)
    assert without.rope_scaling is not None
    assert ModelConfig.from_hf({**keys, "rope_parameters": None}) == without


def test_two_names_of_one_length_must_agree() -> None:
    """The reference takes the one that GPT-2's files don't have."""
    assert ModelConfig.from_hf(keys_of("gpt2", num_attention_heads=4)).n_heads == 4
    with pytest.raises(ConfigError, match="n_head is 4 and num_attention_heads 8"):
        ModelConfig.from_hf(keys_of("gpt2", num_attention_heads=8))


def test_qwen_has_a_window_only_where_it_is_switched_on() -> None:
    keys = keys_of("qwen2", sliding_window=4, max_window_layers=2)
    assert ModelConfig.from_hf(keys).layers == ()
    windows = ModelConfig.from_hf({**keys, "use_sliding_window": True}).layers
    assert [layer.window for layer in windows] == [None, None, 4, 4]


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "hqq", None])
def test_quantised_checkpoints_are_refused_by_name(method: str | None) -> None:
    with pytest.raises(ConfigError, match=f"{method}.*GGUF"):
        ModelConfig.from_hf(small_config(quantization_config={"quant_method": method, "bits": 4}))


def test_longrope_is_chosen_by_the_context() -> None:
    from tinyllm.kernels.reference import rope_frequencies

    config = ModelConfig.from_hf(keys_of("llama longrope"))
    short, long = (rope_frequencies(config.for_context(n)) for n in (32, 33))
    scaling = config.rope_scaling
    assert scaling is not None
    np.testing.assert_allclose(short / long, np.divide(scaling.long, scaling.short), rtol=1e-6)


def test_longrope_turns_a_short_text_by_the_short_factors(tmp_path: Path) -> None:
    """As the reference does, though the model's context is long; a longer prompt by the others."""
    write_checkpoint(GOLDENS["llama longrope"], tmp_path)
    config = ModelConfig.from_folder(tmp_path)
    assert config.plain_context == 32 < config.max_seq_len
    model = Model(config, load_weights(tmp_path, config))
    for n, capacity in ((10, 32), (32, 32), (33, config.max_seq_len)):
        ids = np.random.default_rng(1).integers(3, 97, n).tolist()
        session = Session(model, bytes_tokenizer(), ids)
        assert session.cache.capacity == capacity
        want = model.forward(ids, model.new_cache(capacity))[-1]
        np.testing.assert_allclose(session.peek().logits, want, rtol=1e-5, atol=1e-5)


def test_longrope_makes_no_room_for_the_token_behind_the_last(tmp_path: Path) -> None:
    """Nothing is asked of the model behind the last token, so it doesn't make a text long."""
    write_checkpoint(GOLDENS["llama longrope"], tmp_path)
    write_tokenizer(tmp_path, 97)
    lm = LM(tmp_path)
    for max_tokens, room in ((1, 30), (3, 32), (4, 33)):
        steps = list(lm.decode_steps([5] * 30, max_tokens=max_tokens, seed=1))
        assert len(steps) == max_tokens
        assert steps[-1].session.cache.capacity == room


@pytest.mark.parametrize("turned", [False, True])
def test_experts_of_qwen3_vl_lie_either_way(turned: bool) -> None:
    """The hub's are (in, out), transformers 5 writes (out, in); a square one it doesn't turn."""
    config = ModelConfig.from_hf(QWEN_MOE)
    names, dim, wide = families.BY_TYPE["qwen3_vl_moe_text"].names, 32, 24
    for which, n in (
        ("gate_proj", (wide, dim)),
        ("up_proj", (wide, dim)),
        ("down_proj", (dim, wide)),
    ):
        ours = f"model.layers.1.mlp.experts.2.{which}.weight"
        found = source(ours, names, config)
        rows = (dim, wide) if which == "down_proj" else (2 * wide, dim)
        stored = np.arange(5 * 2 * wide * dim)[: 5 * rows[0] * rows[1]].reshape(5, *rows)
        first = wide if which == "up_proj" else 0
        want = stored[2, first : first + n[0]]
        got = take(stored.transpose(0, 2, 1) if turned else stored, found, ours, config)
        np.testing.assert_array_equal(got, want)


def test_gemma_3_with_eyes_has_no_cap_of_logits() -> None:
    """The reference has one in `Gemma3ForCausalLM` alone."""
    text = GEMMA["text_config"] | {"final_logit_softcapping": 0.5}
    seeing = ModelConfig.from_hf(GEMMA | {"text_config": text})
    alone = ModelConfig.from_hf({**text, "architectures": ["Gemma3ForCausalLM"]})
    assert (seeing.logit_cap, alone.logit_cap) == (None, 0.5)


def test_fused_tensors_are_taken_apart() -> None:
    config = ModelConfig.from_hf(keys_of("phi3"))
    names = families.BY_TYPE["phi3"].names
    rows = np.arange(4 * 16 + 2 * 32)[:, None] * np.ones(64)  # q, k, v
    for which, first, n in (("q", 0, 64), ("k", 64, 32), ("v", 96, 32)):
        ours = f"model.layers.2.self_attn.{which}_proj.weight"
        found = source(ours, names, config)
        assert found.names == ("model.layers.2.self_attn.qkv_proj.weight",)
        assert take(rows, found, ours, config)[:, 0].tolist() == [*range(first, first + n)]


def test_heads_that_are_fused_one_by_one() -> None:
    """NeoX: q, k, v of head 0, then of head 1."""
    config = ModelConfig.from_hf(keys_of("gpt_neox"))
    qkv = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    names = Names(tensors=split("x", qkv, "by head"))
    ours = "model.layers.0.self_attn.k_proj.bias"
    found = source(ours, names, config)
    taken = take(np.arange(4 * 3 * 16), found, ours, config)
    assert taken.tolist() == [48 * h + 16 + i for h in range(4) for i in range(16)]


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_the_references(name: str, tmp_path: Path) -> None:
    """From config.json and the checkpoint's own names on, against stored float64 logits."""
    golden = GOLDENS[name]
    write_checkpoint(golden, tmp_path)
    config = ModelConfig.from_folder(tmp_path)
    model = Model(config, load_weights(tmp_path, config))
    logits = [model.forward(tokens(n), model.new_cache(n)) for n in LENGTHS]
    tolerance = max(1e-4, 1e-5 * np.abs(golden.logits).max())
    assert np.abs(golden.logits).max() > 0.1
    np.testing.assert_allclose(kept(*logits), golden.logits, rtol=0, atol=tolerance)


def test_the_readme_has_the_table_of_today() -> None:
    text = families_readme.PATH.read_text(encoding="utf-8")
    assert text == families_readme.with_table(text), "run python -m tests.families_readme"
