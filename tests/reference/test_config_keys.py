"""Every key of every family's configuration, flipped: heeded as the reference does, or refused.

What a key does is asked of the reference itself: once with weights made for the flipped key, once
with those that were there before, as where a person edits a file. Only what it can load counts, and
what it takes random weights for doesn't.
"""

from __future__ import annotations

import inspect
import json
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
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

pytestmark = pytest.mark.reference

# One of each model type: the first.
ONCE = {FAMILIES[name][0]: name for name in reversed(FAMILIES)}
IDS = np.random.default_rng(1).integers(3, 97, 40).tolist()
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


def whole_config(model: Any) -> dict[str, Any]:
    """config.json with every key that has a default written out."""
    keys = {k: v for k, v in model.config.to_dict().items() if k != "transformers_version"}
    return {**keys, "architectures": [type(model).__name__]}


def their_logits(raw: Mapping[str, Any], folder: Path, made: bool) -> Any:
    """The reference's logits in a folder, (T, vocab_size); None where it can't load it."""
    import torch
    import transformers

    theirs = reference()
    text = json.dumps(raw)
    (folder / "config.json").write_text(text)
    how = {"attn_implementation": "eager", "experts_implementation": "eager"}
    load = transformers.AutoModelForCausalLM.from_pretrained
    try:
        if made:
            config = transformers.AutoConfig.from_pretrained(folder)
            seeded = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            theirs.save(theirs.fill(seeded), folder)
            (folder / "config.json").write_text(text)  # as a person would write it
        model, info = load(folder, dtype=torch.float64, output_loading_info=True, **how)
        if info["missing_keys"] or info["mismatched_keys"]:
            return None
        with torch.no_grad():
            logits = model.eval()(torch.tensor([IDS]), use_cache=False).logits[0].numpy()
    except Exception:
        return None
    return logits if np.isfinite(logits).all() else None


def verdict(raw: Mapping[str, Any], folder: Path, made: bool) -> str:
    """What becomes of a configuration: "heeded", "refused", "theirs alone", or what is wrong."""
    want = their_logits(raw, folder, made)
    try:
        config = ModelConfig.from_folder(folder)
        model = Model(config, load_weights(folder, config))
        if want is None:
            return "theirs alone"
        got = model.forward(IDS, model.new_cache(len(IDS)))
    except TinyllmError:
        return "refused"
    except Exception as error:  # nobody can do anything about a numpy error
        return f"{type(error).__name__}: {error}"
    if got.shape != want.shape:
        return f"{got.shape}, not {want.shape}"
    gap = float(np.abs(got - want).max())
    return "heeded" if gap <= max(1e-4, 1e-5 * np.abs(want).max()) else f"off by {gap:.2g}"


def wrong(cases: Iterator[tuple[str, dict[str, Any]]], base: Path, work: Path) -> dict[str, str]:
    """The cases that are neither heeded nor refused; several must be heeded."""
    found: dict[str, str] = {}
    for label, raw in cases:
        for made in (True, False):
            shutil.rmtree(work, ignore_errors=True)
            shutil.copytree(base, work)
            found[f"{label}, {'made for it' if made else 'as it was'}"] = verdict(raw, work, made)
    fine = {"heeded", "refused", "theirs alone"}
    assert list(found.values()).count("heeded") > 10
    return {label: said for label, said in found.items() if said not in fine}


