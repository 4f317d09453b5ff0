"""Section 1 of the contract, the request: a test a row, on both dialects."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.api.support import MODEL, PREFIXES, Live, O, S

pytestmark = pytest.mark.parametrize("prefix", PREFIXES, ids=["S", "O"])

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get current weather",
        "parameters": {"type": "object", "properties": {"location": {"type": "string"}}},
    },
}


def assert_refused(response: Any, prefix: str, param: str | None) -> None:
    """The envelope of a schema error, the fault's place named."""
    assert response.status_code == (422 if prefix == S else 400), response.text
    error = response.json()["error"]
    assert set(error) >= {"message", "type", "param", "code"}
    assert error["param"] == param, error
    if prefix == S:
        (detail,) = response.json()["detail"]
        assert detail["loc"][0] == "body"
        assert set(detail) == {"loc", "msg", "type"}
    else:
        assert "detail" not in response.json()


def content_of(response: Any) -> str:
    assert response.status_code == 200, response.text
    content = response.json()["choices"][0]["message"]["content"]
    assert isinstance(content, str)
    return content


def test_model_is_required(scripted: Live, prefix: str) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}]}
    assert_refused(scripted.post(f"{prefix}/chat/completions", body), prefix, "model")


def test_model_unknown_is_404_model_not_found(scripted: Live, prefix: str) -> None:
    response = scripted.chat(prefix, {"model": "gpt-17"})
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize("name", [MODEL, "scripted"])
def test_model_asked_for_is_echoed(scripted: Live, prefix: str, name: str) -> None:
    assert scripted.chat(prefix, {"model": name}).json()["model"] == name


def test_messages_needs_at_least_one(scripted: Live, prefix: str) -> None:
    assert_refused(scripted.chat(prefix, {"messages": []}), prefix, "messages")
    assert_refused(scripted.chat(prefix, {"messages": None}), prefix, "messages")
    assert_refused(scripted.chat(prefix, {"messages": "Hi"}), prefix, "messages")


@pytest.mark.parametrize("role", ["system", "user", "developer", "assistant"])
def test_role_each_is_taken(scripted: Live, prefix: str, role: str) -> None:
    messages = [{"role": role, "content": "Be kind."}]
    assert scripted.chat(prefix, {"messages": messages}).status_code == 200


def test_role_developer_means_system(scripted: Live, prefix: str) -> None:
    counts = [
        scripted.post(
            f"{prefix}/tokenize",
            {"messages": [{"role": role, "content": "Be kind."}, {"role": "user", "content": "x"}]},
        ).json()["tokens"]
        for role in ("system", "developer")
    ]
    assert counts[0] == counts[1]


def test_role_unknown_is_refused(scripted: Live, prefix: str) -> None:
    messages = [{"role": "robot", "content": "Hi"}]
    assert_refused(scripted.chat(prefix, {"messages": messages}), prefix, "messages[0]")


def test_content_parts_are_joined(scripted: Live, prefix: str) -> None:
    parts = [{"type": "text", "text": "What is"}, {"type": "text", "text": "that?"}]
    both = [
        scripted.post(f"{prefix}/tokenize", {"messages": [{"role": "user", "content": content}]})
        for content in (parts, "What is\nthat?")
    ]
    assert both[0].json() == both[1].json()


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "user", "content": None}, "messages[0].content"),
        ({"role": "user"}, "messages[0].content"),
        ({"role": "system", "content": None}, "messages[0].content"),
        ({"role": "assistant", "content": None}, "messages[0].content"),
        ({"role": "assistant"}, "messages[0].content"),
        ({"role": "user", "content": 5}, "messages[0].content"),
        ({"role": "user", "content": [{"type": "audio"}]}, "messages[0].content[0]"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[0].content[0].text"),
        ({"role": "user", "content": ["text"]}, "messages[0].content[0]"),
        (
            {"role": "system", "content": [{"type": "image_url", "image_url": "https://x/y"}]},
            "messages[0].content[0].type",
        ),
        (
            {"role": "user", "content": [{"type": "image_url"}]},
            "messages[0].content[0].image_url",
        ),
    ],
)
def test_content_of_another_form_is_refused(
    scripted: Live, prefix: str, message: dict[str, Any], param: str
) -> None:
    assert_refused(scripted.chat(prefix, {"messages": [message]}), prefix, param)


