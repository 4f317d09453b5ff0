"""What a token is drawn from: the logits, and what each filter of the sampler leaves of them.

Worked out when somebody looks, from the raw logits and the sampler as it was before the pick.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinyllm.sampler import Logits, Sampler, best_ids, probabilities
from tinyllm.text.shown import bar, percent, table


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
            kept = ~np.isneginf(x)
            stages.append(
                Stage(name, x, int(np.count_nonzero(kept)), float(self.p_raw[kept].sum()))
            )
        return stages

    @cached_property
    def p_raw(self) -> NDArray[np.float64]:
        """Softmax of the raw logits, (vocab_size,)."""
        return probabilities(self.logits)

    @cached_property
    def p(self) -> NDArray[np.float64]:
        """What is drawn from, (vocab_size,): zero where a filter has cut."""
        last = self.stages[-1].logits
        return self.p_raw if last is self.logits else probabilities(last)

    @cached_property
    def entropy(self) -> float:
        """Of the raw distribution, in nats."""
        p = self.p_raw[self.p_raw > 0]
        return float(-(p * np.log(p)).sum())

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
            cut_by=next((s.name for s in self.stages if np.isneginf(s.logits[token])), None),
        )

    def best_and(self, token: int, k: int) -> list[Standing]:
        """The k likeliest, and behind them `token` where it isn't one of them."""
        found = self.best(k)
        if all(s.token != token for s in found):
            found.append(self.standing(token))
        return found
