"""lm.architecture() and compare: parts in words, parameters counted from the tensors."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tests.families_folder import FAMILIES, config_keys
from tinyllm.config import ModelConfig
from tinyllm.families.tensors import expected
from tinyllm.inside.architecture import Architecture, compare


def config(name: str) -> ModelConfig:
    model_type, keys = config_keys(name)
    return ModelConfig.from_hf({"model_type": model_type, **keys})


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_a_table(name: str) -> None:
    found = Architecture.of(config(name))
    assert found.n_parameters == sum(np.prod(s) for s in expected(config(name)).values())
    assert f"{found.n_parameters:,}" in repr(found)
    assert set(re.findall(r"</?(\w+)", found._repr_html_())) == {
        "table", "thead", "tbody", "tr", "th", "td",
    }  # fmt: skip


def test_what_a_token_is_multiplied_with() -> None:
    """2 of 6 experts in three of four layers, of 3 · 64 · 40 parameters each."""
    found = Architecture.of(config("qwen3_moe"))
    assert found.n_parameters - found.n_active == 3 * 4 * (3 * 64 * 40)
    assert found.kv_bytes == 2 * 2 * 4 * 2 * 24


def test_a_model_compared_with_itself() -> None:
    found = compare(config("gemma3"), config("gemma3"))
    assert not found.differing
    assert "same architecture" in repr(found)


def test_what_gemma_2_changes() -> None:
    found = compare(config("llama"), config("gemma2"))
    assert found.differing["scores"][1] == "q·k × 0.1581, capped at ±3"
    assert found.differing["logits"][1] == "by the embeddings, capped at ±2"
    assert found.differing["layers"] == ("4", "4: 2 see the last 6; 2 see all")
    assert found.differing["norms"][1].startswith("RMS before and after")
    assert "attention" in found.same