def with_keys_flipped(model: Any, saved: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    whole = whole_config(model)
    for key, value in asked_for(model).items():
        for other in flipped(key, value):
            if other is not LEFT_OUT:
                yield f"{key} = {other!r}", {**whole, key: other}
                continue
            for raw in (whole, saved):  # all written out, and as the reference writes it
                yield f"no {key}", {k: v for k, v in raw.items() if k != key}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_key_is_heeded_or_refused(name: str, tmp_path: Path) -> None:
    theirs = reference()
    model = theirs.seeded(name)
    theirs.save(model, tmp_path / "base")
    saved = json.loads((tmp_path / "base" / "config.json").read_text())
    cases = with_keys_flipped(model, saved)
    assert not wrong(cases, tmp_path / "base", tmp_path / "work")


def ropes(turning: int) -> list[dict[str, Any]]:
    """Rotary parameters of every kind, whole and lacking something, for heads of a length."""
    pairs = turning // 2
    original = {"original_max_position_embeddings": 32}
    factors = {"short_factor": [1 + 0.05 * i for i in range(pairs)],
               "long_factor": [1.5 + 0.5 * i for i in range(pairs)]}  # fmt: skip
    yarn = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}
    llama3 = {"rope_type": "llama3", "factor": 8.0, "rope_theta": 1e4}
    bounds = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    longrope = {"rope_type": "longrope", "rope_theta": 1e4, **factors}
    default = {"rope_type": "default", "rope_theta": 1e4}
    return [
        {}, default, {"rope_theta": 777.0}, {"rope_type": "default"}, {**default, "factor": 4.0},
        {**default, "rope_theta": 0}, {**default, "rope_theta": None}, {**default, "type": "yarn"},
        {**default, "rope_type": None}, {**default, "partial_rotary_factor": 0.5},
        {**default, "partial_rotary_factor": 1.0}, {**default, "mrope_section": [2, 1, 1]},
        {"type": "linear", "factor": 2.0}, {**default, "rope_type": "linear", "factor": 2.0},
        {**default, "rope_type": "linear"}, {"type": "default", "rope_type": "linear", "factor": 2},
        {**default, "rope_type": "dynamic", "factor": 2.0},
        {**default, "rope_type": "dynamic", "factor": 2.0, **original},
        yarn, {**yarn, **original}, {**yarn, **original, "attention_factor": 0.7},
        {**yarn, **original, "mscale": 0.7}, {**yarn, **original, "mscale_all_dim": 0.7},
        {**yarn, **original, "mscale": 0.7, "mscale_all_dim": 1.3},
        {**yarn, **original, "beta_fast": 8, "beta_slow": 2}, {**yarn, **original, "beta_fast": 0},
        {**yarn, **original, "truncate": False}, {**yarn, **original, "factor": 0.5},
        {k: v for k, v in yarn.items() if k != "factor"} | original,
        {**yarn, **original, "partial_rotary_factor": 0.5},
        {**llama3, **bounds, **original}, {**llama3, **bounds}, {**llama3, **original},
        {**longrope, **original}, {**longrope, "original_max_position_embeddings": 64}, longrope,
        {**longrope, **original, "factor": 9.0}, {**longrope, **original, "attention_factor": 1.7},
        {**longrope, **original, "short_mscale": 1.1, "long_mscale": 1.3},
        {"type": "longrope", **factors, **original}, {"type": "su", **factors, **original},
        {"rope_type": "ntk", "factor": 2.0}, {"rope_type": "mrope", "mrope_section": [2, 1, 1]},
        {**default, "rope_type": "proportional", "factor": 2.0},
    ]  # fmt: skip


def with_ropes(model: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """In each place where files have them; by kind of layer, too, where layers have kinds."""
    whole = whole_config(model)
    old = {k: v for k, v in whole.items() if k != "rope_parameters"}
    heads = whole.get("num_attention_heads") or whole["n_head"]
    head_dim = whole.get("head_dim") or (whole.get("hidden_size") or whole["n_embd"]) // heads
    share = (whole.get("rope_parameters") or {}).get("partial_rotary_factor") or 1
    default = {"rope_type": "default", "rope_theta": 1e4}
    yield "no rope_parameters", old
    yield "rope_parameters null", {**whole, "rope_parameters": None}
    yield "rope_theta alone", {**old, "rope_theta": 333.0}
    yield "rope_theta and null", {**old, "rope_theta": 333.0, "rope_scaling": None}
    for turning in {head_dim, int(head_dim * share)}:
        for rope in ropes(turning):
            shown = {k: v for k, v in rope.items() if not isinstance(v, list)}
            yield f"rope_parameters {shown}", {**whole, "rope_parameters": rope}
            own = whole.get("rope_parameters") or {}
            yield f"rope_parameters with {shown}", {**whole, "rope_parameters": {**own, **rope}}
            yield f"rope_scaling {shown}", {**old, "rope_scaling": rope}
            yield f"rope_scaling {shown} beside theta", {**old, "rope_scaling": rope,
                                                         "rope_theta": 333.0}  # fmt: skip
            yield f"rope_scaling {shown} beside parameters", {**whole, "rope_scaling": rope}
            if "layer_types" not in whole:
                continue
            for kinds in (
                {"full_attention": rope, "sliding_attention": default},
                {"full_attention": rope, "sliding_attention": rope},
                {"full_attention": rope},
                {"sliding_attention": rope},
            ):
                label = " and ".join(kinds)
                yield f"{label} {shown}", {**whole, "rope_parameters": kinds}


@pytest.mark.parametrize("model_type", [kind for kind in ONCE if kind != "gpt2"])
def test_rotary_parameters_are_heeded_or_refused(model_type: str, tmp_path: Path) -> None:
    theirs = reference()
    model = theirs.seeded(ONCE[model_type])
    theirs.save(model, tmp_path / "base")
    found = {}
    (tmp_path / "work").mkdir()
    for label, raw in with_ropes(model):
        shutil.copytree(tmp_path / "base", tmp_path / "work", dirs_exist_ok=True)
        found[label] = verdict(raw, tmp_path / "work", made=False)
    fine = {"heeded", "refused", "theirs alone"}
    assert not {label: said for label, said in found.items() if said not in fine}
