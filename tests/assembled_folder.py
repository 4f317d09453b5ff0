"""The parts of the default vision model with a seeded connector: right in form, sure of nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.tiny_connector import write_connector
from tinyllm.parts import CONNECTOR_FILE

CARD: dict[str, Any] = {
    "id": "seeded-vision",
    "aliases": ["qwen3-vl-30b"],
    "kind": "vision",
    "parts": {"language_model": "smollm2-135m-instruct", "image_encoder": "dinov2-small"},
    "domain_aligned": False,
    "reasoning": "prompted",
    "created": 1_700_000_000,
}
DIM = 576  # SmolLM2-135M's


def write_assembled(folder: Path, seed: int = 0) -> Path:
    """Write card.json and connector.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "card.json").write_text(json.dumps(CARD))
    write_connector(
        folder / CONNECTOR_FILE, DIM, seed, width=384, n_patches=256,
        class_layers=[9, 11], patch_layers=[4, 9],
    )  # fmt: skip
    return folder
