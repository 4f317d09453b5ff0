"""Replay: kept, bounded, one's own, and honest about differences."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from tests.fake_runner import FakeRunner
from tinyllm.engine.engine import Engine
from tinyllm.engine.outcome import Answer, Outcome
from tinyllm.engine.replay import Difference, NotKept, Recording, ReplayStore, compare
from tinyllm.engine.types import Prompt, Request
from tinyllm.sampler import SamplingParams


def request(name: str, keep: bool = True, key: str = "", seed: int | None = None) -> Request:
    prompt = Prompt(np.array([1, 2, 3, 4, 5], np.int32))
    return Request(name, prompt, SamplingParams(seed=seed), 8, n=2, key=key, keep=keep)


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine(FakeRunner(), keep_replays=2)
    engine.start()
    yield engine
    engine.stop()


def test_every_bit_agrees_and_an_unseeded_request_has_its_seed(engine: Engine) -> None:
    engine.run(request("a"), 10)
    result = engine.replay("a", "", 10)
    assert result.identical and result.tokens_compared == 16 and result.differences == ()
    assert engine.stats().kept_for_replay == 1  # a replay isn't kept itself


def test_a_changed_model_is_found_out(engine: Engine) -> None:
    engine.run(request("a", seed=3), 10)
    forward = engine.runner.forward_batch
    engine.runner.forward_batch = lambda s: [r * np.float32(1.0000002) for r in forward(s)]  # type: ignore[method-assign]
    result = engine.replay("a", "", 10)
    assert not result.identical and result.differences[0].position == 0


def test_only_ones_own_and_only_what_is_kept(engine: Engine) -> None:
    engine.run(request("a", key="me"), 10)
    engine.run(request("b", keep=False), 10)
    for name, key in (("a", "you"), ("b", ""), ("c", "")):
        with pytest.raises(NotKept, match=name):
            engine.replay(name, key, 10)
    assert engine.replay("a", "me", 10).identical


def test_the_oldest_goes_first(engine: Engine) -> None:
    for name in "abc":
        engine.run(request(name), 10)
    with pytest.raises(NotKept):
        engine.replay("a", "", 10)
    assert engine.replay("b", "", 10).identical


def test_nothing_is_kept_when_it_is_off() -> None:
    engine = Engine(FakeRunner(), keep_replays=0)
    engine.start()
    engine.run(request("a"), 10)
    with pytest.raises(NotKept):
        engine.replay("a", "", 10)
    engine.stop()


def test_differences_are_named() -> None:
    old = (Answer([1, 2], [-0.5, -0.25], "length"), Answer([1], [-1.0], "stop"))
    recording = Recording(request("a", seed=7), old)
    same = compare(recording, Outcome(list(old)))
    assert same.identical and same.seed == 7
    new = [Answer([1, 2], [-0.5, np.nextafter(-0.25, 0)], "length"), Answer([], [], "stop")]
    result = compare(recording, Outcome(new))
    assert result.differences == (
        Difference(0, 1, (2, -0.25), (2, float(np.nextafter(-0.25, 0)))),
        Difference(1, 0, (1, -1.0), None),
    )
    other_reason = [Answer([1, 2], [-0.5, -0.25], "stop"), old[1]]
    assert not compare(recording, Outcome(other_reason)).identical


def test_the_store_is_bounded() -> None:
    store = ReplayStore(3)
    for i in range(10):
        store.put(Recording(request(str(i)), ()))
    assert len(store) == 3
