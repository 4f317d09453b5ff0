"""Is a folder a whole model? Its files are held against each other before it gets its name."""

from __future__ import annotations

from pathlib import Path

import safetensors

from tinyllm.config import ModelConfig, read_json_object
from tinyllm.errors import WeightsError
from tinyllm.tokenizer import Tokenizer
from tinyllm.vision.smolvlm import MODEL_TYPES, SmolVLM
from tinyllm.weights import TEXT_PREFIX, checkpoint_files, expected_shapes


def validate(folder: Path) -> None:
    """Check config, tokenizer, and the tensors' names and shapes; of a language model by headers.

    Raises `ConfigError`, `WeightsError` or `TokenizerError` naming the file, and the tensor.
    """
    wanted = expected_shapes(ModelConfig.from_folder(folder))
    tokenizer = Tokenizer.from_folder(folder)
    if sees_images(folder):
        SmolVLM.from_folder(folder, tokenizer)
    for path in checkpoint_files(folder):
        try:
            with safetensors.safe_open(path, framework="numpy") as file:
                names = file.keys()
                shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
        except (OSError, safetensors.SafetensorError) as error:
            raise WeightsError(f"{path} is not a whole safetensors file: {error}") from error
        for full_name, shape in shapes.items():
            name = full_name
            if name.startswith(TEXT_PREFIX):
                name = f"model.{name.removeprefix(TEXT_PREFIX)}"
            if wanted.get(name, shape) != shape:
                raise WeightsError(
                    f"{path}: tensor {name} has shape {shape}, config.json asks for {wanted[name]}"
                )
            wanted.pop(name, None)
    if wanted:
        raise WeightsError(f"{folder}: tensor {next(iter(wanted))} is missing from the checkpoint")


def sees_images(folder: Path) -> bool:
    """Whether the folder's model takes images beside text."""
    return read_json_object(folder / "config.json").get("model_type") in MODEL_TYPES
