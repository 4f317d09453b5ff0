"""A whole answer as the fold of its events: the same ones that a stream sends."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from tinyllm.engine.types import Done, Event, Finished, FinishReason, Started, Token


@dataclass
class Answer:
    """One choice: its tokens, their raw log-probabilities, and why it ended."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    reason: FinishReason | None = None
    message: str = ""


@dataclass
class Outcome:
    """A request's answers, in order of their index."""

    answers: list[Answer]
    prompt_tokens: int = 0
    cached_tokens: int = 0


class Collector:
    """An `on_event` that folds the events into an `Outcome`."""

    def __init__(self, n: int = 1) -> None:
        self.outcome = Outcome([Answer() for _ in range(n)])
        self._done = threading.Event()

    def __call__(self, event: Event) -> None:
        if isinstance(event, Token):
            answer = self.outcome.answers[event.index]
            answer.tokens.append(event.token)
            answer.logprobs.append(event.logprob)
        elif isinstance(event, Started):
            self.outcome.prompt_tokens = event.prompt_tokens
            self.outcome.cached_tokens = event.cached_tokens
        elif isinstance(event, Finished):
            answer = self.outcome.answers[event.index]
            answer.reason, answer.message = event.reason, event.message
        elif isinstance(event, Done):
            self._done.set()

    def wait(self, timeout: float | None = None) -> Outcome:
        """Block until the request is over. Raises TimeoutError after `timeout` seconds."""
        if not self._done.wait(timeout):
            raise TimeoutError(f"no answer within {timeout} s")
        return self.outcome
