"""What a request's `trace` asks for: its steps as a saved trace has them, made while it runs.

How a token was drawn comes with the engine's event. What went on inside the model is computed
again (`looking_along.py`), token by token, by the readable model on one thread of its own with a
low priority: the engine never waits for it, and other requests' tokens don't either.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

from tinyllm.api.contract.errors import too_many
from tinyllm.api.contract.sampling import Trace
from tinyllm.api.limits import MAX_INSIDE
from tinyllm.engine.types import Token, TraceParams
from tinyllm.inside.trace_file import (
    GuessRecord,
    StageRecord,
    StartRecord,
    StepRecord,
    record_candidates,
)
from tinyllm.tokenizer import StreamDecoder, Tokenizer

if TYPE_CHECKING:
    from tinyllm.api.answer.looking_along import Inside


def engine_params(trace: Trace, n: int) -> TraceParams:
    """What the engine has to tell for it."""
    return TraceParams(
        candidates=trace.candidates or 0,
        stages=bool(trace.stages),
        logits=MAX_INSIDE // n if trace.inside else 0,
    )


class StepWriter:
    """One choice's events as steps of a trace.

    Args:
        tokenizer: for the texts.
        n_prompt: tokens of the prompt.
        guesses: whether to show them; they may quote a thought that is to stay hidden.
        start: what the first step brings along, if the whole was asked for.
    """

    def __init__(
        self, tokenizer: Tokenizer, n_prompt: int, guesses: bool = True,
        start: StartRecord | None = None,
    ) -> None:  # fmt: skip
        self._show_guesses, self._start = guesses, start
        self._tokenizer = tokenizer
        self._decoder = StreamDecoder(tokenizer)
        self._n_prompt = n_prompt
        self.drawn: list[int] = []

    def write(self, token: Token) -> StepRecord:
        """The step of the next token; the event must hold a look."""
        look, index, begun = token.look, len(self.drawn), self._decoder.begun
        assert look is not None
        self.drawn.append(token.token)
        return StepRecord(
            index=index,
            position=self._n_prompt + index,
            token=token.token,
            text=self._tokenizer.token_text(token.token, begun),
            text_delta=self._decoder.push(token.token),
            logprob=token.logprob,
            entropy=look.entropy,
            chosen_by=look.chosen_by,
            uniform=look.uniform,
            candidates=record_candidates(look.candidates, self._tokenizer, begun),
            stages=None if look.stages is None else [StageRecord(*s) for s in look.stages],
            guess=self._guess(token),
            start=None if index else self._start,
        )

    def _guess(self, token: Token) -> GuessRecord | None:
        """What lookup decoding had put in the token's place."""
        guess, text_of = token.guess, self._tokenizer.token_text
        if guess is None or not self._show_guesses:
            return None
        dropped = [text_of(t) for t in guess.dropped]
        kept = guess.token == token.token
        return GuessRecord(guess.token, text_of(guess.token), kept, guess.source, dropped)


class TraceWorker:
    """Where looks inside are made, for one app: a thread, and so many requests at a time.

    Args:
        places: requests that may be looked into at once; one more is for a share that has none.
    """

    def __init__(self, places: int) -> None:
        self.closed = False
        self._places = places
        self._taken: Counter[str] = Counter()  # by share
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, "tinyllm-trace", initializer=lower_priority)

    def take_place(self, share: str) -> Callable[[], None]:
        """A place for one request; gives what gives it back. ApiError 429 when all are taken."""
        with self._lock:
            if self.free + (not self._taken[share]) <= 0:
                message = "Other requests are being traced inside the model; try again."
                raise too_many(message, retry_after=5)
            self._taken[share] += 1
        return partial(self._leave, share)

    @property
    def free(self) -> int:
        """Places that anybody may have."""
        return self._places - self._taken.total()

    def _leave(self, share: str) -> None:
        with self._lock:
            self._taken[share] -= 1
            if not self._taken[share]:
                del self._taken[share]

    def look(
        self, inside: Inside, event: Token, step: StepRecord, drawn: Sequence[int]
    ) -> asyncio.Future[StepRecord]:
        """`Inside.look` on the trace_worker's thread; not once it is closed."""
        loop = asyncio.get_running_loop()
        return loop.run_in_executor(self._thread, inside.look, event, step, drawn)

    def close(self) -> None:
        """Take no more looks; from any thread."""
        self.closed = True
        self._thread.shutdown(wait=False, cancel_futures=True)


def lower_priority() -> None:
    """Let everybody else run first, where a thread can have a priority of its own."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
