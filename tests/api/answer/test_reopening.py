"""A server's answer, gone on from in Python: the same tokens, drawn by the same bits."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinyllm
from tests.api.support import MODEL, Live, O, S, live
from tinyllm.api.house.settings import Settings
from tinyllm.api.prompt.served import ServedModel
from tinyllm.engine.engine import Engine
from tinyllm.errors import TraceError
from tinyllm.inside.trace_file import read_trace
from tinyllm.lm import LM

ASK = [{"role": "user", "content": "What is the capital of France? 🙂 東京"}]


@pytest.fixture(scope="module")
def lm(weights_folder: Path) -> LM:
    return tinyllm.load(weights_folder)


@pytest.fixture(scope="module")
def server(lm: LM) -> Iterator[Live]:
    engine = Engine(lm.runner, kv_cache_mb=64, prefix_cache=False)
    engine.start()
    model = ServedModel(
        lm.name, lm.tokenizer, engine, lm.config.vocab_size, lm.runner.fingerprint,
        card={"aliases": [MODEL]}, n_layers=lm.config.n_layers, n_heads=lm.config.n_heads,
    )  # fmt: skip
    with live(Settings(port=0, access_log="off"), lambda: [model]) as server:
        yield server


def traces(server: Live, prefix: str, stream: bool, **body: Any) -> list[dict[str, Any]]:
    """The trace of each choice, put together from a stream or as it comes."""
    body = {"messages": ASK, "max_tokens": 6, **body}
    if not stream:
        return [choice["trace"] for choice in server.chat(prefix, body).json()["choices"]]
    found: dict[int, dict[str, Any]] = {}
    for chunk in server.stream(prefix, body):
        for choice in chunk["choices"]:
            steps = found.setdefault(choice["index"], {"version": 1, "steps": []})["steps"]
            steps += choice.get("trace", {"steps": []})["steps"]
    return [trace for _, trace in sorted(found.items())]


@pytest.mark.parametrize(
    ("prefix", "stream"), [(O, False), pytest.param(S, True, marks=pytest.mark.long)]
)
def test_an_answer_is_gone_on_from(server: Live, lm: LM, prefix: str, stream: bool) -> None:
    """Both choices draw from one seed, which nobody gave; so do the sessions of them."""
    asked = {"temperature": 0.9, "top_k": 50, "logit_bias": {"284": -100}, "n": 2}
    answers = traces(server, prefix, stream, trace={"whole": True}, **asked)
    for index, trace in enumerate(answers):
        steps = trace["steps"]
        assert [step["start"] is None for step in steps] == [False, *[True] * 5]
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="(?!log-prob)")  # numbers: to rounding, below
            warnings.filterwarnings("ignore", message="log-prob")
            session = lm.reopen(json.loads(json.dumps(trace)), at=2)
            whole = lm.reopen(trace)
        assert session.draws.stream == index
        assert session.prompt == lm.encode_prompt(ASK)
        assert [step.token for step in session.run(4)] == [step["token"] for step in steps[2:]]
        gaps = [abs(a.logprob - b["logprob"]) for a, b in zip(whole.steps, steps, strict=True)]
        assert max(gaps) < 1e-4
        # And it is a trace like any other: saved, read, looked at.
        again = read_trace(whole.trace().to_json())
        assert again.stream == index
        assert again.texts[: len(again.prompt)] == steps[0]["start"]["texts"]


def test_the_whole_is_there_only_if_it_is_asked_for(server: Live, lm: LM) -> None:
    [trace] = traces(server, O, False, trace={"candidates": 1})
    assert [step["start"] for step in trace["steps"]] == [None] * 6
    with pytest.raises(TraceError, match=r'without what it stands behind; .*\{"whole": true\}'):
        lm.reopen(trace)


@pytest.mark.parametrize(
    ("trace", "message"),
    [
        (3, "trace must be a file's path, .*, not int$"),
        (None, "not NoneType$"),
        ([], "not list$"),
        (np.zeros(3), "not ndarray$"),
    ],
)
def test_what_is_no_trace_says_what_is_one(lm: LM, trace: Any, message: str) -> None:
    for reopen in (lm.reopen, tinyllm.reopen):
        with pytest.raises(TypeError, match=message):
            reopen(trace)


@pytest.mark.parametrize(
    ("trace", "message"),
    [
        ({}, 'its "format" should be'),
        ({"version": 1, "steps": []}, "without what it stands behind"),
        ({"version": 1, "steps": [3]}, "without what it stands behind"),
        ({"version": 1, "steps": [{"start": {"prompt": "x"}}]}, "model: Field required"),
        ({"version": 2, "steps": [{"start": {}}]}, "a trace of version 2"),
    ],
)
def test_a_trace_that_lacks_something_says_what(lm: LM, trace: Any, message: str) -> None:
    with pytest.raises(TraceError, match=message):
        lm.reopen(trace)


def test_a_session_is_no_trace_and_says_so(lm: LM) -> None:
    with pytest.raises(TypeError, match=r"give session\.trace\(\) itself"):
        lm.reopen(lm.session("Hi"))  # type: ignore[arg-type]
