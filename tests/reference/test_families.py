"""Every family against transformers, live, on seeded checkpoints as transformers writes them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.families_folder import FAMILIES
from tests.tiny import bytes_tokenizer
from tinyllm.compiled import CompiledModel
from tinyllm.config import ModelConfig
from tinyllm.decode import Session
from tinyllm.model import Model
from tinyllm.weights import load_weights

pytestmark = pytest.mark.reference


def reference() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tests.reference import families
    return families


@pytest.mark.parametrize("name", FAMILIES)
def test_logits(name: str, tmp_path: Path) -> None:
    """Prompts shorter and longer than any window; whole, and token by token."""
    theirs = reference()
    theirs.save(theirs.seeded(name), tmp_path)
    config = ModelConfig.from_folder(tmp_path)
    model = Model(config, load_weights(tmp_path, config))
    rng = np.random.default_rng(1)
    for n in (4, 50):
        ids = rng.integers(3, 97, n).tolist()
        want = theirs.logits(tmp_path, ids)
        cache = model.new_cache(n)
        got = model.forward(ids, cache)
        tolerance = max(1e-4, 1e-5 * np.abs(want).max())
        assert np.abs(want).max() > 0.1, "the model says nothing"
        assert np.abs(got - want).max() < tolerance, np.abs(got - want).max()
        cache = model.new_cache(n)
        steps = [model.forward(ids[i : i + 1], cache)[-1] for i in range(n)]
        assert np.abs(np.array(steps) - want).max() < tolerance


@pytest.mark.parametrize("name", ["llama longrope", "phi3 longrope"])
def test_longrope_about_the_end_of_its_original_context(name: str, tmp_path: Path) -> None:
    """A text of exactly that length is still turned by the short factors, a longer one isn't."""
    theirs = reference()
    theirs.save(theirs.seeded(name), tmp_path)
    config = ModelConfig.from_folder(tmp_path)
    model = Model(config, load_weights(tmp_path, config))
    for n in range(config.plain_context - 1, config.plain_context + 2):
        ids = np.random.default_rng(n).integers(3, 97, n).tolist()
        want = theirs.logits(tmp_path, ids)[-1]
        got = Session(model, bytes_tokenizer(), ids).peek().logits
        assert np.abs(got - want).max() < max(1e-4, 1e-5 * np.abs(want).max()), n


# Lengths that the kernels can do: multiples of 32.
WIDE: dict[str, Any] = {"hidden_size": 128, "head_dim": 32}
WITH_EXPERTS = {
    "qwen3_moe": {"moe_intermediate_size": 64},
    "qwen3_moe softmax": {"moe_intermediate_size": 64},
    "mixtral": {},
    "olmoe": {},
    "gpt_oss": {},
}


@pytest.mark.parametrize("name", WITH_EXPERTS)
def test_compiled_experts(name: str, tmp_path: Path) -> None:
    """The compiled path from a checkpoint's own files, in f32."""
    theirs = reference()
    theirs.save(theirs.seeded(name, **WIDE, **WITH_EXPERTS[name]), tmp_path)
    model = CompiledModel(ModelConfig.from_folder(tmp_path), tmp_path, "f32", kv_cache_mb=8)
    ids = np.random.default_rng(1).integers(3, 97, 50).astype(np.int32)
    want = theirs.logits(tmp_path, ids.tolist())
    got = model.forward(ids, model.new_cache(), logits="all")
    assert np.abs(got - want).max() < max(1e-4, 1e-5 * np.abs(want).max())