@pytest.mark.parametrize("image_url", ["https://example.com/a.png", {"url": "data:image/png,"}])
def test_image_for_a_text_model_is_400_and_names_the_model(
    scripted: Live, prefix: str, image_url: Any
) -> None:
    parts = [{"type": "text", "text": "?"}, {"type": "image_url", "image_url": image_url}]
    response = scripted.chat(prefix, {"messages": [{"role": "user", "content": parts}]})
    assert response.status_code == 400
    assert MODEL in response.json()["error"]["message"]


def test_name_is_rendered_into_the_prompt(scripted: Live, prefix: str) -> None:
    messages = [{"role": "user", "name": "Zebulon_7", "content": "Hi"}]
    tokens = scripted.post(f"{prefix}/tokenize", {"messages": messages}).json()["tokens"]
    text = scripted.post(f"{prefix}/detokenize", {"tokens": tokens}).json()["text"]
    assert "Zebulon_7" in text


@pytest.mark.parametrize(
    ("name", "fits"),
    [("a_B9", True), ("a" * 64, True), ("a-b", None), ("a" * 65, False), ("", False),
     ("a b", False), ("ä", False), ("a\n", False)],
)  # fmt: skip
def test_name_must_fit_the_dialects_pattern(
    scripted: Live, prefix: str, name: str, fits: bool | None
) -> None:
    fits = prefix == O if fits is None else fits  # a hyphen is O's alone
    messages = [{"role": "user", "name": name, "content": "Hi"}]
    response = scripted.chat(prefix, {"messages": messages})
    if fits:
        assert response.status_code == 200
    else:
        assert_refused(response, prefix, "messages[0].name")


def tool_conversation(**changes: Any) -> list[dict[str, Any]]:
    call = {"id": "c1", "type": "function",
            "function": {"name": "get_weather", "arguments": '{"location": "Boston"}'}}  # fmt: skip
    call["function"] |= changes.pop("function", {})  # type: ignore[operator]
    return [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "Sunny", **changes},
    ]


def test_tool_results_are_taken(scripted: Live, prefix: str) -> None:
    response = scripted.chat(prefix, {"messages": tool_conversation(), "tools": [WEATHER]})
    assert content_of(response) == "The capital of France is Paris."
    assert response.json()["choices"][0]["finish_reason"] == "stop"


def test_tool_call_id_must_name_an_earlier_call(scripted: Live, prefix: str) -> None:
    messages = tool_conversation(tool_call_id="c2")
    response = scripted.chat(prefix, {"messages": messages})
    assert_refused(response, prefix, "messages[2].tool_call_id")


def test_tool_arguments_must_be_json(scripted: Live, prefix: str) -> None:
    messages = tool_conversation(function={"arguments": "{location}"})
    response = scripted.chat(prefix, {"messages": messages})
    assert_refused(response, prefix, "messages[1].tool_calls[0].function.arguments")


def test_reasoning_of_earlier_answers_is_accepted(scripted: Live, prefix: str) -> None:
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello", "reasoning": "a", "reasoning_content": "a",
         "reasoning_details": [{"type": "reasoning.text", "text": "a", "index": 0}]},
        {"role": "user", "content": "And?"},
    ]  # fmt: skip
    response = scripted.chat(prefix, {"messages": messages})
    assert response.status_code == 200
    assert "X-Ignored-Params" not in response.headers


def test_max_tokens_limits_the_completion(scripted: Live, prefix: str) -> None:
    body = scripted.chat(prefix, {"max_tokens": 3}).json()
    assert body["usage"]["completion_tokens"] == 3
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["choices"][0]["message"]["content"] == "The capital of"


def test_max_tokens_zero_works(scripted: Live, prefix: str) -> None:
    body = scripted.chat(prefix, {"max_tokens": 0}).json()
    assert body["usage"]["completion_tokens"] == 0
    assert body["choices"][0]["message"]["content"] == ""
    assert body["choices"][0]["finish_reason"] == "length"
    (chunk, *rest) = scripted.stream(prefix, {"max_tokens": 0})
    assert chunk["choices"][0]["delta"]["role"] == "assistant"
    assert [c for one in [chunk, *rest] for c in one["choices"]][-1]["finish_reason"] == "length"


def test_max_completion_tokens_is_an_alias(scripted: Live, prefix: str) -> None:
    body = scripted.chat(prefix, {"max_completion_tokens": 2}).json()
    assert body["usage"]["completion_tokens"] == 2
    conflict = scripted.chat(prefix, {"max_tokens": 3, "max_completion_tokens": 2})
    assert_refused(conflict, prefix, "max_completion_tokens")


