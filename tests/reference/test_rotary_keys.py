"""Rotary parameters of all kinds, in all places where files have them: heeded or refused."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.reference.changed_configs import FINE, ONCE, by_demand, verdict, whole_config
from tests.reference.test_families import reference

pytestmark = pytest.mark.reference


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


@pytest.mark.parametrize("model_type", by_demand(kind for kind in ONCE if kind != "gpt2"))
def test_rotary_parameters_are_heeded_or_refused(model_type: str, tmp_path: Path) -> None:
    theirs = reference()
    model = theirs.seeded(ONCE[model_type])
    theirs.save(model, tmp_path / "base")
    found = {}
    (tmp_path / "work").mkdir()
    for label, raw in with_ropes(model):
        shutil.copytree(tmp_path / "base", tmp_path / "work", dirs_exist_ok=True)
        found[label] = verdict(raw, tmp_path / "work", made=False)
    assert not {label: said for label, said in found.items() if said not in FINE}
