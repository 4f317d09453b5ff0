"""Make families.npz: `python -m tests.golden.make_families`, with torch and transformers there."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from tests.families_folder import FAMILIES
from tests.golden.families import LENGTHS, PATH, Golden, kept, tokens, write_checkpoint
from tests.reference import families as reference


def make(name: str, folder: Path) -> Golden:
    """One family: what transformers writes, filled with our values, and its logits."""
    reference.save(reference.seeded(name), folder / "theirs")
    with safetensors.safe_open(folder / "theirs" / "model.safetensors", "numpy") as file:
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    config = json.loads((folder / "theirs" / "config.json").read_text())
    golden = Golden(config, shapes, np.zeros(0))
    write_checkpoint(golden, folder / "ours")
    short, long = (reference.logits(folder / "ours", tokens(n)) for n in LENGTHS)
    return Golden(config, shapes, kept(short, long))


def main() -> None:
    """All families."""
    described: dict[str, Any] = {}
    logits: dict[str, Any] = {}
    for name in FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            golden = make(name, Path(folder))
        described[name] = {"config": golden.config, "shapes": golden.shapes}
        logits[name] = golden.logits
        print(name, float(np.abs(golden.logits).max()), flush=True)
    np.savez_compressed(PATH, described=np.array(json.dumps(described)), **logits)


if __name__ == "__main__":
    main()
