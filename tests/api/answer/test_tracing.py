"""`trace` in a request: the debugger's numbers on each choice, over a real socket."""

from __future__ import annotations

import base64
import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

import tinyllm
from tests.api.support import (
    MODEL,
    PREFIXES,
    Live,
    O,
    S,
    ScriptRunner,
    live,
    scripted_model,
)
from tests.llama_folders import small_model
from tests.smolvlm_folder import write_smolvlm
from tinyllm.api.answer import looking_along, tracing
from tinyllm.api.contract import sampling
from tinyllm.api.house.clocks import Clocks
from tinyllm.api.house.settings import Settings
from tinyllm.api.prompt.served import ServedModel
from tinyllm.api.prompt.vision import LazyVision
from tinyllm.engine import drawing
from tinyllm.engine.engine import Engine
from tinyllm.lm import LM
from tinyllm.model import PREFILL_CHUNK, Model
from tinyllm.sampler import uniform
from tinyllm.tokenizer import Tokenizer

ASK = [{"role": "user", "content": "What is the capital of France?"}]
SAMPLING = {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "seed": 3}
EVERYTHING = {
    "candidates": 5,
    "stages": True,
    "attention": {"layer": 3, "heads": [0, 2]},
    "lens": 3,
}


@pytest.fixture(scope="module")
def lm(weights_folder: Path) -> LM:
    return tinyllm.load(weights_folder)


def served(lm: LM, **more: Any) -> ServedModel:
    """A model without a prefix cache: bits of a float32 forward hang on how a prompt is cut."""
    engine = Engine(lm.runner, kv_cache_mb=64, prefix_cache=False, **more)
    engine.start()
    return ServedModel(
        lm.name, lm.tokenizer, engine, lm.config.vocab_size, "fp", n_layers=lm.config.n_layers,
        n_heads=lm.config.n_heads, card={"aliases": [MODEL]}, readable=lambda: lm.model,
    )  # fmt: skip


@pytest.fixture(scope="module")
def real(lm: LM) -> Iterator[Live]:
    with live(Settings(port=0, access_log="off"), lambda: [served(lm)]) as server:
        yield server


def steps_of(choices: list[dict[str, Any]], index: int = 0) -> list[dict[str, Any]]:
    """A choice's steps, put together from the pieces of a stream or from a whole answer."""
    mine = [c for c in choices if c["index"] == index and "trace" in c]
    assert all(c["trace"]["version"] == 1 for c in mine)
    return [step for c in mine for step in c["trace"]["steps"]]


def ask(server: Live, prefix: str, stream: bool, **body: Any) -> list[dict[str, Any]]:
    """The choices of an answer, or of all chunks of a stream."""
    body = {"messages": ASK, "max_tokens": 8, **body}
    server.http.timeout = httpx.Timeout(300)  # the readable model, where others want the cores too
    if stream:
        return [c for chunk in server.stream(prefix, body) for c in chunk["choices"]]
    response = server.chat(prefix, body)
    assert response.status_code == 200, response.text
    choices: list[dict[str, Any]] = response.json()["choices"]
    return choices


# -- the numbers are the debugger's --------------------------------------------------------------


def without(step: dict[str, Any], *names: str) -> dict[str, Any]:
    """A step without what is the engine's own: the request has said how to sample."""
    return {k: v for k, v in step.items() if k not in ("logprob", "sampling", *names)}


@pytest.mark.parametrize(
    ("prefix", "stream"),
    [pytest.param(S, True, marks=pytest.mark.long), (O, False), (O, True)],
)
def test_the_trace_is_that_of_decode_steps(real: Live, lm: LM, prefix: str, stream: bool) -> None:
    """In float32 on the readable path: every bit, the lens and the attention included. Only the
    logprob is the engine's own, as in `logprobs`: its compiled sum rounds another way."""
    steps = steps_of(ask(real, prefix, stream, **SAMPLING, max_tokens=5, trace=EVERYTHING))
    parts = {**EVERYTHING, "attention": (3, [0, 2])}
    done = [
        step.to_dict(**parts)["steps"][0] for step in lm.decode_steps(ASK, max_tokens=5, **SAMPLING)
    ]
    wanted = json.loads(json.dumps(done))
    assert [without(s) for s in steps] == [without(s) for s in wanted]
    assert [s["logprob"] for s in steps] == pytest.approx([s["logprob"] for s in wanted], abs=1e-6)
    assert len(steps[0]["lens"]) == lm.config.n_layers + 1
    assert [a["head"] for a in steps[0]["attention"]] == [0, 2]


