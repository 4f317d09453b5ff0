"""Is a folder a whole model? Its files are held against each other before it gets its name."""

from __future__ import annotations

from pathlib import Path

from tinyllm.config import ModelConfig
from tinyllm.tokenizer import Tokenizer
from tinyllm.vision.whole import eyes_of, sees_images
from tinyllm.weights import Checkpoint


def validate(folder: Path) -> None:
    """Check config, tokenizer, and the tensors' names and shapes; of a language model by headers.

    Raises `ConfigError`, `WeightsError` or `TokenizerError` naming the file, and the tensor.
    """
    config = ModelConfig.from_folder(folder)
    tokenizer = Tokenizer.from_folder(folder)
    if sees_images(folder):
        eyes_of(folder, tokenizer)
    Checkpoint(folder, config)
