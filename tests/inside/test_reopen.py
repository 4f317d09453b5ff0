"""A session from its trace file goes on as the one that was saved, to the bit, from any step."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tiny import CONFIG, EOS, bytes_tokenizer, tiny_model
from tinyllm.decode import Session
from tinyllm.errors import TraceError
from tinyllm.inside.breakage import Breakage
from tinyllm.inside.lab import break_it
from tinyllm.inside.reopen import TraceDiffers, prompt_of, redo
from tinyllm.inside.trace_file import TraceRecord, load_trace, read_trace
from tinyllm.model import Model
from tinyllm.prompt import ImageSpan
from tinyllm.sampler import SamplingParams

MODEL = tiny_model()


def opened(
    trace: TraceRecord,
    at: int | None = None,
    model: Model = MODEL,
    broken: tuple[Breakage, ...] = (),
) -> Session:
    prompt = prompt_of(trace)
    session = Session(
        model, bytes_tokenizer(), prompt.tokens.tolist(), image_positions=prompt.image_positions,
        image_rows=prompt.image_rows, images=prompt.images, broken=broken,
    )  # fmt: skip
    redo(session, trace, at)
    return session


@pytest.fixture
def session() -> Session:
    """Drawn, forced, and drawn otherwise in the middle; about an image."""
    rng = np.random.default_rng(0)
    session = Session(
        MODEL, bytes_tokenizer(), list(b"Once upon a time"),
        SamplingParams(temperature=0.9, top_k=40, logit_bias={7: -100.0, EOS: -100.0}),
        image_positions=np.array([3, 4, 5]),
        image_rows=rng.standard_normal((3, CONFIG.dim)).astype(np.float32),
        images=[ImageSpan(3, 6, b"\x89PNG")], name="tiny",
    )  # fmt: skip
    session.run(3)
    session.step(token=ord("x"))
    session.set(temperature=0.0)
    session.run(2)
    session.set(temperature=1.4, seed=11, presence_penalty=0.5)
    session.run(3)
    return session


def test_every_step_can_be_gone_on_from(session: Session, tmp_path: Path) -> None:
    trace = load_trace(session.trace().save(tmp_path / "trace.json"))
    for at in range(len(session.steps) + 1):
        again = opened(trace, at)
        assert len(again.steps) == at
        for old, new in zip(session.steps, again.steps, strict=False):
            assert old.logits.tobytes() == new.logits.tobytes()
            drawn = dataclasses.replace(old.params, seed=old.draws.seed)  # one that was drawn
            assert new.draws == old.draws._replace(params=drawn)
            assert new.chosen_by == old.chosen_by
            assert (old.token, old.text_delta, old.logprob) == (
                new.token, new.text_delta, new.logprob,
            )  # fmt: skip
    # What comes next is what the saved session says next, and what its steps drew.
    whole, early = opened(trace), opened(trace, 6)
    assert [s.token for s in whole.run(4)] == [s.token for s in session.fork().run(4)]
    assert early.params.seed == 11
    assert [s.token for s in early.run(3)] == [s.token for s in session.steps[6:9]]
    assert whole.images == session.images
    # And back again.
    whole.rewind(5)  # the four new ones, and one of the trace's
    assert whole.params.temperature == session.steps[8].params.temperature
    assert whole.step().token == session.steps[8].token


def test_each_step_keeps_its_own_parameters(session: Session) -> None:
    trace = read_trace(session.trace().to_json())
    told = [(step.sampling or {})["temperature"] for step in trace.steps]
    assert told == [0.9, 0.9, 0.9, 0.9, 0.0, 0.0, 1.4, 1.4, 1.4]
    assert [(step.sampling or {})["seed"] for step in trace.steps[6:]] == [11] * 3
    assert trace.steps[0].sampling == {
        **dataclasses.asdict(session.steps[0].params), "seed": session.steps[0].draws.seed,
        "logit_bias": {"7": -100.0, "256": -100.0},
    }  # fmt: skip


def test_a_trace_from_before_steps_kept_theirs(session: Session) -> None:
    plain = Session(MODEL, bytes_tokenizer(), [65, 66], SamplingParams(seed=5))
    plain.run(4)
    raw = plain.trace().to_dict()
    for step in raw["steps"]:
        del step["sampling"]
    for field in ("backend", "deltas", "images", "image_rows"):
        del raw[field]
    assert [s.token for s in opened(read_trace(json.dumps(raw)), 2).run(2)] == plain.tokens[-2:]


def test_another_model_is_told(session: Session) -> None:
    with pytest.warns(TraceDiffers, match=r"differ by up to .* the trace is of tiny \(f32, "):
        opened(session.trace(), model=tiny_model(seed=1))


def test_broken_parts_are_told() -> None:
    session = Session(MODEL, bytes_tokenizer(), list(b"Once"), broken=[break_it("rope-theta")])
    session.run(2)
    with pytest.warns(TraceDiffers, match="hooks or broken parts were set then"):
        opened(session.trace())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened(session.trace(), broken=(break_it("rope-theta"),))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw["steps"].pop(1), "doesn't have all steps"),
        (lambda raw: raw["tokens"].pop(), "doesn't have all steps"),
        (lambda raw: raw["steps"][2]["sampling"].update(top_p=7), r"steps\.2\.sampling: top_p"),
        (lambda raw: raw["steps"][2]["sampling"].update(heat=7), r"steps\.2\.sampling: .*heat"),
        (lambda raw: raw["steps"][0]["sampling"].update(seed=None), r"sampling\.seed is missing"),
        (lambda raw: raw["image_rows"].update(data="AAAA"), r"image_rows\.data"),
        (lambda raw: raw["image_rows"].update(data="?"), r"image_rows\.data"),
        (lambda raw: (raw["prompt"].__setitem__(0, 999), raw["tokens"].__setitem__(0, 999)),
         "999"),
    ],
)  # fmt: skip
def test_what_cannot_be_gone_on_with_says_why(session: Session, change: Any, message: str) -> None:
    raw = session.trace().to_dict()
    change(raw)
    with pytest.raises((TraceError, ValueError), match=message):
        opened(read_trace(json.dumps(raw)))


@pytest.mark.parametrize("at", [-1, 10, True, 1.5])
def test_a_step_that_isnt_there(session: Session, at: Any) -> None:
    with pytest.raises(ValueError, match="at must be a number of steps from 0 to 9"):
        opened(session.trace(), at)
