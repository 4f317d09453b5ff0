"""Seeded checkpoints of every family without torch, and the reference's logits of them.

`families.npz` has, for each family, its config.json, its tensors' names and shapes as transformers
writes them, and some logits in float64. The tensors' values come from their names, so that nothing
large is stored.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.llama_folders import write_safetensors

PATH = Path(__file__).with_name("families.npz")
LENGTHS = (4, 40)  # tokens: shorter and longer than any window
ROWS = (0, 17, -1)  # of the longer one; of the shorter, the last


@dataclass(frozen=True)
class Golden:
    """One family's."""

    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    logits: NDArray[np.float64]  # (1 + len(ROWS), vocab_size)


def tokens(n: int) -> list[int]:
    """A prompt."""
    return (np.arange(n) * 37 % 90 + 3).tolist()


def kept(short: NDArray[Any], long: NDArray[Any]) -> NDArray[Any]:
    """The rows that are stored, of logits of both prompts."""
    return np.stack([short[-1], *(long[row] for row in ROWS)])


def values(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """A tensor's values: matrices of the size that keeps a stream's, the rest off its default."""
    if not shape:  # xIELU's constants, which Apertus saves with its parameters
        return np.array({"beta": 0.5, "eps": -1e-6}[name.rpartition(".")[2]], np.float32)
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    drawn = rng.normal(size=shape)
    if len(shape) == 1 or "norm" in name:
        drawn = 0.2 * drawn + (0.8 if name.endswith("weight") else 0.0)
    elif any(word in name for word in ("embed", "wte", "wpe")):
        drawn *= 0.4
    else:
        drawn *= 1.2 / np.sqrt(shape[-1])
    return drawn.astype(np.float32)


def write_checkpoint(golden: Golden, folder: Path) -> None:
    """config.json and model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(golden.config))
    tensors = {name: values(name, shape) for name, shape in golden.shapes.items()}
    write_safetensors(folder / "model.safetensors", tensors)


def load_goldens() -> dict[str, Golden]:
    """By the names of `tests.families_folder.FAMILIES`."""
    with np.load(PATH) as file:
        described = json.loads(str(file["described"]))
        return {
            name: Golden(
                entry["config"], {k: tuple(v) for k, v in entry["shapes"].items()}, file[name]
            )
            for name, entry in described.items()
        }
