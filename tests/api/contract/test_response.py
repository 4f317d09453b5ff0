"""Sections 2 and 3 of the contract, the answer and the stream: a test a row, on both dialects."""

from __future__ import annotations

import json
import math
import time
from typing import Any

import pytest

from tests.api.support import MODEL, PREFIXES, Live, O, S, events_of
from tinyllm.tokenizer import Tokenizer

pytestmark = pytest.mark.parametrize("prefix", PREFIXES, ids=["S", "O"])
PARIS = "The capital of France is Paris."


# -- section 2 -------------------------------------------------------------------------------


def test_id_has_the_dialects_prefix(scripted: Live, prefix: str) -> None:
    first, second = (scripted.chat(prefix, {}).json()["id"] for _ in range(2))
    assert first.startswith("nugen-" if prefix == S else "chatcmpl-")
    assert first != second


def test_object_is_chat_completion(scripted: Live, prefix: str) -> None:
    assert scripted.chat(prefix, {}).json()["object"] == "chat.completion"


def test_created_is_a_float_of_whole_seconds_on_s_and_an_int_on_o(
    scripted: Live, prefix: str
) -> None:
    text = scripted.chat(prefix, {}).text
    created = json.loads(text)["created"]
    assert abs(created - time.time()) < 60
    assert type(created) is (float if prefix == S else int)
    assert created == int(created)
    chunk = scripted.stream(prefix, {})[0]
    assert type(chunk["created"]) is type(created)


def test_message_is_the_assistants(scripted: Live, prefix: str) -> None:
    (choice,) = scripted.chat(prefix, {}).json()["choices"]
    assert choice["message"] == {"role": "assistant", "content": PARIS}
    assert choice["index"] == 0
    assert choice["logprobs"] is None


def test_usage_adds_up(scripted: Live, prefix: str) -> None:
    usage = scripted.chat(prefix, {}).json()["usage"]
    prompt = scripted.post(f"{prefix}/tokenize", {"messages": [{"role": "user", "content": "Hi"}]})
    assert usage["prompt_tokens"] == prompt.json()["count"]
    assert usage["completion_tokens"] == 8  # seven of text and the end of the turn
    assert usage["total_tokens"] == usage["prompt_tokens"] + 8
    assert 0 <= usage["prompt_tokens_details"]["cached_tokens"] < usage["prompt_tokens"]
    assert usage["completion_tokens_details"]["reasoning_tokens"] == 0


def test_cached_tokens_reports_a_reused_prefix(scripted: Live, prefix: str) -> None:
    messages = [{"role": "user", "content": f"Once upon a time {prefix} " + "and " * 50}]
    usages = [scripted.chat(prefix, {"messages": messages}).json()["usage"] for _ in range(2)]
    assert usages[1]["prompt_tokens_details"]["cached_tokens"] > 50


def test_completion_tokens_sums_the_choices(scripted: Live, prefix: str) -> None:
    assert scripted.chat(prefix, {"n": 3}).json()["usage"]["completion_tokens"] == 24


def test_finish_reason_stop_and_length(scripted: Live, prefix: str) -> None:
    for limit, reason in ((None, "stop"), (4, "length"), (8, "stop"), (7, "length")):
        (choice,) = scripted.chat(prefix, {"max_tokens": limit}).json()["choices"]
        assert choice["finish_reason"] == reason, limit


def test_system_fingerprint(scripted: Live, prefix: str) -> None:
    assert scripted.chat(prefix, {}).json()["system_fingerprint"] == "fp_script"


def test_confidence_score_is_the_mean_probability(scripted: Live, prefix: str) -> None:
    body = scripted.chat(prefix, {"logprobs": True, "max_tokens": 7}).json()
    logprobs = [entry["logprob"] for entry in body["choices"][0]["logprobs"]["content"]]
    assert len(logprobs) == 7
    expected = round(100 * math.exp(sum(logprobs) / 7), 4)
    assert body["confidence_score"] == pytest.approx(expected, abs=1e-4)
    assert round(body["confidence_score"], 4) == body["confidence_score"]
    assert "confidence_score" not in body["choices"][0]


def test_confidence_score_per_choice_with_n(scripted: Live, prefix: str) -> None:
    body = scripted.chat(prefix, {"n": 2}).json()
    assert all(0 <= choice["confidence_score"] <= 100 for choice in body["choices"])


