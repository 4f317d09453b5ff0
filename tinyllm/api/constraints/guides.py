"""What steers a choice while it is decoded: a thinking budget, a grammar, stop strings.

A guide runs on the engine's thread between two steps, so everything here is quick and nothing
raises. Masks act inside the sampler, before penalties and temperature; log-probabilities stay
those of the raw logits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tinyllm.api.constraints.closing import Closing, Format
from tinyllm.api.constraints.grammar import Matcher
from tinyllm.api.constraints.stops import StopStrings
from tinyllm.api.constraints.thinking import Thinking, ThinkSpec
from tinyllm.tokenizer import StreamDecoder, Tokenizer


class ChoiceGuide:
    """First the thinking, then the answer: free text up to a stop string, or a grammar's.

    Args:
        tokenizer: of the model.
        think: how the choice thinks; None if it doesn't.
        matcher: what the answer must fit; None leaves it free.
        stops: strings that end the answer.
        stop_ids: tokens that end the answer.
        closing: of the matcher; ends the answer within `max_tokens`.
        min_tokens: before these no token may end it, if there is another.
        vocab_size: of the logits; the tokenizer's if not given.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        think: ThinkSpec | None = None,
        matcher: Matcher | None = None,
        stops: Sequence[str] = (),
        stop_ids: frozenset[int] = frozenset(),
        closing: Closing | None = None,
        max_tokens: int = 0,
        min_tokens: int = 0,
        vocab_size: int = 0,
    ) -> None:
        self._min_left = min_tokens
        self._thinking = Thinking(think)
        self._matcher = matcher
        self._closing = closing
        self._n_left = max_tokens
        self._stops = StopStrings(stops) if stops else None
        self._decoder = StreamDecoder(tokenizer)
        self._stop_ids = stop_ids
        self._vocab_size = vocab_size or tokenizer.vocab_size

    @property
    def error(self) -> str:
        """Why the grammar was given up, if it was."""
        return self._matcher.error if self._matcher is not None else ""

    @property
    def cut(self) -> bool:
        """Whether the answer was made to end, since its tokens were."""
        return self._closing is not None and self._closing.begun

    def allowed(self) -> NDArray[np.bool_] | None:
        if not self._thinking.answering:
            return None
        if self._min_left > 0:
            return self._without_stops()
        return self._fitting()

    def _without_stops(self) -> NDArray[np.bool_] | None:
        """What may come while the answer must not end."""
        mask = self._fitting()
        mask = np.ones(self._vocab_size, np.bool_) if mask is None else mask.copy()
        mask[list(self._stop_ids)] = False
        return mask if mask.any() else self._fitting()

    def _fitting(self) -> NDArray[np.bool_] | None:
        """What the grammar lets through."""
        if self._matcher is None:
            return None
        mask = self._matcher.allowed()
        if not mask.any():  # the grammar gave up: end here, `error` says why
            mask = mask.copy()
            mask[list(self._stop_ids)] = True
        elif self._closing is not None:
            mask = self._closing.allowed(mask, self._n_left)
        return mask

    def forced(self) -> Sequence[int]:
        if self._matcher is not None and self._thinking.answering:
            way = self._closing.forced() if self._closing is not None else ()
            return way or self._matcher.forced()
        return self._thinking.forced()

    def accept(self, token: int) -> bool:
        self._n_left -= 1
        self._min_left -= 1
        kind = self._thinking.push(token)
        if kind != "answer":
            return kind == "thought" and token in self._stop_ids
        if token in self._stop_ids:
            return True
        if self._closing is not None:
            self._closing.accept(token)
        done = self._matcher is not None and self._matcher.accept(token)
        if self._stops is not None:
            self._stops.push(self._decoder.push(token))
            done = done or self._stops.hit
        return done


class Guides:
    """Makes the guides of one request's choices; the arguments are those of `ChoiceGuide`.

    It is all that is kept of how a request was guided, for a replay.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        think: ThinkSpec | None,
        format: Format | None,
        stops: Sequence[str],
        stop_ids: frozenset[int],
        max_tokens: int,
        min_tokens: int = 0,
        vocab_size: int = 0,
    ) -> None:
        self._min_tokens, self._vocab_size = min_tokens, vocab_size
        self._tokenizer, self._think, self._format = tokenizer, think, format
        self._max_tokens = max_tokens
        self._stops, self._stop_ids = stops, stop_ids
        self._first: dict[int, ChoiceGuide] = {}  # by choice; those of a replay aren't noted

    def __call__(self, index: int) -> ChoiceGuide:
        """A fresh guide for choice `index`. On the engine's thread."""
        matcher = closing = None
        if self._format is not None:
            matcher = self._format.grammar.matcher()
            closing = self._format.closing(matcher, self._stop_ids)
        guide = ChoiceGuide(
            self._tokenizer, self._think, matcher, self._stops, self._stop_ids,
            closing, self._max_tokens, self._min_tokens, self._vocab_size,
        )  # fmt: skip
        self._first.setdefault(index, guide)
        return guide

    def error(self, index: int) -> str:
        """Why a choice's grammar was given up, if it was."""
        guide = self._first.get(index)
        return "" if guide is None else guide.error

    def cut(self, index: int) -> bool:
        """Whether a choice was made to end, since its tokens were."""
        guide = self._first.get(index)
        return guide is not None and guide.cut

    @property
    def nbytes(self) -> int:
        """About what it takes to keep it."""
        return 2 * sum(map(len, self._stops))

    def forget(self) -> None:
        """Let go of the guides that were made."""
        self._first.clear()
