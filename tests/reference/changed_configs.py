"""What becomes of a changed config.json: the reference is asked, and it is heeded or refused.

Only what the reference can load counts, and what it takes random weights for doesn't.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.families_folder import FAMILIES
from tests.reference.test_families import reference
from tinyllm.config import ModelConfig
from tinyllm.errors import TinyllmError
from tinyllm.model import Model
from tinyllm.weights import load_weights

# One of each model type: the first.
ONCE = {FAMILIES[name][0]: name for name in reversed(FAMILIES)}
IDS = np.random.default_rng(1).integers(3, 97, 40).tolist()
FINE = {"heeded", "refused", "ours alone"}
# What most people have; CI takes the others by name.
MOST_USED = ("llama", "qwen3", "gemma3_text")


def by_demand(names: Iterable[str]) -> list[Any]:
    """Names as parameters of a test; those that CI doesn't have at every change are marked."""
    first = {ONCE[model_type] for model_type in MOST_USED} | set(MOST_USED)
    return [n if n in first else pytest.param(n, marks=pytest.mark.keys) for n in names]


def whole_config(model: Any) -> dict[str, Any]:
    """config.json with every key that has a default written out."""
    keys = {k: v for k, v in model.config.to_dict().items() if k != "transformers_version"}
    return {**keys, "architectures": [type(model).__name__]}


def their_logits(
    raw: Mapping[str, Any], folder: Path, made: bool, auto: str = "AutoModelForCausalLM"
) -> Any:
    """The reference's logits in a folder, (T, vocab_size); None where it can't load it."""
    import torch
    import transformers

    theirs = reference()
    text = json.dumps(raw)
    (folder / "config.json").write_text(text)
    how = {"attn_implementation": "eager", "experts_implementation": "eager"}
    chosen = getattr(transformers, auto)
    try:
        if made:
            config = transformers.AutoConfig.from_pretrained(folder)
            seeded = chosen.from_config(config, dtype=torch.float32)
            theirs.save(theirs.fill(seeded), folder)
            (folder / "config.json").write_text(text)  # as a person would write it
        model, info = chosen.from_pretrained(
            folder, dtype=torch.float64, output_loading_info=True, **how
        )
        if info["missing_keys"] or info["mismatched_keys"]:
            return None
        with torch.no_grad():
            logits = model.eval()(torch.tensor([IDS]), use_cache=False).logits[0].numpy()
    except Exception:
        return None
    return logits if np.isfinite(logits).all() else None


def verdict(
    raw: Mapping[str, Any], folder: Path, made: bool, auto: str = "AutoModelForCausalLM"
) -> str:
    """One of `FINE`, or what is wrong; "ours alone": the reference can't load it."""
    want = their_logits(raw, folder, made, auto)
    try:
        config = ModelConfig.from_folder(folder)
        model = Model(config, load_weights(folder, config))
        if want is None:
            return "ours alone"
        got = model.forward(IDS, model.new_cache(len(IDS)))
    except TinyllmError:
        return "refused"
    except Exception as error:  # nobody can do anything about a numpy error
        return f"{type(error).__name__}: {error}"
    if got.shape != want.shape:
        return f"{got.shape}, not {want.shape}"
    gap = float(np.abs(got - want).max())
    return "heeded" if gap <= max(1e-4, 1e-5 * np.abs(want).max()) else f"off by {gap:.2g}"
