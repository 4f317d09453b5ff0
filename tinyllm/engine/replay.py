"""Replay: run a kept request again, and compare every bit.

An answer depends on the weights, the prompt, the parameters and the seed, and on nothing else:
not on who else was in the batch, not on what was cached, not on how the prompt was cut up. A
replay is that promise put to the test on a request of the user's choosing.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, replace

from tinyllm.engine.job import Job
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


def rerun(recording: Recording) -> Request:
    """The request that runs a recording again."""
    request = recording.request
    id = f"{request.id}.replay"
    return replace(request, id=id, keep=False, deadline=None, trace=None, cold=True)


MAX_BYTES = 64 * 1024 * 1024  # of all recordings together


def size_of(recording: Recording) -> int:
    """About how many bytes a recording takes."""
    request = recording.request
    rows = request.prompt.image_rows
    fixed = 2048 + request.prompt.tokens.nbytes + (0 if rows is None else rows.nbytes)
    guide: int = getattr(request.guide, "nbytes", 0)
    biases = 100 * len(request.params.logit_bias)
    # A token is an int and a float, and a place in a list for each.
    return fixed + guide + biases + sum(80 * len(answer.tokens) for answer in recording.answers)


class ReplayStore:
    """The newest recordings, by request id. Safe from any thread.

    When there are too many, the oldest goes of the share that keeps most: nobody's are pushed out
    by another's flood.

    Args:
        max_kept: how many, of all shares together.
        max_bytes: how large they may be together.
    """

    def __init__(self, max_kept: int, max_bytes: int = MAX_BYTES) -> None:
        self._max_kept, self._max_bytes = max_kept, max_bytes
        self._kept: dict[str, OrderedDict[str, Recording]] = {}  # by share, then by request
        self._bytes: dict[str, int] = {}  # by share
        self._lock = threading.Lock()

    def __len__(self) -> int:
        with self._lock:
            return sum(map(len, self._kept.values()))

    def note(self, job: Job) -> None:
        """Keep a request that ran to its end, if it asked for that."""
        if not job.request.keep or not all(c.reason in ("stop", "length") for c in job.choices):
            return
        if job.choices:
            answers = tuple(Answer(c.tokens, c.logprobs, c.reason) for c in job.choices)
            self.put(Recording(replace(job.request, keep=False), answers))

    def put(self, recording: Recording) -> None:
        """Keep a recording, unless it is larger than all may be together."""
        size, request = size_of(recording), recording.request
        if self._max_kept <= 0 or size > self._max_bytes:
            return
        share = request.share or request.key
        with self._lock:
            self._kept.setdefault(share, OrderedDict())[request.id] = recording
            self._bytes[share] = self._bytes.get(share, 0) + size
            while sum(self._bytes.values()) > self._max_bytes:
                self._drop_oldest(max(self._bytes, key=self._bytes.__getitem__))
            while sum(map(len, self._kept.values())) > self._max_kept:
                self._drop_oldest(max(self._kept, key=lambda share: len(self._kept[share])))

    def _drop_oldest(self, share: str) -> None:
        _, recording = self._kept[share].popitem(last=False)
        self._bytes[share] -= size_of(recording)
        if not self._kept[share]:
            del self._kept[share], self._bytes[share]

    def get(self, request_id: str, key: str) -> Recording:
        """The recording of one key's request; NotKept when there is none."""
        with self._lock:
            found = (kept[request_id] for kept in self._kept.values() if request_id in kept)
            recording = next(found, None)
        if recording is None or recording.request.key != key:
            raise NotKept(request_id)
        return recording
