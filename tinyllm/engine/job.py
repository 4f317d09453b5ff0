"""A request on its way through the engine: a job, and its n live choices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinyllm.engine.lookup import Lookup
from tinyllm.engine.types import Event, FinishReason, Guess, Guide, Request
from tinyllm.kv_cache import Cache
from tinyllm.runner import behind_image
from tinyllm.sampler import Sampler


class Guesses(NamedTuple):
    """Tokens that may come next, and each one's probability that it and all before are right."""

    tokens: Sequence[int]
    odds: Sequence[float]
    source: Literal["guide", "text"] = "text"

    def first(self, n: int) -> Guesses:
        """The first n of them."""
        return Guesses(self.tokens[:n], self.odds[:n], self.source)

    def at(self, i: int) -> Guess | None:
        """The one in place i of a pass, with those behind it as dropped; None past the end."""
        if i >= len(self.tokens):
            return None
        return Guess(self.tokens[i], self.source, tuple(self.tokens[i + 1 :]))


NO_GUESSES = Guesses((), ())


@dataclass(eq=False)
class LiveChoice:
    """One of a request's answers while it is being decoded."""

    job: Job
    index: int
    sampler: Sampler
    guide: Guide | None
    cache: Cache | None  # given up at the end
    lookup: Lookup
    forced: Sequence[int] = ()  # what the guide says must come next
    tokens: list[int] = field(default_factory=list)  # what was drawn; the last is not cached yet
    logprobs: list[float] = field(default_factory=list)
    reason: FinishReason | None = None  # set when it is over

    @property
    def n_seen(self) -> int:
        """Tokens, of prompt and answer, that the newest one was drawn from."""
        return len(self.job.ids) + max(len(self.tokens) - 1, 0)

    def guesses(self, most: int) -> Guesses:
        """What may come next, at most so many tokens: what is forced, or what the text suggests."""
        most = min(most, self.job.max_tokens - len(self.tokens) - 1)
        if most <= 0:
            return NO_GUESSES
        if self.forced:
            tokens = self.forced[:most]
            return Guesses(tokens, [1.0] * len(tokens), "guide")
        return Guesses(*self.lookup.guesses(most))


@dataclass(eq=False)
class Job:
    """One request: first one cache that takes in the prompt, then a choice per answer."""

    request: Request
    on_event: Callable[[Event], None]
    max_tokens: int  # the request's, clamped to the room that is left after the prompt
    pages: int  # promised to it, see memory.py
    order: int  # of arrival
    ids: NDArray[np.int64]  # (T,) what the prefix cache compares
    reuse: bool = True  # may start from somebody's cached prefix
    prompt_cache: Cache | None = None  # while the prompt is being taken in
    cached_tokens: int = 0  # of the prompt, found in the prefix cache
    prompt_logprobs: list[float] = field(default_factory=list)  # if the request asks for them
    prompt_top: list[list[tuple[int, float]]] = field(default_factory=list)  # and for those
    choices: list[LiveChoice] = field(default_factory=list)  # all, from the start of decoding
    admitted: float | None = None  # when it came to run, time.perf_counter() seconds
    over: bool = False  # it has ended, and owns nothing any more
    crowded_out: bool = False  # it lost its place in the queue; written under the engine's lock
    cancelled: bool = False  # written by any thread, read by the engine's

    @property
    def share(self) -> str:
        """Whose part of the engine it takes."""
        return self.request.share or self.request.key

    @property
    def n_left(self) -> int:
        """Prompt tokens that are still to be prefilled."""
        done = self.prompt_cache.length if self.prompt_cache is not None else 0
        return 0 if self.choices else len(self.ids) - done

    def uncut(self, n_tokens: int) -> int:
        """How many of the next prompt tokens to take: so many, or more to part no image."""
        prompt = self.request.prompt
        if not prompt.whole_images:
            return n_tokens
        done = len(self.ids) - self.n_left
        return behind_image(prompt.image_positions, done + n_tokens) - done

    @property
    def live(self) -> list[LiveChoice]:
        """The choices that are still being decoded."""
        return [c for c in self.choices if c.reason is None]

    @property
    def n_slots(self) -> int:
        """Rows of a step that it takes or is going to take."""
        return len(self.live) if self.choices else self.request.n


class Ticket:
    """The handle of a submitted request; `wake` has the engine look at it."""

    def __init__(self, job: Job, wake: Callable[[], None]) -> None:
        self._job = job
        self._wake = wake

    def cancel(self) -> None:
        """Give the request up; its slot is free within a step. Safe from any thread, twice too."""
        self._job.cancelled = True
        self._wake()
