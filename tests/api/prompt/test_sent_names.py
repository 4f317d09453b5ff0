"""What a request is told, it is told by the names that it sent, whatever they are read as."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.support import MODEL, PREFIXES, Live
from tinyllm.api.constraints.guides import Guides
from tinyllm.api.contract.errors import invalid
from tinyllm.api.contract.responses import Places

Schema = dict[str, Any]

SHAPES: dict[str, dict[str, Any]] = {
    "chat/completions": {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 24},
    "completions": {"prompt": "Hi", "max_tokens": 24},
    "responses": {"input": "Hi", "max_output_tokens": 24},
}
PLACES = ["guided_json", "json_schema", "structured_outputs.json", "response_format.schema",
          "response_format.json_schema.schema"]  # fmt: skip
SENT = [(path, place) for path in SHAPES for place in PLACES] + [
    ("responses", "text.format.schema")
]


def sent(place: str, schema: Schema) -> Schema:
    """The schema at that place of a request."""
    named = {"name": "a", "schema": schema}
    return {
        "guided_json": {"guided_json": schema},
        "json_schema": {"json_schema": schema},
        "structured_outputs.json": {"structured_outputs": {"json": schema}},
        "response_format.schema": {"response_format": {"type": "json_object", "schema": schema}},
        "response_format.json_schema.schema": {
            "response_format": {"type": "json_schema", "json_schema": named}
        },
        "text.format.schema": {"text": {"format": {"type": "json_schema", **named}}},
    }[place]


def asked(server: Live, prefix: str, path: str, body: dict[str, Any]) -> Any:
    return server.post(f"{prefix}/{path}", {"model": MODEL, **SHAPES[path], **body})


@pytest.mark.parametrize(("path", "place"), SENT)
@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_schema(
    scripted: Live, prefix: str, path: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That isn't one, one that is relaxed, and one whose grammar is given up underway."""
    refused = asked(scripted, prefix, path, sent(place, {"type": "objectt"}))
    assert refused.json()["error"]["param"] == place
    if prefix == PREFIXES[0]:
        assert refused.json()["detail"][0]["loc"] == ["body", *place.split(".")]
    relaxed = asked(scripted, prefix, path, sent(place, {"type": "boolean", "not": {}}))
    assert relaxed.headers["x-relaxed-schema"] == f"{place}.not"
    monkeypatch.setattr(Guides, "error", lambda self, index: "given up")
    refused = asked(scripted, prefix, path, sent(place, {"type": "boolean"}))
    field = "text.format" if place.startswith("text") else place.split(".")[0]
    assert refused.json()["error"]["param"] == field


@pytest.mark.parametrize("place", PLACES)
def test_a_format_where_a_text_is_gone_on_with(scripted: Live, place: str) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "I"}]
    body = {"messages": messages, "continue_final_message": True, **sent(place, {})}
    error = asked(scripted, "/v1", "chat/completions", body).json()["error"]
    assert error["param"] == place.split(".")[0]


@pytest.mark.parametrize(
    ("path", "limit"),
    [("chat/completions", "max_tokens"), ("chat/completions", "max_completion_tokens"),
     ("completions", "max_tokens"), ("responses", "max_output_tokens")],
)  # fmt: skip
def test_too_few_tokens(scripted: Live, path: str, limit: str) -> None:
    shape = {**SHAPES[path], **sent("guided_json", {"type": "string", "minLength": 9})}
    shape = {name: value for name, value in shape.items() if not name.startswith("max_")}
    error = scripted.post(f"/v1/{path}", {"model": MODEL, **shape, limit: 2}).json()["error"]
    assert error["param"] == limit and error["message"].startswith(f"{limit} leaves 2 tokens")


def test_more_thought_than_tokens(scripted: Live) -> None:
    body = {**SHAPES["chat/completions"], "max_tokens": None, "max_completion_tokens": 9,
            "reasoning": {"max_tokens": 9}}  # fmt: skip
    error = asked(scripted, "/v1", "chat/completions", body).json()["error"]
    assert "less than max_completion_tokens (9)" in error["message"]


def test_a_response_of_its_own_names() -> None:
    """Where a chat's name is told as one string, or in a message."""
    places = Places([("input", 3)], [("tools", 1, "tools", 2)], ("text", "format", "schema"))
    name = "tools[0].function.strict"
    error = places.error(invalid(f"{name} is not a known parameter.", name))
    assert error.param == "tools[1].tools[2].strict"
    assert error.message == "tools[1].tools[2].strict is not a known parameter."
    for made_up in ("tools[9].x", "messages[0].name"):
        assert places.error(invalid("It is unknown.", made_up)).param == made_up
        assert places.name(made_up) == made_up
    assert places.name("reasoning_effort") == "reasoning.effort"
