"""What was decided, token by token: a step, the choice it was drawn from, its candidates.

A `Step` is a record. What went on inside the model is asked through one seam, `Step.rerun`: the
forward that led to it, ready to be run again (`inside/rerun.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tinyllm.distribution import Distribution, Stages, Standing
from tinyllm.inside.display import cache_html, candidates_html, step_html
from tinyllm.inside.hooks import Conditions
from tinyllm.inside.replay import token_id
from tinyllm.inside.rerun import LooksInside, Rerun
from tinyllm.inside.trace_file import record
from tinyllm.runner import Array
from tinyllm.sampler import ChosenBy, Draws, Logits, SamplingParams, uniform
from tinyllm.tokenizer import Tokenizer

if TYPE_CHECKING:
    from tinyllm.decode import Session


@dataclass(frozen=True)
class Candidate:
    """A token that could have come next: its text, and the fields of `distribution.Standing`."""

    token: int
    text: str
    logit: float
    p_raw: float
    p: float
    rank: int
    cut_by: str | None

    @property
    def kept(self) -> bool:
        """Whether it could be drawn."""
        return self.cut_by is None


class Candidates(list[Candidate]):
    """Candidates, likeliest first; `chosen` is the token that was taken, if one was."""

    def __init__(self, items: Sequence[Candidate], chosen: int | None = None) -> None:
        super().__init__(items)
        self.chosen = chosen

    def __repr__(self) -> str:
        shown = ", ".join(f"{c.text!r} {c.p_raw:.1%}" for c in self[:5])
        return f"Candidates({shown}{', …' if len(self) > 5 else ''})"

    def _repr_html_(self) -> str:
        return candidates_html(self)


class Moment(NamedTuple):
    """A place between two tokens of a session, where one is or was chosen.

    Attributes:
        history: all tokens, shared and only ever appended to: [:position] is what came before.
        position: of the chosen token.
        under: the hooks and breakages that the logits were computed under.
    """

    history: list[int]
    position: int
    under: Conditions

    @property
    def before(self) -> list[int]:
        """Prompt and completion up to here."""
        return self.history[: self.position]

    def begun(self, tokenizer: Tokenizer) -> bytes:
        """The first bytes of a character that the tokens before have begun, or b""."""
        return tokenizer.unfinished(self.history[max(0, self.position - 3) : self.position])


@dataclass(frozen=True, eq=False)
class NextToken(Distribution, LooksInside):
    """The distribution that a token is, or was, drawn from, with the tokens' texts."""

    session: Session = field(repr=False)
    moment: Moment = field(repr=False)
    chosen: int | None = None  # the token that was taken, once one is

    @property
    def tokenizer(self) -> Tokenizer:
        """The session's."""
        return self.session.tokenizer

    @property
    def rerun(self) -> Rerun:
        """The forward that gave the logits, ready to be run again."""
        return self.session.rerun(self.moment)

    @property
    def _asked_token(self) -> int:
        return self.best(1)[0].token if self.chosen is None else self.chosen

    @property
    def _distribution(self) -> Distribution:
        return self

    def candidates(self, k: int = 10) -> Candidates:
        """The k likeliest tokens by raw logit, ties by id, with what became of each."""
        return Candidates([self._candidate(s) for s in self.best(k)], self.chosen)

    def candidate(self, token: int | str) -> Candidate:
        """The candidate of one token, an id or a text, wherever it ranks; raises as `step` does."""
        return self._candidate(self.standing(token_id(self.tokenizer, token, len(self.logits))))

    def _candidate(self, standing: Standing) -> Candidate:
        text = self.tokenizer.token_text(standing.token, self.moment.begun(self.tokenizer))
        return Candidate(text=text, **standing._asdict())

    def __repr__(self) -> str:
        best = self.candidates(3)
        shown = ", ".join(f"{c.text!r} {c.p_raw:.1%}" for c in best)
        return f"NextToken({shown}, …; entropy {self.entropy:.2f} nats)"

    def _repr_html_(self) -> str:
        return self.candidates()._repr_html_()


