"""How likely a prompt is: the same figures whatever the chunks, and beside a warm prefix."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from tests.fake_runner import FakeRunner, fake_logits
from tinyllm.engine.engine import Engine
from tinyllm.engine.types import Done, Event, Prompt, Request, Started
from tinyllm.sampler import SamplingParams, log_normalizer

IDS = np.array([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9], np.int32)


def started(engine: Engine, score_from: int | None) -> Started:
    events: list[Event] = []
    done = threading.Event()

    def note(event: Event) -> None:
        events.append(event)
        if isinstance(event, Done):
            done.set()

    engine.submit(
        Request("r", Prompt(IDS), SamplingParams(temperature=0), 1, score_from=score_from), note
    )
    assert done.wait(10)
    return next(event for event in events if isinstance(event, Started))


def expected(first: int) -> list[float]:
    rows = [fake_logits(IDS[:p].astype(np.int64)) for p in range(first, len(IDS))]
    return [float(row[t]) - log_normalizer(row) for row, t in zip(rows, IDS[first:], strict=True)]


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64])
@pytest.mark.parametrize("first", [1, 6, 14])
def test_prompt_logprobs_from_a_place_on(chunk: int, first: int) -> None:
    engine = Engine(FakeRunner(), prefill_chunk=chunk)
    engine.start()
    try:
        for _ in range(2):  # the second finds the first's prefix
            assert list(started(engine, first).prompt_logprobs) == expected(first)
        assert started(engine, None).prompt_logprobs == ()
    finally:
        engine.stop()


def test_a_scored_prompt_still_reuses_what_comes_before() -> None:
    engine = Engine(FakeRunner())
    engine.start()
    try:
        started(engine, None)
        assert started(engine, 10).cached_tokens == 9
    finally:
        engine.stop()
