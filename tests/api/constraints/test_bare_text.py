"""Strings without JSON's quotes are held to pattern, lengths and format, as those with them are."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.prompt.test_call_forms import made_tokenizer
from tinyllm.api.constraints.bare_text import AS_PATTERN
from tinyllm.api.constraints.call_forms import (
    FUNCTION_GEMMA,
    GEMMA4,
    GLM,
    HERMES,
    QWEN3_CODER,
    CallForm,
)
from tinyllm.api.constraints.grammar import FORMATS, Grammars, UnsupportedSchema
from tinyllm.api.constraints.tool_calls import calls_grammar
from tinyllm.api.contract.tools import Tool

TOKENIZER = made_tokenizer("")
GRAMMARS = Grammars(TOKENIZER, TOKENIZER.vocab_size, TOKENIZER.eos_ids)
FORMS = (QWEN3_CODER, GLM, FUNCTION_GEMMA, GEMMA4, HERMES)  # the last writes JSON
FORM = pytest.mark.parametrize("form", FORMS, ids=[form.name for form in FORMS])


def takes(form: CallForm, schema: dict[str, Any], value: str) -> bool:
    """Whether the grammar lets a model write a call whose one argument is `value`."""
    parameters = {"type": "object", "properties": {"a": {"type": "string", **schema}},
                  "required": ["a"], "additionalProperties": False}  # fmt: skip
    function = {"name": "f", "parameters": parameters}
    tool = Tool.model_validate({"type": "function", "function": function})
    text, grammar = (calls_grammar([tool], False, form=form, control=known)
                     for known in (None, TOKENIZER.special_tokens))  # fmt: skip
    matcher = GRAMMARS.compile(grammar, trial_text=text).matcher()
    for token in TOKENIZER.encode(form.write("f", {"a": value}), allow_special=True):
        if not matcher.allowed()[token]:
            return False
        matcher.accept(token)
    return matcher.accepting


@FORM
@pytest.mark.parametrize(
    ("schema", "fitting", "others"),
    [
        ({}, ["", "a b", "x\ny", "<p>"], []),
        ({"pattern": "^[A-Z]{3}-[0-9]+$"}, ["ABC-1", "XYZ-123"], ["abc-1", "ABC-", "ABC-1x", ""]),
        ({"pattern": "b+c"}, ["bc", "abbcd"], ["b", "cb", ""]),  # anywhere
        ({"pattern": "^a|b$"}, ["ax", "xb"], ["xa", "bx"]),
        ({"pattern": "^/usr/[^/]+$"}, ["/usr/bin"], ["/usr/", "/usr/a/b"]),
        ({"pattern": r"^\$[0-9]+\.[0-9]{2}$"}, ["$3.50"], ["3.50", "$3"]),
        ({"minLength": 3}, ["abc", "a\nbcd"], ["", "ab"]),
        ({"maxLength": 2}, ["", "ab", "éé"], ["abc"]),
        ({"minLength": 2, "maxLength": 3, "pattern": "^a"}, ["ab", "abc"], ["a", "ba", "abcd"]),
        ({"format": "date"}, ["2026-02-29", "2026-11-30"], ["2026-11-31", "tomorrow"]),
        ({"format": "made up"}, ["anything"], []),  # a note, as in JSON Schema
        ({"enum": ["ab", "b"]}, ["ab", "b"], ["a", "abc"]),
        ({"const": "x"}, ["x"], ["y"]),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_string_is_held_to_its_schema(
    form: CallForm, schema: dict[str, Any], fitting: list[str], others: list[str]
) -> None:
    assert [takes(form, schema, value) for value in fitting] == [True] * len(fitting)
    assert [takes(form, schema, value) for value in others] == [False] * len(others)


@pytest.mark.parametrize("form", FORMS[:-1], ids=[form.name for form in FORMS[:-1]])
def test_a_named_string_fits_the_rest_too(form: CallForm) -> None:
    schema = {"enum": ["ab", "b", "abc"], "maxLength": 2, "pattern": "^a"}
    assert [takes(form, schema, value) for value in ("ab", "b", "abc")] == [True, False, False]


@pytest.mark.parametrize("form", [QWEN3_CODER, GLM], ids=["qwen", "glm"])
def test_a_string_ends_with_its_first_end(form: CallForm) -> None:
    """Else what is read back would be the shorter one, which doesn't fit."""
    for inside in (form.pair_closing, form.pair_closing[:-1], "\n", "<", "</"):
        held = takes(form, {"minLength": 30}, f"ab{inside}{'c' * 30}")
        assert held is (inside != form.pair_closing)


@FORM
@pytest.mark.parametrize("pattern", ["(?=a)b", "(a)\\1", "("])
def test_a_pattern_that_cant_be_followed_is_refused(form: CallForm, pattern: str) -> None:
    with pytest.raises(UnsupportedSchema):
        takes(form, {"pattern": pattern}, "a")


def test_what_a_bare_string_cant_be_held_to_is_refused() -> None:
    with pytest.raises(UnsupportedSchema, match="anchor within"):
        takes(GLM, {"pattern": "(^a)b"}, "ab")
    with pytest.raises(UnsupportedSchema, match="anyOf beside a string's type"):
        takes(GLM, {"anyOf": [{"minLength": 3}, {"pattern": "x"}]}, "ab")
    with pytest.raises(UnsupportedSchema, match="no string fits"):
        takes(GLM, {"enum": ["a", "b"], "minLength": 2}, "ab")
    with pytest.raises(UnsupportedSchema, match="isn't a JSON Schema"):
        takes(GLM, {"minLength": "many"}, "ab")


# By format: texts that are such, and texts that aren't.
OF_FORMATS = {
    "date": (["2026-01-31", "2024-02-29"], ["2026-13-01", "2026-1-1"]),
    "time": (["23:59:59Z", "08:00:00.5+02:00"], ["24:00:00Z", "08:00"]),
    "date-time": (["2026-01-31T08:00:00Z"], ["2026-01-31 08:00", "2026-01-31T08:00:00"]),
    "duration": (["P1Y2M3D", "PT5M", "P2W", "P1DT12H"], ["P", "PT", "1D", "P1YT"]),
    "email": (["a.b+c@x-y.org"], ["a@", "@b", "a b@c.de", "a..b@c"]),
    "hostname": (["a", "a-b.example"], ["-a", "a_b", "a..b"]),
    "ipv4": (["127.0.0.1", "255.255.255.255"], ["256.0.0.1", "1.2.3"]),
    "ipv6": (["::", "::1", "fe80::1:2", "1:2:3:4:5:6:7:8", "1:2:3:4:5:6:7::"],
             ["1::2::3", "1:2:3:4:5:6:7", "12345::", "1:2:3:4:5:6:7:8::"]),
    "uuid": (["123e4567-e89b-12d3-a456-426614174000"], ["123e4567e89b12d3a456426614174000"]),
    "uri": (["https://a.b/c?d=e#f", "mailto:a@b.c"], ["a b:c", "//a.b", "x:y#z#"]),
}  # fmt: skip


@pytest.mark.parametrize("form", [QWEN3_CODER, HERMES], ids=["bare", "json"])
@pytest.mark.parametrize("name", sorted(FORMATS))
def test_formats_are_those_of_json(form: CallForm, name: str) -> None:
    assert AS_PATTERN.keys() == OF_FORMATS.keys() == FORMATS
    fitting, others = OF_FORMATS[name]
    assert [takes(form, {"format": name}, value) for value in fitting] == [True] * len(fitting)
    assert [takes(form, {"format": name}, value) for value in others] == [False] * len(others)
