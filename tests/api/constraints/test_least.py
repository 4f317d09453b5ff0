"""A short text for a schema: what it is, and that none takes long or becomes long."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tinyllm.api.constraints.least import least, openings
from tinyllm.api.limits import LEAST_LETTERS


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"enum": ["long", 1, "x"]}, "1"),
        ({"type": "array", "minItems": 3, "items": {"const": 7}}, "[7, 7, 7]"),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, '""'),
        ({"required": ["a"], "properties": {"a": {"type": "boolean"}}}, '{"a": true}'),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"type": "string", "minLength": 2}}}, '"aa"'),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, "0"),  # without end
    ],
)
def test_texts(schema: dict[str, Any], text: str) -> None:
    assert least(schema, schema) == text


def nested(levels: int) -> dict[str, Any]:
    """64 to the power of `levels` numbers."""
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(levels):
        schema = {"type": "array", "minItems": 64, "items": schema}
    return schema


def again(keyword: str, n: int) -> dict[str, Any]:
    """`n` times itself, at each level."""
    own = [{"$ref": "#/$defs/a"}] * n
    if keyword == "required":
        names = [f"p{i}" for i in range(n)]
        node: dict[str, Any] = {"properties": dict(zip(names, own, strict=True)), "required": names}
    else:
        node = {keyword: own}
    return {"$ref": "#/$defs/a", "$defs": {"a": node}}


BOMBS = {
    "lists of lists": nested(10),
    "options of options": again("anyOf", 40),
    "all of all": again("allOf", 40),
    "members of members": again("required", 40),
    "a long constant again and again": {
        "properties": {str(i): {"$ref": "#/$defs/a"} for i in range(1000)},
        "required": [str(i) for i in range(1000)],
        "$defs": {"a": {"const": "x" * 100_000}},
    },
    "long options again and again": {
        "properties": {str(i): {"$ref": "#/$defs/a"} for i in range(1000)},
        "$defs": {"a": {"enum": ["x" * 100] * 1000}},
    },
}


@pytest.mark.parametrize("name", BOMBS)
def test_small_schemas_of_very_many_or_very_long_texts(name: str) -> None:
    """Without bounds the first of them takes a terabyte, the others hours."""
    schema = BOMBS[name]
    text = least(schema, schema)
    assert isinstance(json.loads(text), (int, list, dict))
    assert len(text) < 100_000 + 20 * LEAST_LETTERS
    assert sum(map(len, openings(schema, schema))) < 2_000_000
