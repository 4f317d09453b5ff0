"""/completions: text and token ids without a template, echoed and scored, whole and streamed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinyllm
from tests.api.support import MODEL, PREFIXES, Live, O, S, events_of, live
from tinyllm.api.house.settings import Settings
from tinyllm.api.prompt.served import ServedModel
from tinyllm.engine.engine import Engine
from tinyllm.lm import LM
from tinyllm.runner import Segment
from tinyllm.sampler import log_normalizer, top_logprobs
from tinyllm.tokenizer import Tokenizer

TEXT = "The capital of France is Paris"


@pytest.fixture(scope="module")
def lm(weights_folder: Path) -> LM:
    return tinyllm.load(weights_folder, dtype="q8", backend="compiled", kv_cache_mb=128)


@pytest.fixture(scope="module")
def real(lm: LM) -> Iterator[Live]:
    engine = Engine(lm.runner, kv_cache_mb=128)
    engine.start()
    model = ServedModel(
        id=MODEL, tokenizer=lm.tokenizer, engine=engine, vocab_size=lm.config.vocab_size,
        fingerprint="fp", readable=lambda: lm.model,
        n_layers=lm.config.n_layers, n_heads=lm.config.n_heads,
    )  # fmt: skip
    with live(Settings(port=0, access_log="off"), lambda: [model]) as server:
        yield server


def complete(server: Live, prompt: Any, prefix: str = O, **more: Any) -> dict[str, Any]:
    body = {"model": MODEL, "prompt": prompt, "temperature": 0, **more}
    response = server.post(f"{prefix}/completions", body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_text_and_its_ids_are_one_prompt(real: Live, lm: LM) -> None:
    ids = lm.tokenizer.encode("The capital of France is")
    answers = [complete(real, prompt, max_tokens=5) for prompt in ("The capital of France is", ids)]
    assert answers[0]["choices"] == answers[1]["choices"]
    expected = lm.generate("The capital of France is", max_tokens=5, temperature=0)
    assert answers[0]["choices"][0]["text"] == expected.text
    assert answers[0]["object"] == "text_completion"
    assert answers[0]["usage"]["prompt_tokens"] == len(ids)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_prompt_is_scored_as_the_model_itself_scores_it(
    real: Live, lm: LM, prefix: str, stream: bool
) -> None:
    """What evaluation harnesses ask: echo and logprobs, with nothing or one token generated."""
    ids = lm.tokenizer.encode(TEXT)
    segment = Segment(np.array(ids, np.int32), lm.runner.new_cache(len(ids)), "all")
    [logits] = lm.runner.forward_batch([segment])
    for max_tokens in (0, 1):
        asked = {"echo": True, "logprobs": 2, "max_tokens": max_tokens, "temperature": 0}
        body = {"model": MODEL, "prompt": ids, "stream": stream, **asked}
        response = real.post(f"{prefix}/completions", body)
        choice = (
            events_of(response.text)[0]["choices"][0] if stream else response.json()["choices"][0]
        )
        scored = choice["logprobs"]
        assert choice["text"].startswith(TEXT)
        assert scored["tokens"][: len(ids)] == [lm.tokenizer.token_text(id) for id in ids]
        assert scored["token_logprobs"][0] is scored["top_logprobs"][0] is None
        assert scored["text_offset"][: len(ids)] == [0, 3, 11, 14, 21, 24]
        for i in range(1, len(ids)):
            row = logits[i - 1]
            expected = float(row[ids[i]]) - log_normalizer(row)
            assert scored["token_logprobs"][i] == pytest.approx(expected, abs=1e-6)
            best = top_logprobs(row, 2)
            top = scored["top_logprobs"][i]
            assert scored["tokens"][i] in top and len(top) in (2, 3)
            assert top[lm.tokenizer.token_text(best[0][0])] == pytest.approx(best[0][1], abs=1e-6)


def test_many_prompts_with_many_choices_are_numbered_through(real: Live) -> None:
    prompts = ["One, two, three,", "Once upon a", "Roses are"] * 4  # more than run at once
    whole = complete(real, prompts, max_tokens=3, n=2, echo=True)
    assert [c["index"] for c in whole["choices"]] == list(range(24))
    for i, prompt in enumerate(prompts):
        alone = complete(real, prompt, max_tokens=3, echo=True)["choices"][0]["text"]
        assert {whole["choices"][2 * i + j]["text"] for j in range(2)} == {alone}
    assert whole["usage"]["completion_tokens"] == 3 * 24


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_stream_is_the_whole_answer_in_pieces(real: Live, prefix: str) -> None:
    asked = {"max_tokens": 6, "logprobs": 1, "echo": True, "stop": ["."], "seed": 3}
    whole = complete(real, TEXT, prefix, **asked)
    options = {"stream": True, "stream_options": {"include_usage": True}}
    body = {"model": MODEL, "prompt": TEXT, "temperature": 0, **asked, **options}
    chunks = events_of(real.post(f"{prefix}/completions", body).text)
    pieces = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    assert "".join(piece["text"] for piece in pieces) == whole["choices"][0]["text"]
    tokens = [t for piece in pieces if piece["logprobs"] for t in piece["logprobs"]["tokens"]]
    assert tokens == whole["choices"][0]["logprobs"]["tokens"]
    assert pieces[-1]["finish_reason"] == whole["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["usage"]["total_tokens"] == whole["usage"]["total_tokens"]
    assert all(type(chunk["created"]) is (float if prefix == S else int) for chunk in chunks)


def test_a_trace_tells_how_each_token_was_drawn(real: Live, lm: LM) -> None:
    trace = {"candidates": 3, "lens": 1, "stages": True}
    choice = complete(real, lm.tokenizer.encode(TEXT), max_tokens=3, trace=trace)["choices"][0]
    steps = choice["trace"]["steps"]
    assert "".join(step["text_delta"] for step in steps) == choice["text"]
    assert [step["position"] for step in steps] == [6, 7, 8]
    assert all(len(step["candidates"]) == 3 and step["lens"] for step in steps)


def test_a_kept_completion_is_replayed(real: Live) -> None:
    id = complete(real, TEXT, max_tokens=4, temperature=1, seed=5)["id"]
    assert real.http.get(f"{O}/completions/{id}/replay").json()["identical"] is True


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": {"text": "a"}}, "prompt"),
        ({"prompt": [10**9]}, "prompt[0]"),
        ({"prompt": [-1]}, "prompt[0]"),
        ({"prompt": [[1], ["a"]]}, "prompt[1][0]"),
        ({"prompt": ["a", 1]}, "prompt[1]"),
        ({"prompt": ["a", ""]}, "prompt[1]"),
        ({"prompt": ["a"] * 200}, "prompt"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "best_of": 2}, "best_of"),
        ({"prompt": "a", "logprobs": 21}, "logprobs"),
        ({"prompt": "a", "n": 99}, "n"),
    ],
)
@pytest.mark.parametrize("prefix", PREFIXES)
def test_what_is_wrong_is_named(
    scripted: Live, prefix: str, body: dict[str, Any], param: str
) -> None:
    response = scripted.post(f"{prefix}/completions", {"model": MODEL, **body})
    assert response.status_code == (422 if prefix == S else 400)
    assert response.json()["error"]["param"] == param


def test_a_prompt_beyond_the_context_is_refused_in_the_words_that_clients_know(
    scripted: Live, tokenizer: Tokenizer
) -> None:
    ids = tokenizer.encode("a") * 3000
    response = scripted.post(f"{O}/completions", {"model": MODEL, "prompt": [[1], ids]})
    error = response.json()["error"]
    assert response.status_code == 400 and error["code"] == "context_length_exceeded"
    assert error["message"].startswith("This model's maximum context length is 2048 tokens")
    assert error["param"] == "prompt[1]"


def test_control_tokens_in_a_text_are_what_they_say(scripted: Live, tokenizer: Tokenizer) -> None:
    text = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    answer = complete(scripted, text, max_tokens=30)
    assert answer["usage"]["prompt_tokens"] == len(tokenizer.encode(text, allow_special=True))
    assert answer["choices"][0]["text"] == "The capital of France is Paris."
    assert answer["choices"][0]["finish_reason"] == "stop"
