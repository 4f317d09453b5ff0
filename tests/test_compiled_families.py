"""The compiled path's parts against the readable path's, on seeded models of every family.

The readable path is held to the reference (tests/reference/test_families.py). Compiling a family
takes half a minute, so that six, and two made-up models with many parts at once, are for the stage
of long tests, and all of them for one of their own (`.ci/run families`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.families_folder import FAMILIES, config_keys
from tinyllm.compiled import CompiledModel, check_shape
from tinyllm.config import ModelConfig
from tinyllm.errors import ConfigError
from tinyllm.families.parts import Experts, Layer, Temperature
from tinyllm.families.tensors import expected
from tinyllm.model import Model
from tinyllm.runner import Segment

# What a family needs beyond its small configuration for the kernels' groups of 32.
ORIGINAL = "original_max_position_embeddings"
SIZES: dict[str, Any] = {"hidden_size": 128, "head_dim": 32}


def seeded_weights(config: ModelConfig, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in expected(config).items():
        values = rng.normal(size=shape)
        is_norm = "norm" in name and name.endswith("weight")
        if len(shape) == 1 or is_norm:
            values = float(is_norm) + 0.2 * values
        else:
            values *= 0.4 if "embed" in name else 1.2 / np.sqrt(shape[1])
        weights[name] = values.astype(np.float32)
    return weights


def configuration(name: str) -> ModelConfig:
    model_type, keys = config_keys(name)
    own = {"n_embd": 128, "n_inner": 96, "n_positions": 128} if model_type == "gpt2" else SIZES
    if model_type in ("gpt_neox", "stablelm"):
        own = {"hidden_size": 128}
    if "moe_intermediate_size" in keys:
        own = {**own, "moe_intermediate_size": 64}
    if "longrope" in name:  # a factor a pair of wider heads, and a longer original context
        pairs, original = (16 if model_type == "llama" else 12), {ORIGINAL: 100}
        factors = {f"{which}_factor": [1.0 + step * i for i in range(pairs)]
                   for which, step in (("short", 0.05), ("long", 0.5))}  # fmt: skip
        rope = {**keys["rope_parameters"], **factors, **original}
        own = {**own, **original, "rope_parameters": rope, "max_position_embeddings": 256}
    return ModelConfig.from_hf({"model_type": model_type, **keys, **own})


def compare(config: ModelConfig, dtype: str = "f32", tolerance: float = 2e-4) -> None:
    """Whole, in pieces and beside another sequence: near the readable path, and the same bits."""
    weights = seeded_weights(config)
    readable = Model(config, weights)
    compiled = CompiledModel(config, weights, dtype, threads=2, kv_cache_mb=8)
    ids = np.random.default_rng(2).integers(3, config.vocab_size, 50).astype(np.int32)
    want = readable.forward(ids, readable.new_cache(len(ids)))
    whole = compiled.forward(ids, compiled.new_cache(), logits="all")
    size = max(1.0, float(np.abs(want).max()))
    gaps = np.abs(whole - want).max(axis=1)
    # Where two experts score alike, rounding may send a row to the other one.
    least = 0.9 if config.experts is not None and dtype != "f32" else 1.0
    assert np.mean(gaps < tolerance * size) >= least, gaps
    cache, other = compiled.new_cache(), compiled.new_cache()
    start = compiled.forward(ids[:19], cache, logits="all")
    rows = [start]
    for i in range(19, len(ids)):
        beside = Segment(ids[i : i + 3], other, "last")
        rows.append(compiled.forward_batch([beside, Segment(ids[i : i + 1], cache, "all")])[1])
    np.testing.assert_array_equal(np.concatenate(rows), whole)
    if dtype == "f32":  # rounded weights move keys by what they move logits
        theirs = readable.new_cache(len(ids))
        readable.forward(ids, theirs)
        # A float16 cache rounds to 11 bits.
        np.testing.assert_allclose(cache.keys(1), theirs.keys(1), rtol=1e-3, atol=1e-3)


# Between them: biases, norms of q and k, windows, two rotary tables, layer norms, learned
# positions, partial rotary, parallel blocks, multipliers, experts.
IN_SHORT = {"qwen2", "qwen3", "gemma3", "gpt2", "gpt_neox", "granite", "olmo2", "qwen3_moe"}


def test_all_parts_of_all_families_are_there() -> None:
    for name in FAMILIES:
        check_shape(configuration(name))


@pytest.mark.parametrize(
    ("name", "changes", "what"),
    [
        ("gemma3", {"images_see_ahead": True}, "images_see_ahead"),
        ("qwen3", {"axes": (6, 5, 5)}, "axes"),
        ("qwen3_moe", {"deep_rows": 2}, "deep_rows"),
        ("qwen3_moe", {"norm_after": True}, "experts in another place"),
        ("mixtral", {"parallel": "one norm"}, "experts in another place"),
        ("mixtral", {"gated": False}, "without a gate"),
        ("llama", {"hidden_dim": 40}, "hidden_dim is 40"),
        ("mixtral", {"experts": Experts(4, 2, 40, "normalised")}, "expert's hidden_dim is 40"),
    ],
)
def test_what_the_kernels_lack_is_refused_with_the_remedy(
    name: str, changes: dict[str, Any], what: str
) -> None:
    with pytest.raises(ConfigError, match=rf"{what}.*reference"):
        check_shape(replace(configuration(name), **changes))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.long if name in IN_SHORT else pytest.mark.families)
        for name in FAMILIES
    ],
)
def test_every_family(name: str) -> None:
    compare(configuration(name))


def test_longrope_is_run_in_its_original_context() -> None:
    """Whose angles short texts turn by: beyond it, the readable path goes on with the long ones."""
    config = configuration("llama longrope")
    compiled = CompiledModel(config, seeded_weights(config), "f32", threads=1, kv_cache_mb=4)
    assert (config.max_seq_len, compiled.config.max_seq_len) == (256, 100)
    with pytest.raises(ValueError, match="100 tokens"):
        compiled.new_cache(101)


# Two made-up models with nearly all parts between them, some of them in combinations that no family
# has: a part that works beside the others works where there are fewer.
MADE_UP: dict[str, ModelConfig] = {
    "normed twice": ModelConfig(
        64, 96, 3, 4, 2, 32, 97, 128, 1e4, 1e-5, False, family="made up",
        rotary_dim=24, rope_pairs="neighbours", local_rope_theta=1e2, qk_norm="each head",
        layers=(Layer(9, "local"), Layer(None, "none"), Layer(5, "global")),
        attention_scale=0.3, score_cap=4.0, sinks=True, activation="gelu_tanh", norm_after=True,
        embedding_scale=3.0, residual_scale=0.7, logit_scale=0.5, logit_cap=3.0,
        temperature=Temperature(0.3, 16), biases=("down", "gate", "k", "o", "q", "up", "v"),
    ),
    "side by side": ModelConfig(
        64, 96, 2, 4, 2, 32, 97, 128, 1e4, 1e-5, False, family="made up",
        qk_norm="every head its own", qk_norm_last=True, activation="gelu", gated=False,
        norm="layer", parallel="two norms", learned_positions=True, residual_scale=0.6,
        biases=("down", "head", "k", "norm", "o", "q", "qk_norm", "up", "v"),
    ),
}  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("name", MADE_UP)
def test_parts_together(name: str) -> None:
    compare(MADE_UP[name])


# How near rounded weights allow, of the largest logit.
NEAR = {"bf16": 0.15, "q8": 0.4, "q4": 1.5}


@pytest.mark.long
@pytest.mark.parametrize("dtype", NEAR)
def test_parts_together_in_every_format(dtype: str) -> None:
    """Near what rounded weights allow; the same bits however a sequence is cut."""
    compare(MADE_UP["normed twice"], dtype, NEAR[dtype])


@pytest.mark.families
@pytest.mark.parametrize("dtype", NEAR)
@pytest.mark.parametrize("name", ["olmo2", "olmo3", "olmoe", "gpt_oss"])
def test_queries_normed_whole_and_experts_in_every_format(name: str, dtype: str) -> None:
    compare(configuration(name), dtype, NEAR[dtype])


@pytest.mark.long
def test_a_window_that_reaches_over_chunks_of_keys() -> None:
    """1,100 tokens: three chunks of 512, of which a window of 300 sees one or two."""
    config = ModelConfig(
        64, 96, 2, 4, 2, 32, 97, 1200, 1e4, 1e-5, False, layers=(Layer(300), Layer(None))
    )
    weights = seeded_weights(config)
    readable = Model(config, weights)
    compiled = CompiledModel(config, weights, "f32", threads=2, kv_cache_mb=8)
    ids = np.random.default_rng(2).integers(3, 97, 1100).astype(np.int32)
    cache = readable.new_cache(len(ids))
    want = readable.prefill(ids, cache, logits="all")
    whole = compiled.forward(ids, compiled.new_cache(), logits="all")
    assert np.abs(whole - want).max() < 2e-4 * np.abs(want).max()
    cache = compiled.new_cache()
    compiled.forward(ids[:1000], cache)
    steps = [compiled.forward(ids[i : i + 1], cache) for i in range(1000, 1100)]
    np.testing.assert_array_equal(np.concatenate(steps), whole[1000:])
