"""Tools of /responses: namespaces, what the server was told to leave out, and choices of a few."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.api.support import MODEL, PREFIXES, Live, O, S, ScriptRunner, live, scripted_model
from tinyllm.api.house.settings import Settings
from tinyllm.tokenizer import Tokenizer


def function(name: str, **more: Any) -> dict[str, Any]:
    city = {"type": "string", "enum": ["Rome"]}
    parameters = {"type": "object", "properties": {"city": city}, "required": ["city"],
                  "additionalProperties": False}  # fmt: skip
    return {"type": "function", "name": name, "parameters": parameters, **more}


def chat_function(name: str) -> dict[str, Any]:
    own = function(name)
    own.pop("type")
    return {"type": "function", "function": own}


SPACE = {"type": "namespace", "name": "crm", "description": "Of customers.",
         "tools": [function("find"), function("add")]}  # fmt: skip


@pytest.fixture(scope="module")
def lenient(tokenizer: Tokenizer) -> Iterator[Live]:
    """A server that leaves out web_search."""
    runner = ScriptRunner(tokenizer)
    settings = Settings(port=0, access_log="off", ignore_tool=("web_search", "image_generation"))
    with live(settings, lambda: [scripted_model(tokenizer, runner)], runner=runner) as server:
        yield server


def respond(server: Live, prefix: str = O, **body: Any) -> Any:
    return server.post(f"{prefix}/responses", {"model": MODEL, "temperature": 0, **body})


@pytest.mark.parametrize("choice", ["find", "crm__find"])
def test_a_namespaces_function_is_called_by_both_names(scripted: Live, choice: str) -> None:
    named = {"type": "function", "name": choice}
    answer = respond(scripted, input="Hi", tools=[SPACE, function("now")], tool_choice=named).json()
    (call,) = answer["output"]
    assert (call["namespace"], call["name"]) == ("crm", "find")
    assert json.loads(call["arguments"]) == {"city": "Rome"}
    assert answer["tools"] == [SPACE, function("now")]
    # What came of it goes back, by id and as items.
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "Ann"}
    again = respond(scripted, input=[result], previous_response_id=answer["id"], tools=[SPACE])
    assert again.status_code == 200, again.text
    items = [{"role": "user", "content": "Hi"}, call, result]
    assert respond(scripted, input=items, tools=[SPACE]).json()["output"][0]["type"] == "message"


def test_a_stream_names_the_namespace(scripted: Live) -> None:
    asked = {"model": MODEL, "input": "Hi", "tools": [SPACE], "tool_choice": "required",
             "stream": True, "temperature": 0}  # fmt: skip
    told = scripted.post(f"{O}/responses", asked).text
    events = [json.loads(line[6:]) for line in told.splitlines() if line.startswith("data: ")]
    items = [e["item"] for e in events if e["type"] == "response.output_item.added"]
    assert items[0]["namespace"] == "crm" and items[0]["name"] in ("find", "add")


@pytest.mark.parametrize(
    ("tools", "param"),
    [
        ([{**SPACE, "tools": [function("a" * 60)]}], "tools[0].tools[0].name"),
        ([{**SPACE, "tools": []}], "tools[0].tools"),
        ([function("crm__add"), SPACE], "tools[1].tools[1].name"),
        ([function("now"), {**SPACE, "tools": [{"type": "custom", "name": "x"}]}],
         "tools[1].tools[0].type"),
        ([function("now"), {**SPACE, "tools": [function("f", strict=True, parameters={
            "type": "object", "properties": {"x": {"not": {}}}})]}],
         "tools[1].tools[0].parameters.properties.x.not"),
        ([{**SPACE, "tools": [function(f"f{i}") for i in range(129)]}], "tools"),
        ([function("now"), {"type": "web_search"}], "tools[1].type"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("prefix", PREFIXES)
def test_what_is_wrong_with_a_tool_is_told_at_its_place(
    scripted: Live, prefix: str, tools: list[Any], param: str
) -> None:
    response = respond(scripted, prefix, input="Hi", tools=tools)
    assert response.status_code == (422 if prefix == S else 400), response.text
    assert response.json()["error"]["param"] == param


def test_a_built_in_tool_is_refused_by_name_unless_the_server_leaves_it_out(
    scripted: Live, lenient: Live
) -> None:
    tools = [{"type": "web_search", "x": 1}, function("now", why="?"), {"type": "image_generation"}]
    refused = respond(scripted, input="Hi", tools=tools)
    assert refused.status_code == 400 and "'web_search'" in refused.json()["error"]["message"]
    answer = respond(lenient, input="Hi", tools=tools, tool_choice="required")
    assert answer.json()["output"][0]["name"] == "now"
    assert answer.json()["tools"] == [tools[1]]
    assert answer.headers["X-Ignored-Params"] == "tools[1].why, tools[0], tools[2]"
    # Another is refused, and at its place as it was sent.
    other = respond(lenient, input="Hi", tools=[*tools, {"type": "file_search"}])
    assert other.status_code == 400 and other.json()["error"]["param"] == "tools[3].type"
    loose = {"type": "object", "properties": {"x": {"not": {}}}}
    relaxed = respond(lenient, input="Hi", tools=[tools[0], function("f", parameters=loose)])
    assert relaxed.headers["X-Relaxed-Schema"] == "tools[1].parameters.properties.x.not"


def test_a_server_cannot_be_told_to_leave_out_functions() -> None:
    with pytest.raises(ValueError, match="--ignore-tool function"):
        Settings(ignore_tool=("function",)).check()


@pytest.mark.parametrize("prefix", PREFIXES)
def test_only_tools_that_are_allowed_are_called(scripted: Live, prefix: str) -> None:
    """On chat completions as on /responses."""
    tools = [chat_function("now"), chat_function("find"), chat_function("add")]
    allowed = {"mode": "required", "tools": [{"type": "function", "function": {"name": "find"}}]}
    choice = {"type": "allowed_tools", "allowed_tools": allowed}
    answer = scripted.chat(prefix, {"tools": tools, "tool_choice": choice}).json()
    calls = answer["choices"][0]["message"]["tool_calls"]
    assert {call["function"]["name"] for call in calls} == {"find"}
    allowed["tools"] = [{"type": "function", "function": {"name": "gone"}}]
    refused = scripted.chat(prefix, {"tools": tools, "tool_choice": choice})
    assert refused.json()["error"]["param"] == "tool_choice"
    own = {"type": "allowed_tools", "mode": "required",
           "tools": [{"type": "function", "name": "find"}]}  # fmt: skip
    told = respond(scripted, prefix, input="Hi", tools=[function("now"), SPACE], tool_choice=own)
    assert {item["name"] for item in told.json()["output"]} == {"find"}