def test_max_tokens_null_is_the_default(scripted: Live, prefix: str) -> None:
    assert content_of(scripted.chat(prefix, {"max_tokens": None})).endswith("Paris.")


def test_max_tokens_is_clamped_to_the_context(scripted: Live, prefix: str) -> None:
    assert scripted.runner is not None
    scripted.runner.say("word " * 3000)
    long = "word " * 1900
    body = {"max_tokens": 10**15, "prompt_truncate_len": None,
            "messages": [{"role": "user", "content": long}]}  # fmt: skip
    answer = scripted.chat(prefix, body).json()
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["total_tokens"] == 2048


@pytest.mark.parametrize("value", [-1, 1.5, "5", True, [], 2**70])
def test_max_tokens_of_another_kind_is_refused(scripted: Live, prefix: str, value: Any) -> None:
    assert_refused(scripted.chat(prefix, {"max_tokens": value}), prefix, "max_tokens")


def test_max_tokens_five_point_zero_is_a_whole_number(scripted: Live, prefix: str) -> None:
    assert scripted.chat(prefix, {"max_tokens": 5.0}).json()["usage"]["completion_tokens"] == 5


RANGES: list[tuple[str, list[Any], list[Any]]] = [
    ("temperature", [0, 0.5, 1, 2, None], [-0.1, 2.1, "1", True]),
    ("top_p", [0, 0.5, 1, None], [-0.1, 1.1, "1"]),
    ("top_k", [-1, 0, 1, 40, 10**9, None], [-2, 0.5, "1"]),
    ("n", [1, 2, 8, None], [0, 9, 1.5, "2", -1]),
    ("stream", [False, None], ["yes", 1, 0]),
    ("seed", [0, -5, 2**63 - 1, None], ["a", 0.5, 2**63]),
    ("presence_penalty", [-2, 0, 2, None], [-2.1, 2.1, "0"]),
    ("frequency_penalty", [-2, 0, 2, None], [-2.1, 2.1, "0"]),
    ("stop", ["x", ["x", "y"], [], None], ["", 5, ["a"] * 5, [""], [5], {}]),
    ("logit_bias", [{}, {"5": 1}, {"5": -100}, None], [{"5": 101}, {"5": "x"}, [1], {"49152": 0}]),
    ("user", ["me", None], [5, {}]),
    ("metadata", [{}, {"a": "b"}, None], ["x", 5, []]),
    ("parallel_tool_calls", [True, False, None], ["x", 1]),
    ("reasoning_effort", ["none", "low", "xhigh", None], ["huge", 5]),
    ("response_format", [{"type": "text"}, None], [{"type": "xml"}, "json", {}]),
    ("stream_options", [{}, {"include_usage": True}, None], ["x", {"include_usage": "x"}]),
    ("logprobs", [True, False, None], ["x", 1]),
    ("tools", [[], None], ["x", [{}], [{"type": "function"}]]),
    ("tool_choice", ["auto", "none", None], ["required", "get_weather", 5, {}]),
    ("prompt_truncate_len", [1, 1500, None], [0, -1, "x", 1.5]),
]


@pytest.mark.parametrize(("field", "good"), [(f, good) for f, good, _ in RANGES], ids=repr)
def test_values_in_range_are_taken(
    scripted: Live, prefix: str, field: str, good: list[Any]
) -> None:
    for value in good:
        response = scripted.chat(prefix, {field: value, "max_tokens": 2})
        assert response.status_code == 200, (value, response.text)
        assert "X-Ignored-Params" not in response.headers, value


@pytest.mark.parametrize(("field", "bad"), [(f, bad) for f, _, bad in RANGES], ids=repr)
def test_values_out_of_range_are_refused_and_named(
    scripted: Live, prefix: str, field: str, bad: list[Any]
) -> None:
    for value in bad:
        response = scripted.chat(prefix, {field: value, "max_tokens": 2})
        assert response.status_code == (422 if prefix == S else 400), response.text
        assert response.json()["error"]["param"].startswith(field)


def test_temperature_zero_is_greedy(scripted: Live, prefix: str) -> None:
    answers = {content_of(scripted.chat(prefix, {"temperature": 0})) for _ in range(3)}
    assert answers == {"The capital of France is Paris."}


def test_top_p_zero_and_top_k_one_keep_the_top_token(scripted: Live, prefix: str) -> None:
    for limit in ({"top_p": 0}, {"top_k": 1}):
        answer = content_of(scripted.chat(prefix, {"temperature": 2, **limit}))
        assert answer == "The capital of France is Paris."


