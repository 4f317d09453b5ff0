"""The reference implementation: transformers' Llama on torch, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import transformers
from numpy.typing import NDArray


def the_gguf_file(folder: Path) -> dict[str, str]:
    """How transformers is told that a folder's weights are in a GGUF file, if they are."""
    return {"gguf_file": "model.gguf"} if (folder / "model.gguf").is_file() else {}


class Reference:
    """A checkpoint folder as transformers runs it.

    In float64 all matrix products and sums are float64; transformers takes the norms and the
    rotary angles in float32 all the same, which moves the logits by some 2e-5.
    """

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float64) -> None:
        # sdpa: the eager attention takes its softmax in float32.
        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation="sdpa", **the_gguf_file(folder)
        ).eval()

    @torch.no_grad()
    def logits(self, ids: Sequence[int]) -> NDArray[np.float64]:
        """Of every position in one forward, (T, vocab_size)."""
        logits = self.model(torch.tensor([list(ids)]), use_cache=False).logits[0]
        array: NDArray[np.float64] = logits.to(torch.float64).numpy()
        return array

    @torch.no_grad()
    def logits_and_greedy(
        self, ids: Sequence[int], n_tokens: int
    ) -> tuple[NDArray[np.float64], list[int], list[float]]:
        """The same; then the likeliest token n times over, and by how much it led each time."""
        cache = transformers.DynamicCache(config=self.model.config)
        logits = self.model(torch.tensor([list(ids)]), cache=cache, use_cache=True).logits[0]
        tokens: list[int] = []
        gaps: list[float] = []
        row = logits[-1]
        while True:
            best, second = torch.topk(row, 2).values.tolist()
            tokens.append(int(row.argmax()))
            gaps.append(best - second)
            if len(tokens) == n_tokens:
                return logits.to(torch.float64).numpy(), tokens, gaps
            step = torch.tensor([tokens[-1:]])
            row = self.model(step, cache=cache, use_cache=True).logits[0, -1]
