"""Is a folder a whole model? Its files are held against each other before it gets its name."""

from __future__ import annotations

from pathlib import Path

import safetensors

from tinyllm.config import ModelConfig
from tinyllm.errors import WeightsError
from tinyllm.tokenizer import Tokenizer
from tinyllm.weights import checkpoint_files, expected_shapes


def validate(folder: Path) -> None:
    """Check config, tokenizer, and every tensor's name and shape, reading headers only.

    Raises `ConfigError`, `WeightsError` or `TokenizerError` naming the file, and the tensor.
    """
    wanted = expected_shapes(ModelConfig.from_folder(folder))
    Tokenizer.from_folder(folder)
    for path in checkpoint_files(folder):
        try:
            with safetensors.safe_open(path, framework="numpy") as file:
                names = file.keys()
                shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
        except (OSError, safetensors.SafetensorError) as error:
            raise WeightsError(f"{path} is not a whole safetensors file: {error}") from error
        for name, shape in shapes.items():
            if wanted.get(name, shape) != shape:
                raise WeightsError(
                    f"{path}: tensor {name} has shape {shape}, config.json asks for {wanted[name]}"
                )
            wanted.pop(name, None)
    if wanted:
        raise WeightsError(f"{folder}: tensor {next(iter(wanted))} is missing from the checkpoint")
