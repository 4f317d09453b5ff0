"""When each thread did what during a forward pass: measured by the threads themselves.

A thread notes three moments of every region that it walks through (`threads.chunks`): when it came,
when it found no more chunks to do, and when the region was over. Between the second and the third
it waits for the others. What lies between two regions each thread does for itself: with one or two
rows that is the norm in front of a product.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tinyllm.kernels.regions import LAYER_REGIONS
from tinyllm.kernels.team import CAME, CHUNKS, DID, LEFT

if TYPE_CHECKING:
    from tinyllm.compiled import CompiledModel

# By the numbers that `forward.py` gives them.
OF_A_LAYER = (
    "norm",
    "qkv",
    "norm of heads",
    "attention",
    "merge",
    "out",
    "add",
    "norm",
    "router",
    "choice",
    "gathering",
    "gate_up",
    "down",
    "add",
)
OF_THE_END = ("norm", "head")


class Span(NamedTuple):
    """One thread in one region; nanoseconds from the call's beginning."""

    thread: int
    operation: str  # of OF_A_LAYER or OF_THE_END, or "embed"
    layer: int | None
    came: int
    did: int  # from here on it waited
    left: int
    chunks: int


class Timeline:
    """What was noted of one call; complete when the `with` block of `timed` is left."""

    def __init__(self, n_threads: int) -> None:
        self.n_threads = n_threads
        self.nanoseconds = 0
        self.spans: list[Span] = []  # thread by thread, in order

    def of(self, thread: int) -> list[Span]:
        """One thread's regions, in order."""
        return [span for span in self.spans if span.thread == thread]

    def shares(self) -> dict[str, float]:
        """Operation → the share of all threads' time. They sum to 1, with three others:

        "wait" for other threads at a region's end, "own work" between regions, and "outside": in
        Python, or not yet there.
        """
        found = {"wait": 0, "own work": 0, "outside": 0}
        for thread in range(self.n_threads):
            last = None
            for span in self.of(thread):
                found[span.operation] = found.get(span.operation, 0) + span.did - span.came
                found["wait"] += span.left - span.did
                found["outside" if last is None else "own work"] += span.came - (last or 0)
                last = span.left
            found["outside"] += self.nanoseconds - (last or 0)
        return {name: value / sum(found.values()) for name, value in found.items()}


@contextmanager
def timed(model: CompiledModel) -> Iterator[Timeline]:
    """Note the times of the call to `model.forward` that is made inside; of several, the last."""
    team, found = model._team, Timeline(model.threads)
    with model._lock:
        notes = team.note_times(True)
    start = time.monotonic_ns()
    try:
        yield found
    finally:
        found.nanoseconds = time.monotonic_ns() - start
        with model._lock:
            written = notes.copy()
            team.note_times(False)
        for thread, region in np.argwhere(written[:, :, LEFT] > 0).tolist():
            came, did, left, chunks = (
                int(written[thread, region, i]) for i in (CAME, DID, LEFT, CHUNKS)
            )
            operation, layer = _name(region, model.config.n_layers)
            span = Span(thread, operation, layer, came - start, did - start, left - start, chunks)
            if 0 <= span.came <= span.did <= span.left <= found.nanoseconds:  # else another call's
                found.spans.append(span)


def _name(region: int, n_layers: int) -> tuple[str, int | None]:
    """What is computed in a region, and in which layer."""
    if region == 0:
        return "embed", None
    layer, part = divmod(region - 1, LAYER_REGIONS)
    return (OF_A_LAYER[part], layer) if layer < n_layers else (OF_THE_END[part], None)
