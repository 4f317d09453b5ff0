"""The sampler of `sampler.py`, with its sums and cuts compiled, and a look at what it does.

What is drawn is the same; a test holds the two together. See `kernels/draw.py` for why.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyllm.distribution import Distribution
from tinyllm.engine.types import Look, TraceParams
from tinyllm.kernels.drawing import Drawing
from tinyllm.sampler import (
    MAX_SEED,
    Logits,
    Pick,
    Sampler,
    SamplingParams,
    apply_temperature,
    uniform,
)


class RowScratch:
    """What is known of the row that was worked on last; shared by the samplers of one thread."""

    def __init__(self, vocab_size: int) -> None:
        self.kernels = Drawing(vocab_size)
        self.sums = self.kernels.room.sums
        self.best = 0
        self.top = np.float32(0)
        self._of: Logits | None = None

    def fill(self, row: Logits) -> None:
        """Make all of it that of `row`; nothing to do if it is already."""
        if self._of is row:
            return
        if row.shape != self.kernels.room.exps.shape:
            raise ValueError(f"a row of {len(self.kernels.room.exps)} logits, not {row.shape}")
        self.best = int(row.argmax())  # the first on ties
        self.top = row[self.best]
        self.kernels.exp_row(row, self.top)
        self._of = row

    def log_normalizer(self) -> float:
        """ln Σ exp(row)."""
        return float(self.top) + float(self.kernels.log(self.sums.sum()))


class CompiledSampler(Sampler):
    """One choice's draws, fast."""

    def __init__(
        self,
        params: SamplingParams,
        stream: int,
        scratch: RowScratch,
        prompt: Sequence[int] | NDArray[Any] = (),
    ) -> None:
        super().__init__(params, stream, prompt)
        self._scratch = scratch
        self._penalises = (
            params.presence_penalty != 0.0
            or params.frequency_penalty != 0.0
            or params.repetition_penalty != 1.0
        )
        self._biased = np.array(list(params.logit_bias), np.int64)
        self._biases = np.array(list(params.logit_bias.values()), np.float32)

    def _choose(self, logits: Logits, allowed: NDArray[np.bool_] | None) -> tuple[int, str]:
        """Without a copy of the row where nothing changes it, or a few biases a greedy choice."""
        greedy, biased = self.params.temperature == 0.0, len(self._biased) > 0
        if allowed is not None or self._penalises or (biased and not greedy):
            return super()._choose(logits, allowed)
        if biased:
            if self._biased.max() >= len(logits):
                return super()._choose(logits, allowed)  # says so
            before = logits[self._biased]
            logits[self._biased] = before + self._biases
            best = int(logits.argmax())
            good = logits[best] > -np.inf
            logits[self._biased] = before
        else:
            self._scratch.fill(logits)
            best = self._scratch.best
            good = self._scratch.top > -np.inf
        if not good:
            return super()._choose(logits, allowed)  # says what is wrong
        return (best, "argmax") if greedy else (self._draw(logits, self._uniform()), "sample")

    def _uniform(self) -> float:
        seed, stream = np.uint64(self.seed & MAX_SEED), np.uint64(self.stream)
        return float(self._scratch.kernels.uniform(seed, stream, np.uint64(len(self.picked))))

    def _draw(self, x: Logits, u: float) -> int:
        row, params = self._scratch, self.params
        if params.min_p > 0.0:
            return super()._draw(x, u)
        x = apply_temperature(x, params.temperature)
        row.fill(x)
        return int(row.kernels.draw(x, row.top, params.top_k, params.top_p, u))

    def _log_normalizer(self, logits: Logits) -> float:
        self._scratch.fill(logits)
        return self._scratch.log_normalizer()


def top_logprobs(logits: Logits, k: int, scratch: RowScratch) -> list[tuple[int, float]]:
    """The k likeliest tokens with their log-probabilities under the raw softmax, best first."""
    scratch.fill(logits)
    norm = scratch.log_normalizer()
    return [(int(i), float(logits[i]) - norm) for i in scratch.kernels.largest(logits, k)]


def look(
    params: TraceParams,
    logits: Logits,
    sampler: Sampler,
    allowed: NDArray[np.bool_] | None,
    pick: Pick,
) -> Look:
    """What a traced request is told of the newest pick.

    Args:
        logits: (vocab_size,) that it was made from.
        sampler: as it is after the pick.
        allowed: the guide's mask.
    """
    index = len(sampler.picked) - 1
    before = sampler.at(sampler.picked[:index])
    drawn = Distribution(logits, before, allowed=allowed)
    return Look(
        chosen_by=pick.chosen_by,
        uniform=uniform(sampler.seed, sampler.stream, index),
        entropy=drawn.entropy,
        candidates=tuple(drawn.best_and(pick.token, params.candidates)),
        stages=tuple((s.name, s.n_kept, s.mass) for s in drawn.stages) if params.stages else None,
        logits=logits.copy() if index < params.logits else None,
    )
