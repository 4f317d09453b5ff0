"""Keywords that can't be held: refused with strict, else left out by name, whatever is asked."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.api.support import PREFIXES, Live
from tinyllm.api.constraints.grammar import Grammars, UnsupportedSchema, json_grammar
from tinyllm.api.prompt.relax import UNHELD
from tinyllm.tokenizer import Tokenizer

TAGS = {"type": "array", "items": {"type": "string", "maxLength": 3}, "uniqueItems": True,
        "maxItems": 2}  # fmt: skip
WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def tool(name: str, parameters: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters, **more}}


def tags(**more: Any) -> dict[str, Any]:
    return tool("tag", {"type": "object", "properties": {"tags": TAGS, "not": TAGS}}, **more)


@pytest.mark.parametrize("choice", ["auto", "none", "required"])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_one_tools_keyword_is_left_out_by_name(scripted: Live, prefix: str, choice: str) -> None:
    body = {"tools": [tool("weather", WEATHER), tags()], "tool_choice": choice}
    response = scripted.chat(prefix, body)
    assert response.status_code == 200
    place = "tools[1].function.parameters.properties"
    named = set(response.headers["x-relaxed-schema"].split(", "))
    assert named == {f"{place}.tags.uniqueItems", f"{place}.not.uniqueItems"}


@pytest.mark.parametrize("choice", ["auto", "none", "required"])
def test_with_strict_it_is_refused_up_front(scripted: Live, choice: str) -> None:
    body = {"tools": [tool("weather", WEATHER), tags(strict=True)], "tool_choice": choice}
    response = scripted.chat("/v1", body)
    assert response.status_code == 400
    assert response.json()["error"]["param"].endswith(".uniqueItems")


def test_a_formats_keyword_is_treated_alike(scripted: Live) -> None:
    def wanted(strict: bool) -> dict[str, Any]:
        named = {"name": "tags", "schema": TAGS, "strict": strict}
        return {"response_format": {"type": "json_schema", "json_schema": named}}

    response = scripted.chat("/v1", wanted(False))
    assert response.headers["x-relaxed-schema"] == "response_format.json_schema.schema.uniqueItems"
    answer = json.loads(response.json()["choices"][0]["message"]["content"])
    assert all(len(tag) <= 3 for tag in answer)
    assert scripted.chat("/v1", wanted(True)).status_code == 400


@pytest.mark.parametrize("keyword", sorted(UNHELD - {"minContains", "maxContains"}))
def test_the_list_is_the_grammars_own(tokenizer: Tokenizer, keyword: str) -> None:
    value = {"uniqueItems": True, "dependentRequired": {"a": ["b"]}}.get(keyword, {"type": "null"})
    grammars = Grammars(tokenizer, tokenizer.vocab_size, tokenizer.eos_ids)
    schema = {"type": ["object", "array"], keyword: value}
    with pytest.raises(UnsupportedSchema):
        grammars.compile(json_grammar(schema))
