"""Seeded checkpoints of any family, made and run by transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from tests.families_folder import config_keys


def seeded(name: str, seed: int = 0, **changes: Any) -> Any:
    """The reference's model, every parameter off its default, float64."""
    model_type, keys = config_keys(name)
    config = transformers.AutoConfig.for_model(model_type, **{**keys, **changes})
    return fill(transformers.AutoModelForCausalLM.from_config(config), seed)


def fill(model: Any, seed: int = 0) -> Any:
    """Random values in a model's parameters: norms and biases, too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            values = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1 or "norm" in name:
                parameter.copy_(parameter + 0.2 * values)
            elif "embed" in name or "wte" in name or "wpe" in name:
                parameter.copy_(0.4 * values)
            else:
                parameter.copy_(1.2 * values / parameter.shape[-1] ** 0.5)
    return model.eval()


def save(model: Any, folder: Path) -> None:
    """A checkpoint folder as transformers writes it."""
    model.save_pretrained(folder)


@torch.no_grad()
def logits(folder: Path, ids: list[int]) -> NDArray[np.float64]:
    """Of every position in one forward in float64, (T, vocab_size)."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float64, attn_implementation="eager", experts_implementation="eager"
    ).eval()
    out: NDArray[np.float64] = model(torch.tensor([ids]), use_cache=False).logits[0].numpy()
    return out