@pytest.mark.long
def test_in_the_checkpoints_own_bits_too(weights_folder: Path) -> None:
    """How a token was drawn: every bit. Inside: the same float32 model, over a cache that the API
    fills in float32 and a session by the kernels; the likeliest token's probability agrees."""
    lm = tinyllm.load(weights_folder, dtype="q4", kv_cache_mb=128)
    with live(Settings(port=0, access_log="off"), lambda: [served(lm)]) as server:
        trace = {"candidates": 5, "stages": True, "lens": 1}
        steps = steps_of(ask(server, O, False, **SAMPLING, max_tokens=5, trace=trace))
    inside = ("lens", "attention", "replay_error", "guess")  # a session guesses nothing
    for ours, step in zip(steps, lm.decode_steps(ASK, max_tokens=5, **SAMPLING), strict=True):
        theirs = json.loads(json.dumps(step.to_dict(**trace)["steps"][0]))
        assert without(ours, *inside) == without(theirs, *inside)
        (_, ours_p), (_, theirs_p) = ours["lens"][-1]["top"][0], theirs["lens"][-1]["top"][0]
        assert ours_p == pytest.approx(theirs_p, abs=0.005)
        assert 0 < ours["replay_error"] < 0.1  # what the kernels' rounding costs in logits


def test_image_prompts_too(tmp_path: Path, weights_folder: Path) -> None:
    """The image's rows are in the cache that the looks run over."""
    write_smolvlm(tmp_path / "smolvlm", weights_folder)
    lm = LM(tmp_path / "smolvlm")
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "PNG")
    url = "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()
    image, text = {"type": "image"}, {"type": "text", "text": "What is this?"}
    model = served(lm, prefill_chunk=PREFILL_CHUNK)  # as a session cuts a prompt
    assert lm.vision is not None
    model.vision = LazyVision(lm.name, lambda: lm.vision)  # type: ignore[arg-type, return-value]
    asked = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}, text]}]
    with live(Settings(port=0, access_log="off"), lambda: [model]) as server:
        trace = {"lens": 2, "attention": {"layer": 1}}
        steps = steps_of(ask(server, O, False, **SAMPLING, messages=asked, trace=trace))
    session = lm.session([{"role": "user", "content": [image, text]}], images=[pixels], **SAMPLING)
    for ours in steps:
        parts = {"candidates": 0, "stages": False, "lens": 2, "attention": (1, None)}
        theirs = json.loads(json.dumps(session.step().to_dict(**parts)["steps"][0]))
        assert without(ours) == without(theirs)
        assert len(ours["attention"][0]["weights"]) > 64 / 8 / 2  # the image's rows are there


@pytest.mark.parametrize("stream", [False, True])
def test_every_choice_has_its_own(real: Live, lm: LM, stream: bool) -> None:
    choices = ask(real, O, stream, **SAMPLING, n=3, max_tokens=3, trace={"attention": {"layer": 1}})
    for index in range(3):
        steps = steps_of(choices, index)
        assert [s["index"] for s in steps] == list(range(len(steps)))
        assert [s["uniform"] for s in steps] == [uniform(3, index, t) for t in range(len(steps))]
        for step in steps:
            assert [a["head"] for a in step["attention"]] == list(range(lm.config.n_heads))
            for head in step["attention"]:
                assert len(head["weights"]) == step["position"]
                assert sum(head["weights"]) == pytest.approx(1, abs=1e-5)
            assert step["replay_error"] < 1e-4
            assert step["stages"] is step["lens"] is None
            assert [c["token"] for c in step["candidates"]] == [step["token"]]
    first = [s["token"] for s in steps_of(choices, 0)]
    assert first == [s.token for s in lm.decode_steps(ASK, max_tokens=3, **SAMPLING)]


