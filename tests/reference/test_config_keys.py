"""Every key of every family's configuration, flipped: heeded as the reference does, or refused.

Once with weights made for the flipped key, once with those that were there before, as where a
person edits a file.
"""

from __future__ import annotations

import inspect
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.reference.changed_configs import FINE, ONCE, by_demand, verdict, whole_config
from tests.reference.test_families import reference

pytestmark = pytest.mark.reference

# Of some model types more than the first configuration, with other parts switched on.
MORE = ("mistral whole", "qwen2 window", "qwen3_moe softmax", "phi3 longrope", "stablelm parallel",
        "exaone4 whole", "gpt_neox serial", "hunyuan alpha")  # fmt: skip
LEFT_OUT = object()
# Which weights there are, what the file is, and what has tests of its own below.
APART = {"vocab_size", "num_hidden_layers", "transformers_version", "architectures", "model_type",
         "dtype", "rope_parameters", "rope_scaling", "standardize_rope_params",
         "bos_token_id", "eos_token_id", "pad_token_id"}  # fmt: skip
ACTIVATIONS = ["gelu", "relu", "silu", "gelu_new", "quick_gelu"]


def flipped(key: str, value: Any) -> list[Any]:
    """Other values that a person might give."""
    others: list[Any] = [None, LEFT_OUT]
    if isinstance(value, bool):
        others += [not value]
    elif isinstance(value, int):
        others += [value * 2, max(value // 2, 1), value + 1, 0, float(value)]
    elif isinstance(value, float):
        others += [value * 1.7 + 0.01, value / 2, 0.0, 1]
    elif isinstance(value, str):
        others += ACTIVATIONS if "act" in key else []
    elif value is None:
        others += [True, 3, 0.5, 8]
    elif isinstance(value, list) and value and isinstance(value[0], str):
        n = len(value)
        others += [["full_attention"] * n, ["sliding_attention"] * n, value[::-1], value[:-1]]
    elif isinstance(value, list):
        others += [[], [0], value[::-1]]
    if "window" in key:
        others += [3, 1]
    return others


def asked_for(model: Any) -> dict[str, Any]:
    """The keys that the reference's code or configuration knows, with their values."""
    from transformers import PreTrainedConfig

    source = inspect.getsource(sys.modules[type(model).__module__])
    read = re.findall(r"config\.([a-z_0-9]+)", source)
    read += re.findall(r"getattr\((?:self\.)?config, \"(\w+)\"", source)
    known = model.config.to_dict()
    every_models = set(PreTrainedConfig().to_dict()) - {"tie_word_embeddings"}
    names = sorted((set(known) | set(read)) - APART - every_models)
    return {name: known.get(name) for name in names if not name.startswith("_")}


def wrong(
    cases: Iterator[tuple[str, dict[str, Any]]], base: Path, work: Path,
    auto: str = "AutoModelForCausalLM",
) -> dict[str, str]:  # fmt: skip
    """The cases that are neither heeded nor refused; several must be heeded."""
    found: dict[str, str] = {}
    for label, raw in cases:
        for made in (True, False):
            shutil.rmtree(work, ignore_errors=True)
            shutil.copytree(base, work)
            found[f"{label}, {'made for it' if made else 'as it was'}"] = verdict(
                raw, work, made, auto
            )
    assert list(found.values()).count("heeded") > 10
    return {label: said for label, said in found.items() if said not in FINE}


def with_keys_flipped(model: Any, saved: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    whole = whole_config(model)
    for key, value in asked_for(model).items():
        for other in flipped(key, value):
            if other is not LEFT_OUT:
                yield f"{key} = {other!r}", {**whole, key: other}
                continue
            for raw in (whole, saved):  # all written out, and as the reference writes it
                yield f"no {key}", {k: v for k, v in raw.items() if k != key}


@pytest.mark.parametrize("name", by_demand([*ONCE.values(), *MORE]))
def test_every_key_is_heeded_or_refused(name: str, tmp_path: Path) -> None:
    theirs = reference()
    model = theirs.seeded(name)
    theirs.save(model, tmp_path / "base")
    saved = json.loads((tmp_path / "base" / "config.json").read_text())
    cases = with_keys_flipped(model, saved)
    assert not wrong(cases, tmp_path / "base", tmp_path / "work")
