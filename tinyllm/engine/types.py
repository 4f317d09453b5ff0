"""What crosses the line between the API and the engine: a request down, events up.

Everything here is plain data. The API thread builds a `Request`; the engine thread calls
`on_event` with one of the events below, in order, and never blocks in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from tinyllm.distribution import Standing
from tinyllm.prompt import Prompt as Prompt
from tinyllm.sampler import ChosenBy, Logits, SamplingParams

FinishReason = Literal["stop", "length", "cancelled", "timeout", "crowded out", "error"]


class Guide(Protocol):
    """Steers one choice, token by token: a grammar, a thinking budget, stop strings.

    The engine asks `forced` and `allowed` before it draws, and tells `accept` what came out.
    All three run on the engine thread, so they must be quick and must not raise.
    """

    def allowed(self) -> NDArray[np.bool_] | None:
        """Mask over the vocabulary, (vocab_size,) bool, True = may be drawn; None = all."""

    def forced(self) -> Sequence[int]:
        """Tokens that must come next whatever the model says, in order, as far as is known.

        Only the first binds: the guide is asked again after each token.
        """

    def accept(self, token: int) -> bool:
        """Take note of the token; True when the choice is finished (reason "stop")."""


@dataclass(frozen=True)
class TraceParams:
    """What the Token events of a traced request say beyond the token."""

    candidates: int = 0  # how many; the chosen token comes on top of them
    stages: bool = False
    logits: int = 0  # how many of a choice's first tokens bring the raw logits along


@dataclass(frozen=True)
class Look:
    """How a token came to be drawn. The numbers are those of `decode.Step`."""

    chosen_by: ChosenBy
    uniform: float  # in [0, 1): what a draw here uses
    entropy: float  # of the raw distribution, nats
    candidates: tuple[Standing, ...]
    stages: tuple[tuple[str, int, float], ...] | None = None  # name, n_kept, mass
    logits: Logits | None = None  # (vocab_size,) raw


@dataclass(frozen=True)
class Guess:
    """What lookup decoding had put in a token's place before it was drawn (`lookup.py`)."""

    token: int  # kept if it is the one that was drawn
    source: Literal["guide", "text"]
    dropped: tuple[int, ...] = ()  # the guesses behind it, if they were thrown away here


@dataclass(frozen=True)
class Request:
    """One generation: a prompt, how to sample, when to end, and whose it is."""

    id: str
    prompt: Prompt
    params: SamplingParams
    max_tokens: int  # completion tokens a choice, >= 0
    n: int = 1
    stop_ids: frozenset[int] = frozenset()
    top_logprobs: int = 0  # how many alternatives a Token event reports
    trace: TraceParams | None = None
    guide: Callable[[int], Guide] | None = None  # makes the guide of choice i
    key: str = ""  # owner: prefixes and replays are shared within one key only
    share: str = ""  # whose part of the engine it takes: the key, or an address without keys
    session: str | None = None
    deadline: float | None = None  # time.monotonic() seconds
    keep: bool = False  # keep for replay
    cold: bool = False  # starts from nobody's cached prefix
    score_from: int | None = None  # `Started` reports how likely the prompt is from here on, >= 1


@dataclass(frozen=True)
class Started:
    """Prefill is over: how many prompt tokens came from the prefix cache."""

    prompt_tokens: int
    cached_tokens: int
    prompt_logprobs: tuple[float, ...] = ()  # of tokens score_from …, raw softmax
    prompt_top: tuple[list[tuple[int, float]], ...] = ()  # the likeliest at each, as Token's


@dataclass(frozen=True)
class Token:
    """One token of one choice. `logprob` is under the softmax of the raw logits."""

    index: int
    token: int
    logprob: float
    top: list[tuple[int, float]] = field(default_factory=list)  # best first, raw softmax
    look: Look | None = None  # if the request is traced
    guess: Guess | None = field(default=None, compare=False)  # it changes nothing but the time


@dataclass(frozen=True)
class Finished:
    """A choice is over; `message` explains an "error"."""

    index: int
    reason: FinishReason
    message: str = ""


@dataclass(frozen=True)
class Done:
    """Every choice is over and every resource of the request is free again."""


Event = Started | Token | Finished | Done


class Handle(Protocol):
    """What `Engine.submit` returns."""

    def cancel(self) -> None:
        """Give the request up; its slot is free within a step. Safe from any thread, twice too."""


class QueueFull(Exception):
    """More requests wait than `max_queue` allows; `retry_after` is in seconds."""

    def __init__(self, retry_after: float) -> None:
        super().__init__(f"the queue is full; try again in {retry_after:.0f} s")
        self.retry_after = retry_after


class Draining(Exception):
    """The engine takes no new work: it is shutting down."""


class PromptTooLong(Exception):
    """The prompt doesn't fit the context (or the cache budget)."""

    def __init__(self, n_prompt_tokens: int, n_ctx: int) -> None:
        super().__init__(f"the prompt has {n_prompt_tokens} tokens and the context holds {n_ctx}")
        self.n_prompt_tokens = n_prompt_tokens
        self.n_ctx = n_ctx