def test_only_so_many_steps_are_looked_into(real: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (sampling, tracing, looking_along):
        monkeypatch.setattr(module, "MAX_INSIDE", 5)
    monkeypatch.setattr("tinyllm.api.answer.generation.MAX_INSIDE", 5)
    choices = ask(real, O, False, temperature=0, n=2, max_tokens=4, trace={"lens": 1})
    for index in range(2):
        steps = steps_of(choices, index)
        assert [s["lens"] is not None for s in steps] == [True] * 2 + [False] * (len(steps) - 2)


# -- which tokens it tells of --------------------------------------------------------------------


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("stream", [False, True])
def test_every_token_is_a_step(scripted: Live, prefix: str, stream: bool) -> None:
    """Those that no text shows too: the end of the turn, and what a stop string cut."""
    runner = scripted.runner
    assert runner is not None
    ids = [*runner.tokenizer.encode("The capital of France is Paris."), runner.eos]
    steps = steps_of(ask(scripted, prefix, stream, trace={"candidates": 2}))
    assert [s["token"] for s in steps] == ids
    assert "".join(s["text_delta"] for s in steps[:-1]) == "The capital of France is Paris."
    choices = ask(scripted, prefix, stream, stop=" is Par", trace={})
    cut = ids[:6]  # the last of them holds the end of the stop string
    assert [s["token"] for s in steps_of(choices)] == cut


@pytest.mark.parametrize("stop", [None, "Paris"])
def test_a_trace_changes_no_other_byte_of_a_stream(scripted: Live, stop: str | None) -> None:
    """On S the last piece of text still carries the finish reason, on O nothing moves either."""
    for prefix in PREFIXES:
        body: dict[str, Any] = {"stop": stop, "logprobs": True}
        scripted.stream(prefix, body)  # the prompt is cached from here on
        plain = scripted.stream(prefix, body)
        traced = scripted.stream(prefix, {**body, "trace": {"stages": True}})
        told = [
            {**c, "choices": [{k: v for k, v in o.items() if k != "trace"} for o in c["choices"]]}
            for c in traced
        ]
        if prefix == O:  # the token that ends the turn is a piece of its own there
            told = [c for c in told if c["choices"] != [EMPTY]]
            plain = [c for c in plain if c["choices"] != [EMPTY]]
        for chunk in (*plain, *told):
            del chunk["id"], chunk["created"]
        assert told == plain


NOTHING = {"content": [], "refusal": None}  # asked for log-probabilities, with nothing to show
EMPTY = {"index": 0, "delta": {}, "finish_reason": None, "logprobs": NOTHING}


def test_hidden_thoughts_stay_hidden(scripted: Live) -> None:
    assert scripted.runner is not None
    scripted.runner.say("A secret. Then the answer.")
    body = {"reasoning": {"max_tokens": 3}, "max_tokens": 20, "seed": 1,
            "trace": {"candidates": 1}}  # fmt: skip
    shown = steps_of(ask(scripted, O, False, **body))
    body["reasoning"] = {"max_tokens": 3, "exclude": True}
    hidden = steps_of(ask(scripted, O, False, **body))
    assert [s["index"] for s in shown][:3] == [0, 1, 2]
    assert [without(s, "guess") for s in hidden] == [without(s, "guess") for s in shown[3:]]
    assert all(s["guess"] is None for s in hidden)  # it may quote the thought


def test_a_grammar_shows_as_a_mask_and_by_force(scripted: Live) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"],
              "additionalProperties": False}  # fmt: skip
    format = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    body = {"response_format": format, "max_tokens": 30, "trace": {"stages": True}}
    steps = steps_of(ask(scripted, O, False, **body))
    assert {s["chosen_by"] for s in steps} <= {"forced", "argmax"}
    drawn = [s for s in steps if s["chosen_by"] == "argmax"]
    raw, mask = drawn[0]["stages"][:2]
    assert (raw["name"], mask["name"]) == ("raw", "mask")
    assert 0 < mask["n_kept"] < raw["n_kept"]
    # Whether a guess pays hangs on how long passes take: on a busy machine not each answer has one.
    guessed = [s for s in steps if s["guess"]]
    for _ in range(20):
        guessed = guessed or [s for s in steps_of(ask(scripted, O, False, **body)) if s["guess"]]
    assert guessed and all(s["guess"]["kept"] for s in guessed if s["guess"]["source"] == "guide")
    assert all(s["guess"]["text"] == s["text"] for s in guessed if s["guess"]["kept"])


