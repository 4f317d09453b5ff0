"""/responses: stateless and on kept ones, whole and streamed, in the shape that clients read."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from tests.api.support import MODEL, PREFIXES, Live, O, S
from tinyllm.api.contract.fields import read
from tinyllm.api.contract.responses import ResponsesRequest, as_chat
from tinyllm.api.house.kept_responses import KeptResponses
from tinyllm.api.limits import MAX_RESPONSES

TOOL = {
    "type": "function",
    "name": "get_weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
ANSWER = "The capital of France is Paris."


def respond(server: Live, prefix: str = O, **body: Any) -> dict[str, Any]:
    response = server.post(f"{prefix}/responses", {"model": MODEL, "temperature": 0, **body})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def events(server: Live, prefix: str = O, **body: Any) -> list[dict[str, Any]]:
    """A stream's events; each line's name is checked against its data."""
    asked = {"model": MODEL, "temperature": 0, "stream": True, **body}
    response = server.post(f"{prefix}/responses", asked)
    assert response.status_code == 200, response.text
    found = []
    for block in response.text.strip().split("\n\n"):
        if block.startswith(":"):  # a comment that keeps a slow stream alive
            continue
        name, data = block.split("\n", 1)
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    return found


def client(server: Live, prefix: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.url + prefix, api_key="none", max_retries=0)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_the_openai_client_reads_it(scripted: Live, prefix: str) -> None:
    with client(scripted, prefix) as api:
        first = api.responses.create(model=MODEL, input="Hi", temperature=0)
        assert first.output_text == ANSWER and first.status == "completed"
        assert first.usage is not None and first.usage.output_tokens == 8
        with api.responses.stream(model=MODEL, input="Hi", temperature=0) as stream:
            for _ in stream:
                pass
            assert stream.get_final_response().output_text == ANSWER
        assert api.responses.retrieve(first.id).output_text == ANSWER
        api.responses.delete(first.id)
        with pytest.raises(openai.NotFoundError):
            api.responses.retrieve(first.id)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_conversation_goes_on_by_its_id(scripted: Live, prefix: str) -> None:
    first = respond(scripted, prefix, input="Hi", instructions="Be brief.")
    second = respond(scripted, prefix, input="And now?", previous_response_id=first["id"])
    spelled = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": [{"type": "output_text", "text": ANSWER}]},
        {"role": "user", "content": "And now?"},
    ]
    whole = respond(scripted, prefix, input=spelled)
    # Instructions are for one response alone, so the two prompts are the same.
    assert second["usage"]["input_tokens"] == whole["usage"]["input_tokens"]
    messages = [
        {"role": m["role"], "content": m["content"] if isinstance(m["content"], str) else ANSWER}
        for m in spelled
    ]
    chat = scripted.chat(prefix, {"messages": messages}).json()
    assert whole["usage"]["input_tokens"] == chat["usage"]["prompt_tokens"]


def test_what_is_not_to_be_stored_is_not(scripted: Live) -> None:
    id = respond(scripted, input="Hi", store=False)["id"]
    assert scripted.http.get(f"{O}/responses/{id}").status_code == 404
    assert scripted.http.delete(f"{O}/responses/{id}").status_code == 404


def test_a_streams_events_are_the_documented_ones_in_order(scripted: Live) -> None:
    found = events(scripted, input="Hi")
    kinds = [event["type"] for event in found]
    deltas = [event for event in found if event["type"] == "response.output_text.delta"]
    assert kinds == [
        "response.created", "response.in_progress", "response.output_item.added",
        "response.content_part.added", *["response.output_text.delta"] * len(deltas),
        "response.output_text.done", "response.content_part.done", "response.output_item.done",
        "response.completed",
    ]  # fmt: skip
    assert "".join(delta["delta"] for delta in deltas) == ANSWER
    whole = found[-1]["response"]
    assert found[0]["response"]["output"] == [] and found[0]["response"]["usage"] is None
    assert found[-2]["item"] == whole["output"][0]
    assert found[2]["item"]["content"] == [] and found[3]["part"]["text"] == ""


NAMED = {"type": "function", "name": TOOL["name"]}
ALLOWED = {"type": "allowed_tools", "mode": "required", "tools": [NAMED]}


@pytest.mark.parametrize("choice", ["required", NAMED, ALLOWED])
def test_a_call_and_what_came_of_it(scripted: Live, choice: Any) -> None:
    tools = [{**TOOL, "name": "other"}, TOOL] if choice is ALLOWED else [TOOL]
    body = {"input": "Weather?", "tools": tools, "tool_choice": choice}
    found = events(scripted, **body)
    arguments = [e for e in found if e["type"].startswith("response.function_call_arguments")]
    assert "".join(e["delta"] for e in arguments[:-1]) == arguments[-1]["arguments"]
    [call] = found[-1]["response"]["output"]
    assert call["type"] == "function_call" and json.loads(call["arguments"]) == {"city": "Rome"}
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "sunny"}
    stateless = [{"role": "user", "content": "Weather?"}, call, result]
    referred = [
        {"role": "user", "content": "Weather?"},
        {"type": "item_reference", "id": call["id"]},
        result,
    ]
    answers = [
        respond(scripted, input=stateless, tools=[TOOL]),
        respond(scripted, input=referred, tools=[TOOL]),
        respond(scripted, input=[result], tools=[TOOL],
                previous_response_id=found[-1]["response"]["id"]),
    ]  # fmt: skip
    assert len({answer["usage"]["input_tokens"] for answer in answers}) == 1
    assert all(answer["output"][0]["type"] == "message" for answer in answers)


def test_a_thought_is_an_item_of_its_own(scripted: Live) -> None:
    assert scripted.runner is not None
    found = events(scripted, input="Hi", reasoning={"effort": "low"}, max_output_tokens=20)
    kinds = [item["type"] for item in found[-1]["response"]["output"]]
    assert kinds == ["reasoning", "message"]
    thought = "".join(e["delta"] for e in found if e["type"] == "response.reasoning_text.delta")
    assert thought == found[-1]["response"]["output"][0]["content"][0]["text"] != ""
    assert found[-1]["response"]["usage"]["output_tokens_details"]["reasoning_tokens"] > 0


def test_a_format_is_held_to(scripted: Live) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    wanted = {"format": {"type": "json_schema", "name": "answer", "schema": schema}}
    answer = respond(scripted, input="Hi", text=wanted)
    assert set(json.loads(answer["output"][0]["content"][0]["text"])) == {"ok"}
    assert answer["text"] == wanted


def test_a_limit_makes_it_incomplete(scripted: Live) -> None:
    answer = respond(scripted, input="Hi", max_output_tokens=3)
    assert answer["status"] == "incomplete"
    assert answer["incomplete_details"] == {"reason": "max_output_tokens"}
    assert answer["output"][0]["status"] == "incomplete"


def test_log_probabilities_are_given_when_included(scripted: Live) -> None:
    include = ["message.output_text.logprobs"]
    answer = respond(scripted, input="Hi", include=include, top_logprobs=2)
    logprobs = answer["output"][0]["content"][0]["logprobs"]
    assert "".join(entry["token"] for entry in logprobs) == ANSWER
    assert all(len(entry["top_logprobs"]) == 2 for entry in logprobs)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": 5}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"type": "web_search_call"}]}, "input[0].type"),
        ({"input": [{"type": "item_reference", "id": "msg_x"}]}, "input[0].id"),
        ({"input": [{"role": "elf", "content": "x"}]}, "input[0]"),
        ({"input": [{"role": "user", "content": 5}]}, "input[0].content"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file"}]}]},
            "input[0].content[0].type",
        ),
        (
            {"input": [{"type": "function_call_output", "call_id": "q", "output": "x"}]},
            "input[0]",
        ),
        ({"input": "x", "tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"input": "x", "tools": [TOOL, TOOL]}, "tools[1].name"),
        ({"input": "x", "background": True}, "background"),
        ({"input": "x", "conversation": "c"}, "conversation"),
        ({"input": "x", "prompt": {"id": "p"}}, "prompt"),
        ({"input": "x", "n": 2}, "n"),
        ({"input": "x", "max_tokens": 9}, "max_tokens"),
        ({"input": "x", "messages": []}, "messages"),
        ({"input": "x", "reasoning_effort": "low"}, "reasoning_effort"),
        ({"input": "x", "guided_json": {"type": "objectt"}}, "guided_json"),
        ({"input": "x", "guided_json": {}, "text": {"format": {"type": "json_object"}}},
         "text.format"),
        (
            {"input": "x", "text": {"format": {"type": "json_schema", "name": "a"}}},
            "text.format.schema",
        ),
        (
            {"input": "x", "text": {"format": {"type": "json_schema", "name": "a",
                                               "schema": {"type": "objectt"}}}},
            "text.format.schema",
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("prefix", PREFIXES)
def test_what_is_not_supported_is_refused_by_name(
    scripted: Live, prefix: str, body: dict[str, Any], param: str
) -> None:
    response = scripted.post(f"{prefix}/responses", {"model": MODEL, **body})
    assert response.status_code == (422 if prefix == S else 400)
    assert response.json()["error"]["param"] == param


def test_what_has_no_effect_is_named(scripted: Live) -> None:
    asked = {"model": MODEL, "input": "x", "text": {"verbosity": "low", "more": 1},
             "reasoning": {"summary": "auto"}, "include": ["reasoning.encrypted_content"],
             "service_tier": "auto"}  # fmt: skip
    answer = scripted.post(f"{O}/responses", asked)
    named = set(answer.headers["X-Ignored-Params"].split(", "))
    assert named == {"service_tier", "include[0]", "text.verbosity", "text.more",
                     "reasoning.summary"}  # fmt: skip


@pytest.mark.parametrize("name", ["", "]", ".", "tools[9].x", "tools[99999999].x", "messages[4]"])
def test_a_made_up_field_may_have_any_name(scripted: Live, name: str) -> None:
    answer = scripted.post(f"{O}/responses", {"model": MODEL, "input": "x", name: 1})
    assert answer.status_code == 200, answer.text
    tool = {"type": "function", "name": "f", "parameters": {"type": "object"}, name: 1}
    answer = scripted.post(f"{O}/responses", {"model": MODEL, "input": "x", "tools": [tool]})
    assert answer.status_code == 200, answer.text


def test_another_name_of_a_format_is_repeated_as_the_format(scripted: Live) -> None:
    schema = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"],
              "additionalProperties": False}  # fmt: skip
    for more in ({"guided_json": schema}, {"structured_outputs": {"json": schema}}):
        answer = respond(scripted, input="x", **more)
        assert answer["text"]["format"]["schema"] == schema
        assert json.loads(answer["output"][0]["content"][0]["text"]) == {"a": 1}


def test_an_unknown_previous_response_is_named(scripted: Live) -> None:
    body = {"model": MODEL, "input": "x", "previous_response_id": "resp_x"}
    error = scripted.post(f"{O}/responses", body).json()["error"]
    assert error["code"] == "previous_response_not_found"


def test_kept_responses_are_bounded_by_key() -> None:
    now = [0.0]
    kept = KeptResponses(clock=lambda: now[0])
    for i in range(MAX_RESPONSES + 5):
        kept.put("a", {"id": f"r{i}", "output": []}, [])  # type: ignore[typeddict-item]
    kept.put("b", {"id": "mine", "output": []}, [])  # type: ignore[typeddict-item]
    assert kept.get("a", "r4") is None and kept.get("a", "r5") is not None
    assert kept.get("b", "mine") is not None and kept.get("a", "mine") is None
    now[0] = 25 * 3600
    assert kept.get("b", "mine") is None and not kept.delete("b", "mine")


def test_items_go_with_their_response() -> None:
    kept = KeptResponses()
    item = {"id": "i1", "type": "message"}
    kept.put("a", {"id": "r1", "output": [item]}, [])  # type: ignore[typeddict-item, list-item]
    assert kept.item("a", "i1") == item and kept.item("b", "i1") is None
    assert kept.delete("a", "r1") and kept.item("a", "i1") is None


def test_going_on_changes_nothing_that_is_kept() -> None:
    """A call that comes behind a kept answer with calls isn't added to that answer too."""

    def call(id: str) -> dict[str, Any]:
        return {"type": "function_call", "call_id": id, "name": "f", "arguments": "{}"}

    function = {"name": "f", "arguments": "{}"}
    calls = [{"id": "1", "type": "function", "function": function}]
    history = [{"role": "assistant", "content": None, "tool_calls": calls}]
    output = {"type": "function_call_output", "call_id": "2", "output": "y"}
    asked = read(ResponsesRequest, {"model": "m", "input": [call("2"), output]})
    chat, kept, _ = as_chat(asked, history, lambda id: None, 8192)
    assert [c["id"] for c in kept[0]["tool_calls"]] == ["1", "2"]
    assert [c["id"] for c in history[0]["tool_calls"]] == ["1"]
    assert len(chat.messages) == 2
