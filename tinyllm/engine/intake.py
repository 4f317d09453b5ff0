"""What becomes a job: a request that can be run, and how far it may go."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import replace

from tinyllm.engine.job import Job
from tinyllm.engine.memory import CacheMemory
from tinyllm.engine.types import Event, PromptTooLong, Request


class Intake:
    """Refuses what can't be run, and says by name what is wrong with it.

    Args:
        vocab_size: of the model.
        max_batch: the most choices of one request.
        n_ctx: tokens that prompt and answer may take together.
        memory: the budget that their caches come from.
    """

    def __init__(self, vocab_size: int, max_batch: int, n_ctx: int, memory: CacheMemory) -> None:
        self._vocab_size, self._max_batch, self._n_ctx = vocab_size, max_batch, n_ctx
        self._memory = memory

    def job(self, request: Request, on_event: Callable[[Event], None]) -> Job:
        """The request as a job: its seed drawn, `max_tokens` cut to the room behind the prompt.

        Raises:
            PromptTooLong: the prompt fits neither the context nor the cache budget.
            ValueError: an empty prompt, a token outside the vocabulary, a number out of range.
        """
        self._check(request)
        n_prompt, n_ctx, memory = len(request.prompt.tokens), self._n_ctx, self._memory
        if n_prompt > n_ctx:
            raise PromptTooLong(n_prompt, n_ctx)
        # What doesn't fit behind the prompt ends with "length", as at the end of the context.
        room = min(n_ctx - n_prompt, memory.max_tokens(n_prompt, request.n))
        if room < 0:
            raise PromptTooLong(n_prompt, n_ctx // request.n)
        if request.params.seed is None:
            request = replace(request, params=replace(request.params, seed=secrets.randbits(63)))
        max_tokens = min(request.max_tokens, room)
        runs = max_tokens or request.score_from is not None
        return Job(
            request=request,
            on_event=on_event,
            max_tokens=max_tokens,
            pages=memory.worst_case(n_prompt, max_tokens, request.n) if runs else 0,
            order=0,
            ids=request.prompt.match_ids(),
            reuse=not request.cold,
        )

    def _check(self, request: Request) -> None:
        tokens = request.prompt.tokens
        if not len(tokens):
            raise ValueError("prompt: it has no tokens")
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= self._vocab_size:
            raise ValueError(f"prompt: token {low if low < 0 else high} is not in the vocabulary")
        if request.score_from is not None and request.score_from < 1:
            raise ValueError(f"score_from must be at least 1, not {request.score_from}")
        if request.max_tokens < 0:
            raise ValueError(f"max_tokens must be at least 0, not {request.max_tokens}")
        if not 1 <= request.n <= self._max_batch:
            raise ValueError(f"n must be 1 … {self._max_batch}, not {request.n}")


def check_limits(**limits: tuple[int, int]) -> None:
    """Raise ValueError for a limit, (value, least), that is less than it may be."""
    for name, (value, least) in limits.items():
        if value < least:
            raise ValueError(f"{name} must be at least {least}, not {value}")
