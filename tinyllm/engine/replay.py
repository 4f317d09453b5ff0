"""Replay: run a kept request again, and compare every bit.

An answer depends on the weights, the prompt, the parameters and the seed, and on nothing else:
not on who else was in the batch, not on what was cached, not on how the prompt was cut up. A
replay is that promise put to the test on a request of the user's choosing.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, replace

from tinyllm.engine.outcome import Answer, Outcome
from tinyllm.engine.types import Request


class NotKept(Exception):
    """No kept request of that key has this id: never kept, too old, or somebody else's."""

    def __init__(self, request_id: str) -> None:
        super().__init__(f"request {request_id!r} is not kept for replay")


@dataclass(frozen=True)
class Recording:
    """A request (its seed drawn) and what came of it."""

    request: Request
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Difference:
    """The first token of a choice that differs; None for a token past the end of a run."""

    index: int  # of the choice
    position: int  # in its tokens
    recorded: tuple[int, float] | None  # token, logprob
    replayed: tuple[int, float] | None


@dataclass(frozen=True)
class ReplayResult:
    """What running a kept request again showed."""

    request_id: str
    identical: bool  # every token, every bit of every logprob, and every finish reason
    tokens_compared: int
    differences: tuple[Difference, ...]  # at most one a choice
    seed: int


def compare(recording: Recording, outcome: Outcome) -> ReplayResult:
    """Hold a second run against the recorded one."""
    differences = []
    same_reasons = True
    compared = 0
    for index, (old, new) in enumerate(zip(recording.answers, outcome.answers, strict=True)):
        was = list(zip(old.tokens, old.logprobs, strict=True))
        now = list(zip(new.tokens, new.logprobs, strict=True))
        compared += len(was)
        same_reasons &= old.reason == new.reason
        for i in range(max(len(was), len(now))):
            a, b = (run[i] if i < len(run) else None for run in (was, now))
            if a != b:  # floats are compared by value: equal unless a bit differs (or NaN)
                differences.append(Difference(index, i, a, b))
                break
    return ReplayResult(
        request_id=recording.request.id,
        identical=same_reasons and not differences,
        tokens_compared=compared,
        differences=tuple(differences),
        seed=recording.request.params.seed or 0,
    )


class ReplayStore:
    """The newest `max_kept` recordings, by request id. Safe from any thread."""

    def __init__(self, max_kept: int) -> None:
        self._max_kept = max_kept
        self._kept: OrderedDict[str, Recording] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, recording: Recording) -> None:
        """Keep a recording; the oldest goes when there are too many."""
        if self._max_kept <= 0:
            return
        with self._lock:
            self._kept[recording.request.id] = recording
            while len(self._kept) > self._max_kept:
                self._kept.popitem(last=False)

    def get(self, request_id: str, key: str) -> Recording:
        """The recording of one key's request; NotKept when there is none."""
        with self._lock:
            recording = self._kept.get(request_id)
        if recording is None or recording.request.key != key:
            raise NotKept(request_id)
        return recording

    def rerun(self, recording: Recording) -> Request:
        """The request that runs a recording again."""
        id = f"{recording.request.id}.replay"
        return replace(recording.request, id=id, keep=False, deadline=None, trace=None)
