"""The sampler of `sampler.py`, with its sums and cuts compiled.

What is drawn is the same; a test holds the two together. See `kernels/draw.py` for why.
"""

from __future__ import annotations

import math

import numpy as np

from tinyllm.kernels import draw as kernels
from tinyllm.sampler import Logits, Sampler, SamplingParams, apply_temperature


class RowScratch:
    """Exponentials of the row that was worked on last; shared by the samplers of one thread."""

    def __init__(self, vocab_size: int) -> None:
        self.exps = np.empty(vocab_size, np.float32)
        self.sums = np.empty(0, np.float64)
        self.top = np.float32(0)
        self._of: Logits | None = None

    def fill(self, row: Logits) -> None:
        """Make `exps`, `sums` and `top` those of `row`; nothing to do if they are already."""
        if self._of is row:
            return
        self.top = row[row.argmax()]
        self.sums = kernels.exp_row(row, self.top, self.exps)
        self._of = row


class CompiledSampler(Sampler):
    """One choice's draws, fast."""

    def __init__(self, params: SamplingParams, stream: int, scratch: RowScratch) -> None:
        super().__init__(params, stream)
        self._scratch = scratch

    def _draw(self, x: Logits, u: float) -> int:
        row, params = self._scratch, self.params
        x = apply_temperature(x, params.temperature)
        row.fill(x)
        return int(kernels.draw(x, row.top, row.exps, row.sums, params.top_k, params.top_p, u))

    def _log_normalizer(self, logits: Logits) -> float:
        self._scratch.fill(logits)
        return float(self._scratch.top) + math.log(self._scratch.sums.sum())


def top_logprobs(logits: Logits, k: int, scratch: RowScratch) -> list[tuple[int, float]]:
    """The k likeliest tokens with their log-probabilities under the raw softmax, best first."""
    scratch.fill(logits)
    norm = float(scratch.top) + math.log(scratch.sums.sum())
    return [(int(i), float(logits[i]) - norm) for i in kernels.largest(logits, k)]
