"""Checkpoints that hold a language model and its eyes: which family's image side each needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tinyllm.config import read_json_object
from tinyllm.tokenizer import Tokenizer
from tinyllm.vision import gemma3, qwen3vl, smolvlm
from tinyllm.vision.prompt import ImageEmbedder

EYES: dict[str, Any] = {
    **dict.fromkeys(smolvlm.MODEL_TYPES, smolvlm.SmolVLM),
    **dict.fromkeys(qwen3vl.MODEL_TYPES, qwen3vl.Qwen3Eyes),
    **dict.fromkeys(gemma3.MODEL_TYPES, gemma3.Gemma3Eyes),
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
    eyes: type[Any] = EYES[_kind(folder)]
    found: ImageEmbedder = eyes.from_folder(folder, tokenizer, compiled=compiled, threads=threads)
    return found


def _kind(folder: Path) -> str:
    return str(read_json_object(folder / "config.json").get("model_type"))
