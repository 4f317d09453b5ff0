"""FunctionGemma's notation of arguments: held to a schema, whatever the model would like to say."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.api.prompt.test_call_forms import made_tokenizer
from tinyllm.api.constraints.call_forms import FUNCTION_GEMMA
from tinyllm.api.constraints.grammar import Grammars, UnsupportedSchema
from tinyllm.api.constraints.quoted_values import QuotedValues, Rules, write_pairs
from tinyllm.api.constraints.tool_calls import calls_grammar
from tinyllm.api.contract.tools import Tool

TOKENIZER = made_tokenizer("")
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "place": {"$ref": "#/$defs/place"},
        "days": {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 2},
        "unit": {"enum": ["C", "F", 3, None]},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "a key: odd": {"type": "boolean"},
    },
    "required": ["place", "unit"],
    "additionalProperties": False,
    "$defs": {"place": {"type": "object", "properties": {"x": {"type": "number"}, "y": {}},
                        "required": ["x"]}},
}  # fmt: skip


def takes(schema: dict[str, Any], arguments: Any) -> bool:
    """Whether a call with these arguments is one that the grammar lets a model write."""
    function = {"name": "f", "parameters": schema}
    tool = Tool.model_validate({"type": "function", "function": function})
    control = TOKENIZER.special_tokens
    text, grammar = (calls_grammar([tool], False, form=FUNCTION_GEMMA, control=known)
                     for known in (None, control))  # fmt: skip
    grammars = Grammars(TOKENIZER, TOKENIZER.vocab_size, TOKENIZER.eos_ids)
    matcher = grammars.compile(grammar, trial_text=text).matcher()
    for token in TOKENIZER.encode(FUNCTION_GEMMA.write("f", arguments), allow_special=True):
        if not matcher.allowed()[token]:
            return False
        matcher.accept(token)
    return matcher.accepting


@pytest.mark.parametrize(
    ("arguments", "fits"),
    [
        ({"place": {"x": 1.5}, "unit": "C"}, True),
        ({"place": {"x": 1, "y": {"any": ["thing", None]}}, "unit": 3, "days": [1, 2]}, True),
        ({"place": {"x": 1}, "unit": None, "note": 'a "b", {c}', "a key: odd": True}, True),
        ({"place": {"x": 1}, "unit": "C", "note": None}, True),
        ({"place": {"x": 1}}, False),  # unit is missing
        ({"place": {"x": "1"}, "unit": "C"}, False),
        ({"place": {"x": 1}, "unit": "K"}, False),
        ({"place": {"x": 1}, "unit": "C", "days": []}, False),
        ({"place": {"x": 1}, "unit": "C", "days": [1, 2, 3]}, False),
        ({"place": {"x": 1}, "unit": "C", "more": 1}, False),
    ],
)
def test_a_call_is_held_to_its_schema(arguments: Any, fits: bool) -> None:
    assert takes(SCHEMA, arguments) is fits


def test_no_parameters_and_any() -> None:
    none: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
    assert takes(none, {}) and not takes(none, {"a": 1})
    assert takes({"type": "object"}, {"a": [1, "b"], "c": {}})


def test_a_schema_within_itself() -> None:
    tree = {"type": "object", "properties": {"n": {"type": "integer"}, "next": {"$ref": "#"}},
            "required": ["n"]}  # fmt: skip
    assert takes(tree, {"n": 1, "next": {"n": 2, "next": {"n": 3}}})
    assert not takes(tree, {"n": 1, "next": {"next": {"n": 3}}})


def test_a_place_that_is_referred_to_often_is_one_rule() -> None:
    """Else thirty of them, each with two of the next, would be a billion."""
    chain = {f"d{i}": {"type": "object", "properties": {"a": {"$ref": f"#/$defs/d{i + 1}"},
                                                        "b": {"$ref": f"#/$defs/d{i + 1}"}}}
             for i in range(30)}  # fmt: skip
    whole = {"properties": {"top": {"$ref": "#/$defs/d0"}}, "$defs": {**chain, "d30": {}}}
    rules = Rules("x", '"q"', whole)
    rules.pairs(whole)
    assert len(rules.rules) < 300


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"a": {"$ref": "#/$defs/none"}}},
        {"properties": {"a": {"type": "array", "minItems": "two"}}},
        {"properties": {"a": {"type": "object", "properties": [1]}}},
        {"properties": {"a": 3}},
    ],
)
def test_what_is_no_schema_is_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedSchema):
        takes(schema, {})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("city:<escape>Ro}me<escape>,n:2}", {"city": "Ro}me", "n": 2}),
        ("a:[<escape><escape>,true],b:{c:null}}", {"a": ["", True], "b": {"c": None}}),
        ("a:rome}", {"a": "rome"}),  # a word without its quotes
        ("}", {}),
    ],
)
def test_reading_letter_by_letter(text: str, said: Any) -> None:
    reader, held, out = QuotedValues("<escape>"), "", ""
    for letter in text:
        held += letter
        more, used = reader.scan(held)
        out, held = out + more, held[used:]
    assert reader.done and json.loads(out) == said and held == "}"
    assert "rome" in text or write_pairs(said, "<escape>") + "}" == text
