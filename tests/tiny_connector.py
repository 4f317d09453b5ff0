"""A connector with seeded weights: small, right in form, and sure of nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from tinyllm.vision.connector import expected_shapes

FACTS = {
    "names": ["dog", "apple", "socks", "circle", "star"], "n_shapes": 2,
    "colours": ["red", "green", "white"], "class_layers": [1, 2], "patch_layers": [1],
    "width": 8, "votes": 6, "mixed": 5, "caption_rows": 24, "floor": 0.0,
}  # fmt: skip
ROOM = {"d": 4, "a": 3, "b": 2}


def write_connector(path: Path, dim: int, seed: int = 0, **changes: object) -> Path:
    """Write connector.safetensors for a language model of `dim`; `changes` to FACTS."""
    facts = {**FACTS, **changes}
    rng = np.random.default_rng(seed)
    tensors = {
        name: rng.standard_normal([ROOM[n] if isinstance(n, str) else n for n in shape]).astype(
            np.float16
        )
        for name, shape in expected_shapes(facts, dim).items()
    }
    save_file(tensors, path, {"connector": json.dumps(facts)})
    return path
