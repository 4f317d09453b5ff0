"""What a token is drawn from: the logits, and what each filter of the sampler leaves of them.

Worked out when somebody looks, from the raw logits and the sampler as it was before the pick.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinyllm.sampler import Logits, Sampler, best_ids, probabilities
from tinyllm.text.shown import bar, percent, table

FAR_BELOW = 800.0  # nats: e to the minus that is 0 in float64


class Stage(NamedTuple):
    """The logits after one filter of the sampler."""

    name: str  # raw, mask, penalties, temperature, top_k or top_p
    logits: Logits  # (vocab_size,); -inf where this filter, or one before it, has cut
    n_kept: int  # tokens that are left
    mass: float  # raw probability of those


class Stages(list[Stage]):
    """raw → mask → penalties → temperature → top_k → top_p, each with what it kept."""

    def __repr__(self) -> str:
        return "Stages(" + " → ".join(f"{s.name} {s.n_kept:,}" for s in self) + ")"

    def _repr_html_(self) -> str:
        rows, before = [], 0
        for stage in self:
            cut = f"−{before - stage.n_kept:,}" if before > stage.n_kept else ""
            rows.append((stage.name, stage.n_kept, cut, percent(stage.mass), bar(stage.mass)))
            before = stage.n_kept
        return table(["stage", "tokens left", "cut", "raw probability left", ""], rows)


class Standing(NamedTuple):
    """Where one token stands in a distribution, and what became of it.

    `p_raw` is its probability under the raw logits; `p` the one it was drawn with, zero once a
    filter has cut it; `cut_by` names that filter. `rank` counts from 0, by raw logit.
    """

    token: int
    logit: float
    p_raw: float
    p: float
    rank: int
    cut_by: str | None


@dataclass(frozen=True, eq=False)
class Distribution:
    """Logits, and what each filter leaves of them."""

    logits: Logits  # (vocab_size,) raw
    sampler: Sampler = field(repr=False)  # as it is before the pick
    allowed: NDArray[np.bool_] | None = field(default=None, repr=False, kw_only=True)  # by a guide

    @cached_property
    def stages(self) -> Stages:
        """The logits after each filter, in order; the last ones are drawn from."""
        stages = Stages()
        for name, x in self.sampler.stages(self.logits, self.allowed):
            if stages and x is stages[-1].logits:  # a filter that is off
                stages.append(stages[-1]._replace(name=name))
                continue
            kept = x != -np.inf
            n_kept = int(np.count_nonzero(kept))
            mass = self.p_raw.sum() if n_kept == len(x) else self.p_raw[kept].sum()
            stages.append(Stage(name, x, n_kept, float(mass)))
        return stages

    @cached_property
    def p_raw(self) -> NDArray[np.float64]:
        """Softmax of the raw logits, (vocab_size,)."""
        return probabilities(self.logits)

    @cached_property
    def p(self) -> NDArray[np.float64]:
        """What is drawn from, (vocab_size,): zero where a filter has cut."""
        last = self.stages[-1]
        if last.logits is self.logits:
            return self.p_raw
        if last.n_kept == len(self.logits):
            return probabilities(last.logits)
        (kept,) = np.nonzero(last.logits != -np.inf)  # often a few dozen of fifty thousand
        p = np.zeros(len(self.logits))
        p[kept] = probabilities(last.logits[kept])
        return p

    @cached_property
    def entropy(self) -> float:
        """Of the raw distribution, in nats.

        -log p is that of the likeliest token and how far a logit lies below the best one: one
        logarithm in all, and a sum without a negative term.
        """
        below = np.subtract(self.logits.max(), self.logits, dtype=np.float64)
        np.minimum(below, FAR_BELOW, out=below)  # of what has no probability: 0 · inf is no number
        below *= self.p_raw
        return float(below.sum()) - math.log(self.p_raw.max())

    def best(self, k: int) -> list[Standing]:
        """The k likeliest tokens by raw logit, ties by id, with what became of each."""
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 0:
            raise ValueError(f"k must be a whole number from 0 up, not {k!r}")
        return [self.standing(int(t), rank) for rank, t in enumerate(best_ids(self.logits, k))]

    def standing(self, token: int, rank: int | None = None) -> Standing:
        """Where one token stands, wherever that is; `rank` if it is known already."""
        if rank is None:
            logit = self.logits[token]
            before = np.count_nonzero(self.logits > logit)
            rank = int(before + np.count_nonzero(self.logits[:token] == logit))
        return Standing(
            token=token,
            logit=float(self.logits[token]),
            p_raw=float(self.p_raw[token]),
            p=float(self.p[token]),
            rank=rank,
            cut_by=next((s.name for s in self.stages if s.logits[token] == -np.inf), None),
        )

    def best_and(self, token: int, k: int) -> list[Standing]:
        """The k likeliest, and behind them `token` where it isn't one of them."""
        found = self.best(k)
        if all(s.token != token for s in found):
            found.append(self.standing(token))
        return found
