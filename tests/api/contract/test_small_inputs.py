"""Small inputs that other servers stumbled over, each by the kind that it stands for."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest

from tests.api.support import MODEL, PREFIXES, Live, S

pytestmark = pytest.mark.parametrize("prefix", PREFIXES)


@pytest.mark.parametrize(
    "parameters",
    [
        {"type": "string", "maxLength": 6},
        {"type": ["string", "null"]},
        {"$ref": "#/$defs/S", "$defs": {"S": {"type": "integer"}}},
    ],
)
def test_a_tools_parameters_are_an_object(
    scripted: Live, prefix: str, parameters: dict[str, Any]
) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    for choice in ("required", "auto", "none"):  # whatever is made of it
        response = scripted.chat(prefix, {"tools": [tool], "tool_choice": choice})
        assert response.status_code == (422 if prefix == S else 400)
        assert response.json()["error"]["param"] == "tools[0].function.parameters"


@pytest.mark.parametrize("arguments", ["", " ", "\n"])
def test_no_arguments_are_an_empty_object(scripted: Live, prefix: str, arguments: str) -> None:
    function = {"name": "now", "arguments": arguments}
    messages = [
        {"role": "user", "content": "What time is it?"},
        {"role": "assistant", "content": None,
         "tool_calls": [{"id": "c", "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": "c", "content": "12:00"},
    ]  # fmt: skip
    assert scripted.chat(prefix, {"messages": messages}).status_code == 200


# JSON in a string of the body, which no count of the body's own values has seen.
INNER = {
    "half a surrogate pair": '{"a": "\\ud800"}',
    "deeper than a parser goes": "[" * 100_000,
    "deeper than a template goes": "[" * 900 + "]" * 900,
    "not a number": '{"a": NaN}',
    "infinite": '{"a": 1e999}',
    "very many values": "[" + "[]," * 200_000 + "[]]",
    "a long number": "1" * 10_000,
}


@pytest.mark.parametrize("inner", INNER.values(), ids=INNER.keys())
def test_json_in_a_string_is_held_to_the_bodys_rules(
    scripted: Live, prefix: str, inner: str
) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": inner}}
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
    ]
    for body in ({"messages": messages}, {"guided_json": inner}):
        response = scripted.chat(prefix, body)
        assert response.status_code == (422 if prefix == S else 400)


@pytest.mark.parametrize("more", [{"stop": "T"}, {"max_tokens": 0}])
def test_log_probabilities_of_nothing_are_an_empty_list(
    scripted: Live, prefix: str, more: dict[str, Any]
) -> None:
    (choice,) = scripted.chat(prefix, {"logprobs": True, **more}).json()["choices"]
    assert choice["logprobs"] == {"content": [], "refusal": None}


def test_a_compressed_body_is_refused_by_its_coding(scripted: Live, prefix: str) -> None:
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]})
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    response = scripted.http.post(
        f"{prefix}/chat/completions", content=gzip.compress(body.encode()), headers=headers
    )
    assert response.status_code == 415 and "gzip" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "name"),
    [({"max_tokens": 3, "max_completion_tokens": 5}, "max_completion_tokens"),
     ({"top_logprobs": 3}, "top_logprobs"),
     ({"reasoning_effort": "low", "reasoning": {"effort": "high"}}, "reasoning_effort")],
)  # fmt: skip
def test_a_sentence_leaves_a_fields_name_its_letters(
    scripted: Live, prefix: str, body: dict[str, Any], name: str
) -> None:
    error = scripted.chat(prefix, body).json()["error"]
    assert error["message"].startswith(f"{name} ") and error["param"] == name