def test_tool_calls_are_traced(scripted: Live) -> None:
    tool = {"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}
    body = {"tools": [tool], "tool_choice": "required", "max_tokens": 40, "trace": {}}
    for stream in (False, True):
        choices = ask(scripted, S, stream, **body)
        text = "".join(s["text_delta"] for s in steps_of(choices))
        assert '"now"' in text


def test_the_openai_client_carries_it(scripted: Live) -> None:
    with openai.OpenAI(base_url=scripted.url + O, api_key="x") as client:
        answer = client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "Hi"}], temperature=0,
            extra_body={"trace": {"candidates": 3}},
        )  # fmt: skip
        extra = answer.choices[0].model_extra
        assert extra is not None
        assert [len(s["candidates"]) for s in extra["trace"]["steps"]] == [3] * 8


# -- off, refused, and given up -----------------------------------------------------------------


def test_it_costs_nothing_when_it_is_off(scripted: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any) -> None:
        raise AssertionError("nobody asked")

    monkeypatch.setattr(drawing, "look", never)
    monkeypatch.setattr("tinyllm.api.answer.generation.StepWriter", never)
    for body in ({}, {"trace": None}):
        for stream in (False, True):
            assert not any("trace" in c for c in ask(scripted, O, stream, **body))
    assert not scripted.service.trace_worker._thread._threads  # not even started


@pytest.mark.parametrize(
    ("trace", "param"),
    [
        (5, "trace"),
        ({"candidates": -1}, "trace.candidates"),
        ({"candidates": 21}, "trace.candidates"),
        ({"candidates": "3"}, "trace.candidates"),
        ({"stages": 1}, "trace.stages"),
        ({"lens": 21}, "trace.lens"),
        ({"lens": True}, "trace.lens"),
        ({"attention": 3}, "trace.attention"),
        ({"attention": {}}, "trace.attention.layer"),
        ({"attention": {"layer": 30}}, "trace.attention.layer"),
        ({"attention": {"layer": -1}}, "trace.attention.layer"),
        ({"attention": {"layer": 0, "heads": []}}, "trace.attention.heads"),
        ({"attention": {"layer": 0, "heads": [0, 9]}}, "trace.attention.heads[1]"),
        ({"attention": {"layer": 0, "heads": [0] * 65}}, "trace.attention.heads"),
    ],
)
def test_a_fault_in_it_is_named(real: Live, trace: Any, param: str) -> None:
    for prefix, status in ((S, 422), (O, 400)):
        response = real.chat(prefix, {"trace": trace})
        assert response.status_code == status, response.text
        assert response.json()["error"]["param"] == param


def test_unknown_parts_are_ignored_by_name(scripted: Live) -> None:
    response = scripted.chat(O, {"trace": {"stages": True, "colour": 1}})
    assert response.headers["x-ignored-params"] == "trace.colour"


def test_a_prompt_that_is_too_long_to_look_into(real: Live) -> None:
    body = {"messages": [{"role": "user", "content": "a b c " * 200}], "n": 8}
    error = real.chat(O, {**body, "trace": {"lens": 1}}).json()["error"]
    assert error["param"] == "trace.lens"
    assert "at most 4096" in error["message"]


def test_a_server_that_does_not_look_inside_says_so(scripted: Live) -> None:
    """As with --trace-inside 0."""
    error = scripted.chat(O, {"trace": {"attention": {"layer": 0}}}).json()["error"]
    assert (error["param"], error["code"]) == ("trace.attention", None)
    assert "doesn't look inside" in error["message"]


class Gated(Model):
    """A small readable model that waits for leave before each forward."""

    gate = threading.Event()
    n_waiting = 0

    def forward(self, *args: Any, **more: Any) -> Any:
        type(self).n_waiting += 1
        assert self.gate.wait(30)
        type(self).n_waiting -= 1
        return super().forward(*args, **more)


