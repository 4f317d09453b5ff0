"""A full queue has a place for whoever waits with less than somebody else."""

from __future__ import annotations

import numpy as np
import pytest

from tests.fake_runner import FakeRunner
from tinyllm.engine.engine import Engine
from tinyllm.engine.outcome import Collector
from tinyllm.engine.types import Prompt, QueueFull, Request
from tinyllm.sampler import SamplingParams


def request(share: str, number: int, max_tokens: int = 8, key: str = "") -> Request:
    return Request(
        id=f"{share}{number}",
        prompt=Prompt(np.array([1, 2, 3 + number], np.int32)),
        params=SamplingParams(seed=number),
        max_tokens=max_tokens,
        key=key,
        share=share,
    )


def run(engine: Engine) -> None:
    while engine.step():
        pass


def test_a_flood_crowds_out_itself() -> None:
    engine = Engine(FakeRunner(), max_batch=1, max_queue=4)
    answers: dict[str, Collector] = {}

    def ask(share: str, number: int) -> None:
        answers[f"{share}{number}"] = Collector()
        engine.submit(request(share, number), answers[f"{share}{number}"])

    for number in range(5):  # one will run, four wait
        ask("flood", number)
    with pytest.raises(QueueFull):
        ask("flood", 5)
    ask("polite", 0)
    assert engine.stats().queue_length == 5
    run(engine)
    reasons = {id: answer.outcome.answers[0].reason for id, answer in answers.items()}
    assert reasons["polite0"] == "length"
    assert reasons["flood4"] == "crowded out"
    assert [reasons[f"flood{i}"] for i in range(4)] == ["length"] * 4
    assert engine.stats().queue_length == 0


def test_a_guest_needn_t_wait_until_somebody_ends() -> None:
    engine = Engine(FakeRunner(), max_batch=4, max_queue=8)
    for number in range(6):
        engine.submit(request("flood", number, max_tokens=50), Collector())
    engine.step()
    assert engine.stats().running == 4
    guest = Collector()
    engine.submit(request("guest", 0, max_tokens=2), guest)
    for _ in range(4):
        engine.step()
    assert guest.outcome.answers[0].reason == "length"
    assert engine.stats().running == 4  # the flood may not have a guest's place
    run(engine)


def test_prefixes_and_replays_of_others_stay() -> None:
    engine = Engine(FakeRunner(n_pages=64, page_size=4), keep_replays=4)
    for key, n in (("quiet", 1), ("loud", 40)):
        for number in range(n):
            kept = Request(
                id=f"{key}{number}",
                prompt=Prompt(np.array([1, 2, 3, 4, 5 + number, 6, 7, 8, 9], np.int32)),
                params=SamplingParams(seed=number), max_tokens=4, key=key, share=key, keep=True,
            )  # fmt: skip
            engine.submit(kept, Collector())
            run(engine)
    again = Collector()
    asked = Request(
        id="again", prompt=Prompt(np.array([1, 2, 3, 4, 5, 6, 7, 8, 9], np.int32)),
        params=SamplingParams(seed=0), max_tokens=1, key="quiet", share="quiet",
    )  # fmt: skip
    engine.submit(asked, again)
    run(engine)
    assert again.outcome.cached_tokens > 0
    assert engine.stats().kept_for_replay == 4
    assert engine._replays.get("quiet0", "quiet").request.id == "quiet0"
