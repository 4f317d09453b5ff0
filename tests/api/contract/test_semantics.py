"""Section 4 of the contract, what answers mean: a test a row, on both dialects."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from tests.api.contract.test_request import WEATHER, assert_refused, tool_conversation
from tests.api.support import PREFIXES, Live, ScriptRunner, live, scripted_model
from tinyllm.api.house.settings import Settings
from tinyllm.tokenizer import Tokenizer

pytestmark = pytest.mark.parametrize("prefix", PREFIXES, ids=["S", "O"])

TIME = {
    "type": "function",
    "function": {
        "name": "get_time",
        "parameters": {
            "type": "object",
            "properties": {"zone": {"enum": ["UTC", "CET"]}, "seconds": {"type": "boolean"}},
            "required": ["zone", "seconds"],
        },
    },
}


def calls_of(response: Any) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    (choice,) = response.json()["choices"]
    calls: list[dict[str, Any]] = choice["message"].get("tool_calls", [])
    assert (choice["finish_reason"] == "tool_calls") == bool(calls) or (
        choice["finish_reason"] == "length"
    )
    return calls


# -- 4.2 structured output -------------------------------------------------------------------

SCHEMAS: dict[str, dict[str, Any]] = {
    "nested": {
        "type": "object",
        "properties": {
            "who": {"type": "object", "properties": {"name": {"type": "string", "maxLength": 9}}},
            "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2},
        },
        "required": ["who", "tags"],
    },
    "union": {"anyOf": [{"type": "integer"}, {"type": "string", "maxLength": 5}, {"type": "null"}]},
    "recursion": {
        "$ref": "#/$defs/node",
        "$defs": {
            "node": {
                "type": "object",
                "properties": {
                    "value": {"type": "integer", "minimum": 0, "maximum": 99},
                    "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]},
                },
                "required": ["value", "next"],
            }
        },
    },
    "discriminated": {
        "oneOf": [
            {"type": "object", "properties": {"k": {"const": c}, c: {"type": "boolean"}},
             "required": ["k", c], "additionalProperties": False}
            for c in ("cat", "dog")
        ]
    },
    "constants": {"type": "array", "prefixItems": [{"const": 1}, {"const": "x"}], "minItems": 2,
                  "items": False},
    "pattern": {"type": "string", "pattern": "^[A-Z]{3}-[0-9]{2}$"},
    "all of": {
        "allOf": [
            {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]},
            {"type": "object", "properties": {"b": {"type": "boolean"}}, "required": ["b"]},
        ],
        "unevaluatedProperties": True,
    },
    "30 properties": {
        "type": "object",
        "properties": {f"p{i}": {"type": "boolean"} for i in range(30)},
        "required": [f"p{i}" for i in range(30)],
    },
}  # fmt: skip


@pytest.mark.parametrize("name", SCHEMAS)
def test_response_format_json_schema_always_fits(scripted: Live, prefix: str, name: str) -> None:
    schema = SCHEMAS[name]
    body = {
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
        "temperature": 1.3,
        "n": 2,
        "seed": 5,
    }
    if name == "30 properties":
        body |= {"n": 1, "temperature": 0}
    response = scripted.chat(prefix, body)
    if name == "all of" and response.status_code != 200:
        assert_refused(response, prefix, "response_format.json_schema.schema")
        return
    assert response.status_code == 200, response.text
    for choice in response.json()["choices"]:
        if choice["finish_reason"] == "stop":
            jsonschema.validate(json.loads(choice["message"]["content"]), schema)
        else:
            assert choice["finish_reason"] == "length"


def test_response_format_json_object_parses(scripted: Live, prefix: str) -> None:
    assert scripted.runner is not None
    scripted.runner.say('Sure! {"a": [1, null]} Is that all?')
    response = scripted.chat(prefix, {"response_format": {"type": "json_object"}})
    (choice,) = response.json()["choices"]
    if choice["finish_reason"] == "stop":
        assert isinstance(json.loads(choice["message"]["content"]), dict)
    assert choice["message"]["content"].startswith("{")
    scripted.runner.say('{"a": [1, null]}')
    response = scripted.chat(prefix, {"response_format": {"type": "json_object"}})
    assert response.json()["choices"][0]["message"]["content"] == '{"a": [1, null]}'
    assert response.json()["choices"][0]["finish_reason"] == "stop"


def test_json_that_has_no_room_is_refused(scripted: Live, prefix: str) -> None:
    schema = {"type": "string", "minLength": 5000}
    body = {
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
        "max_tokens": 20,
    }
    assert scripted.chat(prefix, body).json()["error"]["code"] == "max_tokens_too_small"


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "foo"},
        {"$ref": "https://example.com/schema"},
        {"$ref": "#/$defs/missing"},
        {"type": "string", "pattern": "(?=x)y"},
        {"type": "string", "pattern": "("},
        {"type": "integer", "minimum": 3, "maximum": 2},
        {"enum": ["x" * 300_000]},
    ],
    ids=lambda s: json.dumps(s)[:40],
)
def test_schema_that_cannot_be_followed_is_refused_and_says_what(
    scripted: Live, prefix: str, schema: dict[str, Any]
) -> None:
    fmt = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    response = scripted.chat(prefix, {"response_format": fmt})
    assert_refused(response, prefix, "response_format.json_schema.schema")
    tool = {"type": "function", "function": {"name": "f", "parameters": {
        "type": "object", "properties": {"a": schema}, "required": ["a"]}}}  # fmt: skip
    body = {"tools": [WEATHER, tool], "tool_choice": "required"}
    assert_refused(scripted.chat(prefix, body), prefix, "tools[1].function.parameters")


def test_schema_too_deep_is_refused(scripted: Live, prefix: str) -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(25):
        schema = {"type": "object", "properties": {"a": schema}}
    fmt = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    response = scripted.chat(prefix, {"response_format": fmt})
    assert_refused(response, prefix, "response_format.json_schema.schema")


# -- 4.3 tools -------------------------------------------------------------------------------


def test_tool_choice_none_never_calls(scripted: Live, prefix: str) -> None:
    body = {"tools": [WEATHER], "tool_choice": "none"}
    assert calls_of(scripted.chat(prefix, body)) == []
    for chunk in scripted.stream(prefix, body):
        assert all("tool_calls" not in choice["delta"] for choice in chunk["choices"])


@pytest.mark.parametrize(
    "choice",
    ["required", "get_time", {"type": "function", "function": {"name": "get_time"}}],
    ids=["required", "bare name", "named"],
)
def test_tool_choice_required_and_named_always_call(
    scripted: Live, prefix: str, choice: Any
) -> None:
    for temperature, seed in ((0, 0), (1, 1), (2, 2)):
        body = {"tools": [WEATHER, TIME], "tool_choice": choice, "temperature": temperature,
                "seed": seed, "parallel_tool_calls": False}  # fmt: skip
        (call,) = calls_of(scripted.chat(prefix, body))
        assert call["type"] == "function" and call["id"]
        arguments = json.loads(call["function"]["arguments"])
        if choice != "required":
            assert call["function"]["name"] == "get_time"
        schema = {t["function"]["name"]: t["function"]["parameters"] for t in (WEATHER, TIME)}
        jsonschema.validate(arguments, schema[call["function"]["name"]])  # type: ignore[arg-type]


def test_tool_calls_content_is_null(scripted: Live, prefix: str) -> None:
    body = {"tools": [TIME], "tool_choice": "required"}
    (choice,) = scripted.chat(prefix, body).json()["choices"]
    assert choice["message"]["content"] is None
    assert choice["finish_reason"] == "tool_calls"


def test_parallel_tool_calls_false_is_at_most_one(scripted: Live, prefix: str) -> None:
    assert scripted.runner is not None
    two = "\n".join(
        f'<tool_call>\n{{"name": "get_time", "arguments": {{"zone": "{zone}", "seconds": true}}}}'
        "\n</tool_call>"
        for zone in ("UTC", "CET")
    )
    scripted.runner.say(two)
    body = {"tools": [TIME], "tool_choice": "required"}
    calls = calls_of(scripted.chat(prefix, body))
    assert [json.loads(c["function"]["arguments"])["zone"] for c in calls] == ["UTC", "CET"]
    assert calls[0]["id"] != calls[1]["id"]
    assert len(calls_of(scripted.chat(prefix, {**body, "parallel_tool_calls": False}))) == 1


def test_tool_call_deltas_are_streamed(scripted: Live, prefix: str) -> None:
    body = {"tools": [TIME], "tool_choice": "required", "parallel_tool_calls": False}
    whole = calls_of(scripted.chat(prefix, body))
    chunks = scripted.stream(prefix, body)
    deltas = [
        call
        for chunk in chunks
        for choice in chunk["choices"]
        for call in choice["delta"].get("tool_calls", ())
    ]
    first, *rest = deltas
    assert set(first) == {"index", "id", "type", "function"}
    assert first["function"] == {"name": "get_time", "arguments": ""}
    assert len(rest) > 2
    assert all(set(d) == {"index", "function"} and set(d["function"]) == {"arguments"}
               for d in rest)  # fmt: skip
    text = "".join(d["function"]["arguments"] for d in rest)
    assert text == whole[0]["function"]["arguments"]
    reasons = [c["finish_reason"] for chunk in chunks for c in chunk["choices"]]
    assert reasons[-1] == "tool_calls" and not any(reasons[:-1])


def test_tool_call_cut_by_max_tokens_is_length(scripted: Live, prefix: str) -> None:
    body = {"tools": [TIME], "tool_choice": "required", "max_tokens": 1}
    error = scripted.chat(prefix, body).json()["error"]
    assert error["code"] == "max_tokens_too_small"
    body["max_tokens"] = int(error["message"].split("takes ")[1].split(".")[0])
    response = scripted.chat(prefix, body)
    (choice,) = response.json()["choices"]
    assert choice["finish_reason"] == "length"
    for call in calls_of(response):
        json.loads(call["function"]["arguments"])


def test_tool_without_parameters_takes_none(scripted: Live, prefix: str) -> None:
    tool = {"type": "function", "function": {"name": "ping"}}
    body = {"tools": [tool], "tool_choice": "required", "parallel_tool_calls": False}
    (call,) = calls_of(scripted.chat(prefix, body))
    assert json.loads(call["function"]["arguments"]) == {}


def test_128_tools_work(scripted: Live, prefix: str) -> None:
    tools = [{"type": "function", "function": {"name": f"tool_{i}"}} for i in range(128)]
    body = {"tools": tools, "tool_choice": "required", "parallel_tool_calls": False}
    (call,) = calls_of(scripted.chat(prefix, body))
    assert call["function"]["name"].startswith("tool_")


def test_tool_results_continue_to_an_answer(scripted: Live, prefix: str) -> None:
    for choice in ("auto", "none", None):
        body = {"messages": tool_conversation(), "tools": [WEATHER], "tool_choice": choice}
        response = scripted.chat(prefix, body)
        assert calls_of(response) == []
        assert response.json()["choices"][0]["message"]["content"]


# -- 4.4 reasoning ---------------------------------------------------------------------------


def thinking(response: Any) -> tuple[str, str, int]:
    """Thought, answer, and how many tokens of thought."""
    assert response.status_code == 200, response.text
    body = response.json()
    message = body["choices"][0]["message"]
    details = body["usage"]["completion_tokens_details"]
    thought = message.get("reasoning", "")
    assert message.get("reasoning_content", "") == thought
    if thought:
        assert message["reasoning_details"] == [
            {"type": "reasoning.text", "text": thought, "index": 0}
        ]
    return thought, message["content"], details["reasoning_tokens"]


LONG = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"


def test_reasoning_budget_is_forced_to_the_token(
    scripted: Live, prefix: str, tokenizer: Tokenizer
) -> None:
    assert scripted.runner is not None
    scripted.runner.say(LONG * 4)
    for budget in (1, 2, 7, 11):
        body = {"max_tokens": 40, "reasoning": {"max_tokens": budget}}
        thought, answer, n_thought = thinking(scripted.chat(prefix, body))
        assert n_thought == budget
        assert len(tokenizer.encode(thought)) == budget
        assert answer


@pytest.mark.parametrize(
    ("effort", "budget"),
    [("xhigh", 95), ("high", 80), ("medium", 50), ("low", 20), ("minimal", 10), ("none", 0)],
)
def test_reasoning_effort_is_a_share_of_max_tokens(
    scripted: Live, prefix: str, effort: str, budget: int
) -> None:
    assert scripted.runner is not None
    scripted.runner.say(LONG * 9)
    for body in ({"reasoning": {"effort": effort}}, {"reasoning_effort": effort}):
        _, answer, n_thought = thinking(scripted.chat(prefix, {"max_tokens": 100, **body}))
        # The end of the block takes a few tokens, of which the largest budgets leave room.
        assert n_thought == min(budget, 100 - 1 - 6)
        assert answer


def test_reasoning_enabled_alone_is_medium_and_false_is_off(scripted: Live, prefix: str) -> None:
    assert scripted.runner is not None
    scripted.runner.say(LONG * 4)
    for enabled, expected in ((True, 10), (False, 0)):
        body = {"max_tokens": 20, "reasoning": {"enabled": enabled}}
        assert thinking(scripted.chat(prefix, body))[2] == expected
    body = {"max_tokens": 20, "reasoning": {"enabled": False, "effort": "high"}}
    assert thinking(scripted.chat(prefix, body))[2] == 0


def test_reasoning_exclude_hides_the_text_and_counts_the_tokens(
    scripted: Live, prefix: str
) -> None:
    assert scripted.runner is not None
    scripted.runner.say(LONG * 4)
    body = {"max_tokens": 30, "reasoning": {"max_tokens": 6}}
    hidden = {"max_tokens": 30, "reasoning": {"max_tokens": 6, "exclude": True}}
    shown = scripted.chat(prefix, body)
    response = scripted.chat(prefix, hidden)
    thought, answer, n_thought = thinking(response)
    assert (thought, n_thought) == ("", 6)
    assert answer == thinking(shown)[1]
    assert "reasoning" not in response.json()["choices"][0]["message"]
    for chunk in scripted.stream(prefix, hidden):
        assert all("reasoning" not in choice["delta"] for choice in chunk["choices"])


def test_reasoning_streams_before_the_content(scripted: Live, prefix: str) -> None:
    assert scripted.runner is not None
    scripted.runner.say(LONG * 4)
    chunks = scripted.stream(prefix, {"max_tokens": 30, "reasoning": {"max_tokens": 6}})
    kinds = [
        "thought" if "reasoning" in choice["delta"] else "content"
        for chunk in chunks
        for choice in chunk["choices"]
        if choice["delta"].get("reasoning") or choice["delta"].get("content")
    ]
    assert kinds == sorted(kinds, reverse=True) and set(kinds) == {"thought", "content"}


def test_reasoning_ends_by_itself_when_the_model_ends_it(scripted: Live, prefix: str) -> None:
    body = {"max_tokens": 100, "reasoning": {"effort": "high"}}
    thought, answer, n_thought = thinking(scripted.chat(prefix, body))
    assert thought == answer == "The capital of France is Paris."
    assert n_thought == 7


def test_reasoning_effort_and_max_tokens_together_are_refused(scripted: Live, prefix: str) -> None:
    body = {"reasoning": {"effort": "low", "max_tokens": 5}}
    assert_refused(scripted.chat(prefix, body), prefix, "reasoning.effort")
    body = {"reasoning": {"max_tokens": 5}, "reasoning_effort": "low"}
    assert_refused(scripted.chat(prefix, body), prefix, "reasoning_effort")


@pytest.mark.parametrize(("budget", "limit"), [(10, 10), (11, 10), (2000, None)])
def test_reasoning_max_tokens_must_be_less_than_max_tokens(
    scripted: Live, prefix: str, budget: int, limit: int | None
) -> None:
    body = {"max_tokens": limit, "reasoning": {"max_tokens": budget}}
    assert_refused(scripted.chat(prefix, body), prefix, "reasoning.max_tokens")


def test_reasoning_applies_before_a_tool_call_too(scripted: Live, prefix: str) -> None:
    assert scripted.runner is not None
    scripted.runner.say(LONG * 4)
    body = {"tools": [TIME], "tool_choice": "required", "parallel_tool_calls": False,
            "reasoning": {"max_tokens": 5}}  # fmt: skip
    response = scripted.chat(prefix, body)
    assert len(calls_of(response)) == 1
    assert response.json()["usage"]["completion_tokens_details"]["reasoning_tokens"] == 5


def test_reasoning_on_a_card_of_none_is_ignored_and_named(
    prefix: str, tokenizer: Tokenizer
) -> None:
    runner = ScriptRunner(tokenizer)
    card = {"aliases": ["nugen-flash-instruct"], "reasoning": "none"}
    settings = Settings(port=0, access_log="off")
    with live(settings, lambda: [scripted_model(tokenizer, runner, card=card)]) as server:
        response = server.chat(prefix, {"reasoning": {"effort": "high"}})
        assert thinking(response) == ("", "The capital of France is Paris.", 0)
        assert response.headers["X-Ignored-Params"] == "reasoning"
        assert "confidence_score" not in response.json()


# -- 4.5 truncation --------------------------------------------------------------------------


def turns(n: int) -> list[dict[str, Any]]:
    messages = [{"role": "system", "content": "Be kind."}]
    for i in range(n):
        messages.append({"role": "user", "content": f"question {i} " + "word " * 40})
        messages.append({"role": "assistant", "content": f"answer {i} " + "word " * 40})
    return [*messages, {"role": "user", "content": "The last question"}]


def test_truncation_evicts_whole_oldest_turns_and_reports_it(scripted: Live, prefix: str) -> None:
    response = scripted.chat(prefix, {"messages": turns(6), "prompt_truncate_len": 300})
    body = response.json()
    cut = body["prompt_truncation"]
    assert body["usage"]["prompt_tokens"] <= 300 < 300 + cut["dropped_tokens"]
    assert 0 < cut["dropped_messages"] < 12
    assert response.headers["X-Prompt-Truncated"] == (
        f"dropped_messages={cut['dropped_messages']}, dropped_tokens={cut['dropped_tokens']}"
    )
    # One fewer would not have been enough.
    fewer = turns(6)
    del fewer[1 : cut["dropped_messages"]]
    whole = scripted.post(f"{prefix}/tokenize", {"messages": fewer}).json()["count"]
    assert whole > 300


def test_truncation_default_is_1500_on_s_and_off_on_o(scripted: Live, prefix: str) -> None:
    response = scripted.chat(prefix, {"messages": turns(18)})
    assert ("prompt_truncation" in response.json()) == (prefix == PREFIXES[0])
    assert ("X-Prompt-Truncated" in response.headers) == (prefix == PREFIXES[0])


def test_truncation_null_turns_it_off(scripted: Live, prefix: str) -> None:
    body = {"messages": turns(18), "prompt_truncate_len": None}
    assert "prompt_truncation" not in scripted.chat(prefix, body).json()


def test_truncation_never_drops_system_or_the_last_user_turn(scripted: Live, prefix: str) -> None:
    messages = [
        {"role": "system", "content": "S" * 50},
        {"role": "developer", "content": "D" * 50},
        {"role": "user", "content": "the last question " * 50},
        {"role": "assistant", "content": "begun"},
    ]
    body = scripted.chat(prefix, {"messages": messages, "prompt_truncate_len": 10}).json()
    assert "prompt_truncation" not in body
    assert body["usage"]["prompt_tokens"] > 100


def test_truncation_takes_calls_together_with_their_results(scripted: Live, prefix: str) -> None:
    messages = [*tool_conversation(content="sunny " * 60), {"role": "assistant", "content": "Sun."},
                {"role": "user", "content": "And now?"}]  # fmt: skip
    for length in (1, 30, 60, 90, 120):
        body = {"messages": messages, "prompt_truncate_len": length}
        response = scripted.chat(prefix, body)
        assert response.status_code == 200, response.text
        dropped = response.json().get("prompt_truncation", {}).get("dropped_messages", 0)
        assert dropped in (0, 1, 3, 4)  # never a call without its result


def test_prompt_longer_than_the_context_is_400(scripted: Live, prefix: str) -> None:
    messages = [{"role": "user", "content": "word " * 2100}]
    response = scripted.chat(prefix, {"messages": messages})
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert error["n_ctx"] == 2048 < error["n_prompt_tokens"]


# -- 4.6 sessions ----------------------------------------------------------------------------


def test_session_tracks_requests_and_can_be_forgotten(scripted: Live, prefix: str) -> None:
    headers = {"X-Session-ID": f"talk{prefix.replace('/', ':')}"}
    ids = [scripted.chat(prefix, {}, headers=headers).json()["id"] for _ in range(2)]
    scripted.chat(prefix, {"stream": True}, headers=headers)
    path = f"{prefix}/sessions/{headers['X-Session-ID']}"
    session = scripted.http.get(path).json()
    assert session["n_requests"] == 3
    assert [r["id"] for r in session["requests"]][:2] == ids
    assert session["total_tokens"] == sum(r["usage"]["total_tokens"] for r in session["requests"])
    assert scripted.http.delete(path).json()["deleted"] is True
    for response in (scripted.http.get(path), scripted.http.delete(path)):
        assert response.status_code == 404
        assert response.json()["error"]["code"] == "not_found"


def test_session_never_prepends_history(scripted: Live, prefix: str) -> None:
    headers = {"X-Session-ID": "s"}
    usages = [scripted.chat(prefix, {}, headers=headers).json()["usage"] for _ in range(2)]
    assert usages[0]["prompt_tokens"] == usages[1]["prompt_tokens"]