def test_n_gives_as_many_choices(scripted: Live, prefix: str) -> None:
    body = scripted.chat(prefix, {"n": 3}).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]


def test_seed_makes_it_reproducible_and_streams_differ(scripted: Live, prefix: str) -> None:
    ask = {"temperature": 2, "seed": 7, "n": 2, "max_tokens": 12}
    first, second = (scripted.chat(prefix, ask).json()["choices"] for _ in range(2))
    assert first == second
    assert first[0]["message"] != first[1]["message"]


def test_stop_strings_end_the_answer_and_are_not_shown(scripted: Live, prefix: str) -> None:
    for stop in (" France", ["nothing", " France"], "l of France is"):
        body = scripted.chat(prefix, {"stop": stop}).json()
        assert body["choices"][0]["finish_reason"] == "stop"
        assert body["choices"][0]["message"]["content"].startswith("The capita")
        assert "France" not in body["choices"][0]["message"]["content"]


def test_logit_bias_changes_the_choice(scripted: Live, prefix: str) -> None:
    token = scripted.post(f"{prefix}/tokenize", {"text": "The"}).json()["tokens"][0]
    other = scripted.post(f"{prefix}/tokenize", {"text": "Yes"}).json()["tokens"][0]
    body = scripted.chat(prefix, {"logit_bias": {str(token): -100, str(other): 50}})
    assert content_of(body).startswith("Yes")


def test_tools_names_must_be_unique_and_well_formed(scripted: Live, prefix: str) -> None:
    twice = scripted.chat(prefix, {"tools": [WEATHER, WEATHER]})
    assert_refused(twice, prefix, "tools[1].function.name")
    bad = {"type": "function", "function": {"name": "get weather"}}
    assert_refused(scripted.chat(prefix, {"tools": [bad]}), prefix, "tools[0].function.name")
    many = [{"type": "function", "function": {"name": f"f{i}"}} for i in range(129)]
    assert_refused(scripted.chat(prefix, {"tools": many}), prefix, "tools")


def test_tool_choice_must_name_a_tool_that_exists(scripted: Live, prefix: str) -> None:
    for choice in ("get_time", {"type": "function", "function": {"name": "get_time"}}):
        response = scripted.chat(prefix, {"tools": [WEATHER], "tool_choice": choice})
        assert_refused(response, prefix, "tool_choice")


def test_unknown_fields_are_accepted_and_named(scripted: Live, prefix: str) -> None:
    body = {
        "colour": "red",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi", "cache": 1}]}],
    }
    response = scripted.chat(prefix, body)
    assert response.status_code == 200
    assert response.headers["X-Ignored-Params"] == "colour, messages[0].content[0].cache"


@pytest.mark.parametrize("name", ["", " ", "a\r\nb: c", "é", "\x00", "x" * 5000])
def test_unknown_fields_are_named_in_a_proper_header(
    scripted: Live, prefix: str, name: str
) -> None:
    response = scripted.chat(prefix, {name: 1, "n": 1})
    assert response.status_code == 200
    assert response.headers["X-Ignored-Params"].isprintable()
    assert "b" not in response.headers


def test_session_id_is_checked_and_echoed(scripted: Live, prefix: str) -> None:
    response = scripted.chat(prefix, {}, headers={"X-Session-ID": "a.B_c:9-"})
    assert response.headers["X-Session-ID"] == "a.B_c:9-"
    refused = scripted.chat(prefix, {"n": -1}, headers={"X-Session-ID": "kept"})
    assert refused.headers["X-Session-ID"] == "kept"
    for bad in ("a b", "a" * 129, "a/b", ""):
        refused = scripted.chat(prefix, {}, headers={"X-Session-ID": bad})
        assert_refused(refused, prefix, "X-Session-ID")


def test_any_token_or_none_passes_without_keys(scripted: Live, prefix: str) -> None:
    for headers in ({}, {"Authorization": "Bearer whatever"}, {"Authorization": "nonsense"}):
        assert scripted.chat(prefix, {}, headers=headers).status_code == 200


def test_body_must_be_an_object(scripted: Live, prefix: str) -> None:
    for body in ([], "x", 5, None, True):
        response = scripted.http.post(
            f"{prefix}/chat/completions",
            content=json.dumps(body),
            headers={"content-type": "application/json"},
        )
        assert_refused(response, prefix, None)
