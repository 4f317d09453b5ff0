"""Every key of every family's configuration, flipped: heeded as the reference does, or refused.

What a key does is asked of the reference itself: a model with the flipped key, seeded alike.
"""

from __future__ import annotations

import json
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
SIZES = {"vocab_size", "hidden_size", "n_embd", "num_hidden_layers", "n_layer", "n_head",
         "num_attention_heads", "transformers_version", "architectures", "model_type", "dtype",
         "max_position_embeddings", "n_positions", "layer_types", "rope_parameters",
         "bos_token_id", "eos_token_id", "pad_token_id"}  # fmt: skip


def flipped(key: str, value: Any) -> list[Any]:
    """Other values that a person might give."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value * 2, None] if value > 1 else [value + 2]
    if isinstance(value, float):
        return [value * 1.7 + 0.01, None]
    if isinstance(value, str):
        return ["relu", "gelu"] if "act" in key else []
    if value is None:
        return [True, 3, 0.5]
    return []


@pytest.mark.parametrize("model_type", ONCE)
def test_every_key_is_heeded_or_refused(model_type: str, tmp_path: Path) -> None:
    theirs = reference()
    plain = theirs.seeded(ONCE[model_type])
    ids = np.random.default_rng(1).integers(3, 97, 40).tolist()
    wrong, heeded, refused = [], 0, 0
    for key, value in plain.config.to_dict().items():
        if key in SIZES or key.startswith("_"):
            continue
        for other in flipped(key, value):
            folder = tmp_path / f"{key}-{other}"
            try:
                theirs.save(theirs.seeded(ONCE[model_type], **{key: other}), folder)
                # As a person would write it: the reference may have rewritten the key.
                raw = json.loads((folder / "config.json").read_text())
                (folder / "config.json").write_text(json.dumps({**raw, key: other}))
                want = theirs.logits(folder, ids)
            except Exception:
                continue  # the reference itself refuses it
            if not np.isfinite(want).all():
                continue
            try:
                config = ModelConfig.from_folder(folder)
                model = Model(config, load_weights(folder, config))
            except TinyllmError:
                refused += 1
                continue
            gap = np.abs(model.forward(ids, model.new_cache(len(ids))) - want).max()
            heeded += 1
            if gap > max(1e-4, 1e-5 * np.abs(want).max()):
                wrong.append((key, other, float(gap)))
    assert not wrong
    assert heeded + refused > 10