@pytest.fixture
def gated(tokenizer: Tokenizer) -> Iterator[Live]:
    """One place to look inside, and a model that takes for ever until the gate opens."""
    small = small_model(vocab_size=tokenizer.vocab_size, max_position_embeddings=2048)
    model = Gated(small.config, small.weights)
    Gated.gate.clear()
    Gated.n_waiting = 0
    runner = ScriptRunner(tokenizer)

    def load() -> list[ServedModel]:
        config = model.config
        return [scripted_model(tokenizer, runner, n_layers=config.n_layers, n_heads=config.n_heads,
                               readable=lambda: model)]  # fmt: skip

    settings = Settings(port=0, access_log="off", trace_inside=1, request_timeout=3,
                        drain_timeout=0.2)  # fmt: skip
    with live(settings, load, runner=runner, clocks=Clocks(silence=0.05)) as server:
        yield server
        Gated.gate.set()


def until(holds: Any, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def raw_request(server: Live, body: dict[str, Any]) -> socket.socket:
    """A completion request on a bare socket, its answer unread."""
    data = json.dumps({"model": MODEL, "messages": ASK, "temperature": 0, **body}).encode()
    host, port = server.url.removeprefix("http://").split(":")
    sock = socket.create_connection((host, int(port)))
    head = (
        f"POST {O}/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(data)}\r\n\r\n"
    )
    sock.sendall(head.encode() + data)
    return sock


@pytest.mark.parametrize("stream", [False, True])
def test_others_go_on_and_a_client_that_goes_away_frees_its_place(
    gated: Live, stream: bool
) -> None:
    sock = raw_request(gated, {"trace": {"lens": 1}, "stream": stream})
    until(lambda: Gated.n_waiting)
    # The one that is looked into waits; others don't, and are traced as far as that is free.
    steps = steps_of(ask(gated, O, False, temperature=0, trace={"candidates": 1}))
    assert len(steps) == 8
    # A second one finds no place.
    refused = gated.chat(O, {"trace": {"lens": 1}})
    assert refused.status_code == 429
    assert refused.headers["retry-after"] == "5"
    if stream:  # it isn't silent while it waits
        sock.settimeout(10)
        seen = b""
        while b": ping" not in seen:
            seen += sock.recv(4096)
    sock.close()
    until(lambda: gated.service.trace_worker.free == 1)
    Gated.gate.set()
    steps = steps_of(ask(gated, O, stream, temperature=0, trace={"lens": 1}))
    assert [len(s["lens"][0]["top"]) for s in steps] == [1] * 8
    assert gated.service.trace_worker.free == 1


def test_a_look_past_the_deadline_ends_with_an_error(gated: Live) -> None:
    response = gated.chat(O, {"trace": {"lens": 1}})
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "request_timeout"
    assert gated.service.trace_worker.free == 1


def test_a_server_that_stops_says_so(gated: Live) -> None:
    """It doesn't wait for looks longer than for other work."""
    sock = raw_request(gated, {"trace": {"lens": 1}, "stream": True})
    until(lambda: Gated.n_waiting)
    gated.server.drain()
    sock.settimeout(20)
    seen = b""
    while data := sock.recv(65536):
        seen += data
    sock.close()
    assert b'"code":"draining"' in seen
    assert seen.rstrip().endswith((b"data: [DONE]", b"0"))
    gated.thread.join(10)
    assert not gated.thread.is_alive()


def test_a_fault_in_looking_is_the_servers_own(
    gated: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **more: Any) -> None:
        raise FloatingPointError("secret")

    Gated.gate.set()
    monkeypatch.setattr(looking_along, "replay_token", broken)
    response = gated.chat(O, {"trace": {"lens": 1}})
    assert response.status_code == 500
    assert "secret" not in response.text
    assert gated.service.trace_worker.free == 1


def test_a_long_prompt_is_looked_into_behind_its_chunks(
    gated: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut into chunks the prompt gives the same attention as in one piece."""
    Gated.gate.set()
    body = {"messages": [{"role": "user", "content": "a b c " * 40}], "temperature": 0,
            "trace": {"attention": {"layer": 1}}, "max_tokens": 2}  # fmt: skip
    whole = steps_of(ask(gated, O, False, **body))
    monkeypatch.setattr(looking_along, "PREFILL_CHUNK", 7)
    cut = steps_of(ask(gated, O, False, **body))
    for a, b in zip(whole, cut, strict=True):
        for head_a, head_b in zip(a["attention"], b["attention"], strict=True):
            np.testing.assert_allclose(head_a["weights"], head_b["weights"], atol=1e-6)