class CacheView:
    """A read-only view of the KV cache as a step saw it: the tokens before the chosen one.

    Attributes:
        n_tokens: tokens held.
        nbytes: bytes that these tokens' keys and values take.
    """

    def __init__(self, step: Step) -> None:
        self._step = step
        self.n_tokens = step.position
        self.nbytes = step.session.cache.token_nbytes * self.n_tokens

    def k(self, layer: int) -> Array:
        """A copy of one layer's keys, rotated: (n_tokens, n_kv_heads, head_dim)."""
        return self._step.session.cached(self._step.moment, "keys", layer)

    def v(self, layer: int) -> Array:
        """A copy of one layer's values: (n_tokens, n_kv_heads, head_dim)."""
        return self._step.session.cached(self._step.moment, "values", layer)

    def __repr__(self) -> str:
        return f"CacheView({self.n_tokens} tokens, {self.nbytes / 1e6:.2f} MB)"

    def _repr_html_(self) -> str:
        return cache_html(self, self._step.session.runner.config)


@dataclass(frozen=True, eq=False, repr=False)
class Step(LooksInside):
    """One decoded token: what was decided, and the way to what led to it.

    Attributes:
        session: the one that decoded it.
        moment: where in its tokens.
        index: of the completion, from 0.
        token: its id.
        text_delta: whole code points; may be empty while an emoji is under way.
        logprob: under the softmax of the raw logits, natural log.
        chosen_by: "argmax", "sample" or "forced".
        draws: sampling parameters and seed that held for this step.
    """

    session: Session
    moment: Moment
    index: int
    token: int
    text_delta: str
    logprob: float
    chosen_by: ChosenBy
    draws: Draws
    kept_logits: list[Logits]  # none, once the session has let go of them

    @property
    def position(self) -> int:
        """Of the token in the sequence."""
        return self.moment.position

    @property
    def text(self) -> str:
        """The token for display: what it makes of a character that others have begun."""
        tokenizer = self.session.tokenizer
        return tokenizer.token_text(self.token, self.moment.begun(tokenizer))

    @property
    def tokens_before(self) -> list[int]:
        """Prompt and completion up to this step, its own token not included."""
        return self.moment.before

    @property
    def params(self) -> SamplingParams:
        """The sampling parameters that held for this step."""
        return self.draws.params

    @property
    def logits(self) -> Logits:
        """Raw, (vocab_size,) float32: before any filter."""
        return self.kept_logits[0] if self.kept_logits else self.session.logits_at(self.moment)

    @property
    def choice(self) -> NextToken:
        """The distribution that the token was chosen from."""
        return self.session.choice_of(self)

    @property
    def stages(self) -> Stages:
        """The logits after each filter, in order."""
        return self.choice.stages

    @property
    def entropy(self) -> float:
        """Of the raw distribution, in nats."""
        return self.choice.entropy

    @property
    def uniform(self) -> float:
        """The number in [0, 1) that a draw here uses: it hangs on seed, stream and index alone."""
        return uniform(self.draws.seed, self.draws.stream, self.index)

    def candidates(self, k: int = 10) -> Candidates:
        """The k likeliest tokens by raw logit, with what became of each."""
        return self.choice.candidates(k)

    @property
    def cache(self) -> CacheView:
        """The KV cache as this step saw it."""
        return CacheView(self)

    @property
    def rerun(self) -> Rerun:
        """The forward that led here, ready to be run again."""
        return self.session.rerun(self.moment)

    @property
    def _asked_token(self) -> int:
        return self.token

    @property
    def _distribution(self) -> Distribution:
        return self.choice

    def to_dict(self, **parts: Any) -> dict[str, Any]:
        """This step alone as a versioned trace, plain data for JSON.

        Args:
            parts: what to put in: candidates=10, stages=True, lens=0 (k), attention=(layer, heads);
                see `trace_file.record_step`.
        """
        return record(self.session, [self], **parts).to_dict()

    def __repr__(self) -> str:
        return (
            f"Step({self.index}: {self.text!r}, p {np.exp(self.logprob):.1%}, {self.chosen_by}, "
            f"position {self.position})"
        )

    def _repr_html_(self) -> str:
        return step_html(self)
