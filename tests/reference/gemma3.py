"""Gemma 3 as transformers loads it from the very file that we run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray


class Reference:
    """The model in float32, from the folder's GGUF."""

    def __init__(self, folder: Path) -> None:
        self.model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder, gguf_file="model.gguf", dtype=torch.float32, attn_implementation="eager"
        ).eval()

    def next_logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """(vocab_size,) of the token after `tokens`."""
        with torch.no_grad():
            logits: NDArray[np.float32] = self.model(torch.tensor([tokens])).logits[0, -1].numpy()
        return logits
