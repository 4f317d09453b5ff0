"""Saved traces: they survive JSON, and what is no trace is told apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import CONFIG, bytes_tokenizer, tiny_model
from tinyllm.decode import Session
from tinyllm.errors import TraceError
from tinyllm.inside.trace_file import load_trace, read_trace
from tinyllm.sampler import SamplingParams

MODEL = tiny_model()


def session(n_steps: int = 4, **sampling: Any) -> Session:
    params = SamplingParams(**{"seed": 3, "top_k": 20, "logit_bias": {7: -100.0}, **sampling})
    s = Session(MODEL, bytes_tokenizer(), list(b"Once upon"), params, name="tiny")
    for _ in range(n_steps):
        s.step()
    return s


def test_a_trace_round_trips(tmp_path: Path) -> None:
    record = session().trace(candidates=3, lens=2, attention=(1, [0, 5]))
    again = load_trace(record.save(tmp_path / "trace.json"))
    assert again == record
    assert json.loads(json.dumps(record.to_dict(), allow_nan=False)) == json.loads(record.to_json())


def test_a_step_alone_is_a_trace() -> None:
    s = session()
    step = s.steps[2]
    raw = step.to_dict(candidates=5)
    record = read_trace(json.dumps(raw))
    assert record.to_dict() == raw
    (only,) = record.steps
    assert (only.index, only.token, only.logprob) == (2, step.token, step.logprob)
    assert [(c.token, c.p, c.cut_by) for c in only.candidates[:5]] == [
        (c.token, c.p, c.cut_by) for c in step.candidates(5)
    ]
    assert [(x.name, x.n_kept) for x in only.stages or []] == [
        (x.name, x.n_kept) for x in step.stages
    ]
    assert only.lens is only.attention is only.replay_error is None
    assert record.sampling["seed"] == 3
    assert record.prompt == list(b"Once upon")


def test_the_chosen_token_is_always_among_the_candidates() -> None:
    s = session(0)
    step = s.step(token=s.peek().candidates(257)[-1].token)
    (only,) = read_trace(json.dumps(step.to_dict(candidates=2))).steps
    assert [c.rank for c in only.candidates] == [0, 1, 256]
    assert only.candidates[-1].cut_by == "top_k"


def test_what_is_asked_for_is_there() -> None:
    step = session().steps[-1]
    (only,) = read_trace(json.dumps(step.to_dict(lens=3, attention=(2, None)))).steps
    assert only.lens is not None and len(only.lens) == CONFIG.n_layers + 1
    assert [len(row.top) for row in only.lens] == [3] * len(only.lens)
    assert only.attention is not None
    assert [a.head for a in only.attention] == list(range(CONFIG.n_heads))
    assert all(sum(a.weights) == pytest.approx(1, abs=1e-5) for a in only.attention)
    assert only.replay_error is not None and only.replay_error < 1e-4
    with pytest.raises(ValueError, match="head must be from 0 to 5"):
        step.to_dict(attention=(2, [6]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw.update(format="other"), "no trace"),
        (lambda raw: raw.update(version=2), "version 2; this tinyllm reads 1"),
        (lambda raw: raw.pop("tokens"), "tokens: Field required"),
        (lambda raw: raw["steps"][1]["candidates"][0].update(p="much"), "steps.1.candidates.0.p"),
        (lambda raw: raw["steps"][0].pop("logprob"), "steps.0.logprob"),
    ],
)
def test_what_is_no_trace_says_why(change: Any, message: str, tmp_path: Path) -> None:
    raw = session().trace().to_dict()
    change(raw)
    path = tmp_path / "broken.json"
    path.write_text(json.dumps(raw))
    with pytest.raises(TraceError, match=message) as caught:
        load_trace(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '"trace"', "[" * 100_000])
def test_what_is_not_json_says_so(text: str) -> None:
    with pytest.raises(TraceError, match=r"not JSON|no trace"):
        read_trace(text)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"absent\.json"):
        load_trace(tmp_path / "absent.json")
