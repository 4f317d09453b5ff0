"""Checkpoints that hold a language model and its eyes: which family's image side each needs."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from tinyllm.config import read_json_object
from tinyllm.tokenizer import Tokenizer
from tinyllm.vision.prompt import ImageEmbedder

EYES = {  # by model type: the module that has them, and its class
    "idefics3": ("smolvlm", "SmolVLM"),
    "smolvlm": ("smolvlm", "SmolVLM"),
    "qwen3_vl": ("qwen3vl", "Qwen3Eyes"),
    "qwen3_vl_moe": ("qwen3vl", "Qwen3Eyes"),
    "gemma3": ("gemma3", "Gemma3Eyes"),
}


def sees_images(folder: Path) -> bool:
    """Whether the folder's model takes images beside text."""
    return _kind(folder) in EYES


def eyes_of(
    folder: Path, tokenizer: Tokenizer, *, compiled: bool = False, threads: int | None = None
) -> ImageEmbedder:
    """The image side of a folder that `sees_images`.

    Raises:
        ConfigError, WeightsError: naming the file, and the key or tensor.
    """
    module, name = EYES[_kind(folder)]
    eyes: Any = getattr(import_module(f"tinyllm.vision.{module}"), name)
    found: ImageEmbedder = eyes.from_folder(folder, tokenizer, compiled=compiled, threads=threads)
    return found


def _kind(folder: Path) -> str:
    return str(read_json_object(folder / "config.json").get("model_type"))
