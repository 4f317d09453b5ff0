"""Schemas as masks: what the grammar lets through fits, and what it can't hold is refused."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyllm.api.constraints import grammar
from tinyllm.api.constraints.grammar import Grammars, UnsupportedSchema, json_grammar, prepared
from tinyllm.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def grammars(tokenizer: Tokenizer) -> Grammars:
    return Grammars(tokenizer, tokenizer.vocab_size, tokenizer.eos_ids, keep=4)


def random_walk(
    grammars: Grammars, tokenizer: Tokenizer, schema: dict[str, Any], seed: int
) -> str | None:
    """Text drawn at random from what is allowed; None if it doesn't end in time."""
    rng = np.random.default_rng(seed)
    matcher = grammars.compile(json_grammar(schema)).matcher()
    tokens: list[int] = []
    for _ in range(400):
        allowed = np.flatnonzero(matcher.allowed())
        assert len(allowed), matcher.error
        forced = matcher.forced()
        # Short tokens, and those that close something, so that it comes to an end.
        token = forced[0] if forced else int(rng.choice(allowed))
        ends = [t for t in allowed if tokenizer.token_bytes(int(t)) in (b'"', b"}", b"]", b"0")]
        if not forced and ends and rng.random() < 0.7:
            token = int(rng.choice(ends))
        assert token in allowed
        if token in tokenizer.eos_ids:
            return tokenizer.decode(tokens)
        tokens.append(token)
        if matcher.accept(token):
            return tokenizer.decode(tokens)
    return None


LEAVES = st.sampled_from(
    [{"type": "string"}, {"type": "integer"}, {"type": "number"}, {"type": "boolean"},
     {"type": "null"}, {"enum": ["a", "b", 3]}, {"const": "x"},
     {"type": "string", "maxLength": 4}, {"type": "integer", "minimum": -5, "maximum": 20}]
)  # fmt: skip
SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(lambda i, n: {"type": "array", "items": i, "maxItems": n}, inner,
                  st.integers(0, 3)),
        st.builds(lambda a: {"anyOf": a}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda p: {"type": "object", "properties": p, "required": list(p)[:1]},
                  st.dictionaries(st.text("abc", min_size=1, max_size=3), inner, max_size=3)),
    ),
    max_leaves=6,
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(schema=SCHEMAS, seed=st.integers(0, 99))
def test_whatever_is_drawn_fits(
    grammars: Grammars, tokenizer: Tokenizer, schema: dict[str, Any], seed: int
) -> None:
    text = random_walk(grammars, tokenizer, schema, seed)
    if text is not None:
        jsonschema.validate(json.loads(text), schema)


def test_compiled_grammars_are_kept_within_a_bound(grammars: Grammars) -> None:
    for n in range(10):
        grammars.compile(json_grammar({"const": n}))
    assert len(grammars._compiled) == 4
    assert grammars.compile(json_grammar({"const": 0})).matcher().allowed().any()  # compiled anew


@pytest.mark.parametrize(
    ("schema", "word"),
    [({"not": {}}, "not"), ({"type": "x"}, "x"), ({"type": "array", "uniqueItems": True}, "unique"),
     ({"type": "string", "pattern": "(?!a)"}, "look"), ({"$ref": "http://x/y"}, "http://x/y")],
)  # fmt: skip
def test_the_error_says_what(grammars: Grammars, schema: dict[str, Any], word: str) -> None:
    with pytest.raises(UnsupportedSchema, match=word):
        grammars.compile(json_grammar(schema))


def test_too_deep_and_too_large() -> None:
    schema: dict[str, Any] = {}
    for _ in range(60):
        schema = {"items": schema}
    with pytest.raises(UnsupportedSchema, match="deep"):
        prepared(schema)
    with pytest.raises(UnsupportedSchema, match="bytes"):
        prepared({"enum": ["x" * grammar.MAX_SCHEMA_BYTES]})


def test_a_caller_cannot_set_the_grammars_options() -> None:
    made = json.loads(prepared({"type": "object", "x-guidance": {"lenient": True}}))
    assert made["x-guidance"]["lenient"] is False


def test_objects_are_closed_unless_they_say_otherwise() -> None:
    made = json.loads(prepared({"type": "object", "properties": {"a": {}, "b": {"$ref": "#"}}}))
    assert made["additionalProperties"] is False and made["required"] == ["a"]
    opened = {"type": "object", "properties": {"a": {}}, "additionalProperties": True}
    assert json.loads(prepared(opened))["additionalProperties"] is True
    one = {"type": "object", "properties": {"a": {}}}
    assert "additionalProperties" not in prepared({"allOf": [one, {"minProperties": 1}]})
    assert json.loads(prepared({"allOf": [one]}))["additionalProperties"] is False


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "format": "password"},
        {"type": "array", "uniqueItems": False, "items": {"type": "null"}},
        {"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": True},
        {"type": "object", "propertyNames": {}},
        {"type": "object", "propertyNames": True},
        {"allOf": [{"type": "integer"}], "title": "one of one"},
        {"type": "object", "properties": {"format": {"type": "string", "format": "int64"}}},
        {"type": "object", "properties": {"a": True, "b": False}},
        {"type": "object", "properties": {"a": {}}, "required": ["a", "other"]},
    ],
    ids=repr,
)
def test_what_says_nothing_is_no_obstacle(grammars: Grammars, schema: dict[str, Any]) -> None:
    grammars.compile(json_grammar(schema))