def test_logprobs_and_top_logprobs_carry_bytes(scripted: Live, prefix: str) -> None:
    body = scripted.chat(prefix, {"logprobs": True, "top_logprobs": 3, "max_tokens": 4}).json()
    content = body["choices"][0]["logprobs"]["content"]
    assert [entry["token"] for entry in content] == ["The", " capital", " of", " France"]
    for entry in content:
        assert bytes(entry["bytes"]).decode() == entry["token"]
        assert len(entry["top_logprobs"]) == 3
        assert entry["top_logprobs"][0]["token"] == entry["token"]
        assert entry["top_logprobs"][0]["logprob"] == entry["logprob"] <= 0
        assert "top_logprobs" not in entry["top_logprobs"][0]


def test_top_logprobs_needs_logprobs(scripted: Live, prefix: str) -> None:
    response = scripted.chat(prefix, {"top_logprobs": 3})
    assert response.json()["error"]["param"] == "top_logprobs"
    assert scripted.chat(prefix, {"logprobs": True, "top_logprobs": 21}).status_code in (400, 422)


# -- section 3 -------------------------------------------------------------------------------


def deltas(chunks: list[dict[str, Any]], index: int = 0) -> list[dict[str, Any]]:
    return [c["delta"] for one in chunks for c in one["choices"] if c["index"] == index]


