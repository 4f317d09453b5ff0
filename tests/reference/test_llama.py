"""The readable model against transformers, live: all logits of all prompts; odd small models."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.golden.logits import ILL_CONDITIONED, first_difference, load_goldens
from tests.golden.prompts import token_ids
from tests.llama_folders import LLAMA3_ROPE, small_config, write_folder
from tinyllm.config import ModelConfig
from tinyllm.model import Model
from tinyllm.weights import load_weights

pytestmark = pytest.mark.reference

GOLDENS = load_goldens()


def reference(folder: Path) -> Any:
    """Imported here, so that the default run, which leaves these tests out, needs no torch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's and transformers' own, at import
        from tests.reference.llama import Reference
    return Reference(folder)


@pytest.fixture(scope="module")
def theirs(weights_folder: Path) -> Any:
    return reference(weights_folder)


@pytest.fixture(scope="module")
def ours(weights_folder: Path) -> Model:
    config = ModelConfig.from_folder(weights_folder)
    return Model(config, load_weights(weights_folder, config))


def test_the_goldens_are_of_these_prompts(weights_folder: Path) -> None:
    assert {name: golden.ids for name, golden in GOLDENS.items()} == token_ids(weights_folder)
    assert len(GOLDENS) >= 20


@pytest.mark.parametrize("name", GOLDENS)
def test_logits_and_greedy_tokens(
    name: str, ours: Model, theirs: Any, record_property: Any
) -> None:
    """One forward of the reference over prompt and greedy tokens serves all comparisons."""
    golden = GOLDENS[name]
    n_prompt, n_greedy = len(golden.ids), len(golden.greedy)
    expected = theirs.logits([*golden.ids, *golden.greedy[:-1]])

    # Ours, at every position of the prompt and every token of the vocabulary.
    cache = ours.new_cache(n_prompt + n_greedy)
    logits = ours.prefill(golden.ids, cache, logits="all")
    gap = np.abs(logits - expected[:n_prompt]).max()
    if name not in ILL_CONDITIONED:
        record_property("n_tokens", n_prompt)
        record_property("largest_gap", float(gap))
    assert gap <= golden.tolerance

    # The committed figures are still what the reference gives.
    at = np.take_along_axis(expected[golden.positions], golden.columns.astype(int), 1)
    assert np.abs(at - golden.logits).max() < 2e-5
    rows = expected[n_prompt - 1 :]
    certain = golden.gaps > 1e-4
    assert (rows.argmax(1) == golden.greedy)[certain].all()

    # And decoding, each token a forward of its own over the cache, says what the reference says.
    tokens = [int(logits[-1].argmax())]
    while len(tokens) < n_greedy:
        tokens.append(int(ours.forward(tokens[-1:], cache)[0].argmax()))
    assert first_difference(tokens, golden) is None


FAMILY: dict[str, tuple[dict[str, Any], str, int]] = {
    "f32": ({}, "F32", 1),
    "f16": ({}, "F16", 1),
    "bf16": ({}, "BF16", 1),
    "sharded": ({}, "F32", 4),
    "bf16, sharded, untied": ({"tie_word_embeddings": False}, "BF16", 3),
    "untied": ({"tie_word_embeddings": False}, "F32", 1),
    "as many KV heads": ({"num_key_value_heads": 6}, "F32", 1),
    "one KV head": ({"num_key_value_heads": 1}, "F32", 1),
    "heads wider than dim": ({"head_dim": 22}, "F32", 1),
    "heads of two": ({"head_dim": 2}, "F32", 1),
    "head_dim left out": ({"head_dim": None}, "F32", 1),
    "llama3 rope": ({"rope_scaling": LLAMA3_ROPE, "head_dim": 64}, "F32", 1),
    "linear rope": ({"rope_scaling": {"rope_type": "linear", "factor": 4.0}}, "F32", 1),
    "rope_parameters": (
        {"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        "F32",
        1,
    ),
    "another eps and theta": ({"rms_norm_eps": 1e-2, "rope_theta": 1e6}, "F32", 1),
    "long sums": ({"intermediate_size": 1500}, "F32", 1),
    "mistral": (
        {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": None},
        "F32",
        1,
    ),
}


@pytest.mark.parametrize("name", FAMILY)
def test_small_models(name: str, tmp_path: Path) -> None:
    changes, dtype, shards = FAMILY[name]
    raw = {key: value for key, value in small_config(**changes).items() if value is not None}
    config = write_folder(tmp_path, raw, seed=len(name), dtype=dtype, shards=shards)
    ids = np.random.default_rng(0).integers(0, config.vocab_size, 200).tolist()
    model = Model(config, load_weights(tmp_path, config))
    expected = reference(tmp_path).logits(ids)
    doubled = Model(config, {key: w.astype(np.float64) for key, w in model.weights.items()})
    assert np.abs(expected).max() > 1  # not a model that says nothing
    # What is left in float64 is the reference's own norms, which are float32.
    for runner, limit in ((model, 6e-5), (doubled, 3e-5)):
        logits = runner.prefill(ids, runner.new_cache(200), logits="all", chunk=77)
        assert np.abs(logits - expected).max() <= limit


def test_our_config_reads_what_transformers_writes(tmp_path: Path) -> None:
    """A checkpoint saved anew by transformers 5, its config in the new form."""
    write_folder(tmp_path / "a", small_config(rope_scaling=LLAMA3_ROPE), shards=2)
    theirs = reference(tmp_path / "a")
    theirs.model.float().save_pretrained(tmp_path / "b")
    config = ModelConfig.from_folder(tmp_path / "b")
    assert config == ModelConfig.from_folder(tmp_path / "a"), json.loads(
        (tmp_path / "b" / "config.json").read_text()
    )
    first, second = (load_weights(tmp_path / part, config) for part in "ab")
    for tensor in first:
        np.testing.assert_array_equal(first[tensor], second[tensor])