def test_stream_is_an_event_stream_that_ends_with_done(scripted: Live, prefix: str) -> None:
    response = scripted.chat(prefix, {"stream": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.text.endswith("data: [DONE]\n\n")


def test_chunks_share_id_created_and_object(scripted: Live, prefix: str) -> None:
    chunks = scripted.stream(prefix, {})
    assert {c["object"] for c in chunks} == {"chat.completion.chunk"}
    assert len({(c["id"], c["created"], c["model"]) for c in chunks}) == 1


def test_role_comes_once_and_first(scripted: Live, prefix: str) -> None:
    chunks = scripted.stream(prefix, {"n": 2})
    for index in (0, 1):
        roles = ["role" in delta for delta in deltas(chunks, index)]
        assert roles[0] and not any(roles[1:])


def test_stream_on_s_looks_like_the_pages_example(scripted: Live, prefix: str) -> None:
    """The last piece of content carries finish_reason and usage; on O each comes by itself."""
    assert scripted.runner is not None
    scripted.runner.say("Once upon a time")
    chunks = scripted.stream(prefix, {"stream_options": {"include_usage": True}})
    pieces = [d.get("content") for d in deltas(chunks)]
    if prefix == S:
        assert pieces == ["Once", " upon", " a", " time"]
        assert deltas(chunks)[0] == {"role": "assistant", "content": "Once"}
        assert [c["choices"][0]["finish_reason"] for c in chunks] == [None, None, None, "stop"]
        assert ["usage" in c for c in chunks] == [False, False, False, True]
    else:
        assert pieces == ["", "Once", " upon", " a", " time", None]
        assert deltas(chunks)[-1] == {}
        assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
        assert chunks[-1]["choices"] == []
        assert [c["usage"] is None for c in chunks] == [True] * 6 + [False]
    assert chunks[-1]["usage"]["completion_tokens"] == 5


def test_usage_without_include_usage(scripted: Live, prefix: str) -> None:
    chunks = scripted.stream(prefix, {})
    assert ("usage" in chunks[-1]) == (prefix == S)
    assert all("usage" not in c for c in chunks[:-1])
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("temperature", [0, 2])
def test_first_chunks_come_in_the_order_of_the_choices(
    scripted: Live, prefix: str, temperature: float
) -> None:
    body = {"n": 4, "temperature": temperature, "max_tokens": 9, "seed": 3, "stop": [" a", "e"]}
    chunks = scripted.stream(prefix, body)
    assert all(len(c["choices"]) <= 1 for c in chunks)
    order = [c["choices"][0]["index"] for c in chunks if c["choices"]]
    assert list(dict.fromkeys(order)) == [0, 1, 2, 3]
    for index in range(4):
        reasons = [
            c["choices"][0]["finish_reason"]
            for c in chunks
            if c["choices"] and c["choices"][0]["index"] == index
        ]
        assert [r is not None for r in reasons] == [False] * (len(reasons) - 1) + [True]


def test_confidence_score_is_on_the_final_chunk_only(scripted: Live, prefix: str) -> None:
    chunks = scripted.stream(prefix, {"stream_options": {"include_usage": True}})
    assert ["confidence_score" in c for c in chunks] == [False] * (len(chunks) - 1) + [True]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"n": 3, "temperature": 1.5, "seed": 11, "max_tokens": 20},
        {"stop": " France"},
        {"logprobs": True, "top_logprobs": 2},
        {"max_tokens": 0},
        {"reasoning": {"max_tokens": 3}},
    ],
    ids=repr,
)
def test_whole_answer_is_the_fold_of_the_stream(
    scripted: Live, prefix: str, body: dict[str, Any]
) -> None:
    whole = scripted.chat(prefix, body).json()
    chunks = scripted.stream(prefix, {**body, "stream_options": {"include_usage": True}})
    for choice in whole["choices"]:
        parts = deltas(chunks, choice["index"])
        text = "".join(d.get("content") or "" for d in parts)
        assert text == choice["message"]["content"]
        thought = "".join(d.get("reasoning", "") for d in parts)
        assert thought == choice["message"].get("reasoning", "")
        entries = [
            entry
            for c in chunks
            for one in c["choices"]
            if one["index"] == choice["index"] and one.get("logprobs")
            for entry in one["logprobs"]["content"]
        ]
        assert entries == ((choice["logprobs"] or {}).get("content") or [])
    assert chunks[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    assert chunks[-1].get("confidence_score") == whole.get("confidence_score")


def test_text_is_cut_at_whole_code_points(scripted: Live, prefix: str) -> None:
    assert scripted.runner is not None
    scripted.runner.say("I 🦙 you, 语言模型! 👩‍👩‍👧")
    chunks = scripted.stream(prefix, {})
    pieces = [d.get("content") or "" for d in deltas(chunks)]
    assert "".join(pieces) == "I 🦙 you, 语言模型! 👩‍👩‍👧"
    assert not any("\ufffd" in piece for piece in pieces)


def test_bytes_that_never_complete_become_one_replacement(
    scripted: Live, prefix: str, tokenizer: Tokenizer
) -> None:
    assert scripted.runner is not None
    llama = tokenizer.encode("🦙")
    assert len(llama) > 1
    scripted.runner.script = [*tokenizer.encode("A "), *llama[:-1], scripted.runner.eos]
    chunks = scripted.stream(prefix, {})
    assert "".join(d.get("content") or "" for d in deltas(chunks)) == "A \ufffd"
    assert scripted.chat(prefix, {}).json()["choices"][0]["message"]["content"] == "A \ufffd"


def test_possible_stop_string_is_held_back(scripted: Live, prefix: str) -> None:
    chunks = scripted.stream(prefix, {"stop": " France is Rome"})
    pieces = [d.get("content") or "" for d in deltas(chunks)]
    assert "".join(pieces) == PARIS
    assert " France" not in pieces  # waited until it was clear
    cut = scripted.stream(prefix, {"stop": " France is"})
    assert "".join(d.get("content") or "" for d in deltas(cut)) == "The capital of"


def test_fault_in_mid_stream_is_an_error_event_then_done(scripted: Live, prefix: str) -> None:
    assert scripted.runner is not None
    steps = 0

    def fail_late(segments: Any) -> None:
        nonlocal steps
        steps += 1
        time.sleep(0.02)
        if steps > 4:
            raise RuntimeError("secret detail")

    scripted.runner.before = fail_late
    chunks = scripted.stream(prefix, {})
    error = chunks[-1]["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "server_error"
    assert "secret" not in json.dumps(chunks)
    assert any(deltas(chunks[:-1]))


def test_fault_before_the_first_token_is_a_500_without_a_traceback(
    scripted: Live, prefix: str
) -> None:
    assert scripted.runner is not None

    def fail(segments: Any) -> None:
        raise RuntimeError("secret detail")

    scripted.runner.before = fail
    for stream in (False, True):
        response = scripted.chat(prefix, {"stream": stream})
        assert response.status_code == 500
        assert response.json()["error"]["type"] == "server_error"
        assert response.headers["x-should-retry"] == "false"
        assert "secret" not in response.text
    scripted.runner.before = None
    assert scripted.chat(prefix, {}).status_code == 200


def test_model_alias_is_echoed_in_chunks(scripted: Live, prefix: str) -> None:
    assert {c["model"] for c in scripted.stream(prefix, {})} == {MODEL}


def test_events_of_checks_the_end(prefix: str) -> None:
    with pytest.raises(AssertionError):
        events_of('data: {"a": 1}\n\n')
    assert O != S
