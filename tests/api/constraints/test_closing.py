"""Structured answers end: every budget from the shortest answer on gives JSON that fits."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import numpy as np
import pytest

from tests.api.support import PREFIXES, Live
from tinyllm.api.constraints.closing import Format, TokenForms, margin_of, strings_are_free
from tinyllm.api.constraints.grammar import Grammars, json_grammar
from tinyllm.api.constraints.guides import Guides
from tinyllm.api.constraints.json_text import JsonText
from tinyllm.tokenizer import Tokenizer

FORMATS = ["date", "date-time", "time", "uuid", "email", "duration"]


@pytest.fixture(scope="module")
def grammars(tokenizer: Tokenizer) -> Grammars:
    return Grammars(tokenizer, tokenizer.vocab_size, tokenizer.eos_ids)


@pytest.fixture(scope="module")
def forms(grammars: Grammars, tokenizer: Tokenizer) -> TokenForms:
    return TokenForms(grammars.tokens, tokenizer.vocab_size)


def random_schema(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    kinds = ["integer", "number", "string", "boolean", "enum"]
    if depth < 3:
        kinds += [
            "null",
            "array",
            "object",
            "object",
            "anyOf",
            "format",
            "length",
            "pattern",
            "range",
        ]
    kind = rng.choice(kinds)
    if kind == "enum":
        return {"enum": [rng.choice(["red", "green", 1, None, "a b"]) for _ in range(2)]}
    if kind == "array":
        items = random_schema(rng, depth + 1)
        return {
            "type": "array",
            "items": items,
            "minItems": rng.choice([0, 0, 1, 2]),
            "maxItems": 4,
        }
    if kind == "object":
        names = rng.sample(["name", "age", "the_address", "x", "kind of"], rng.randint(1, 4))
        return {
            "type": "object",
            "properties": {name: random_schema(rng, depth + 1) for name in names},
            "required": [name for name in names if rng.random() < 0.6],
            "additionalProperties": False,
        }
    if kind == "anyOf":
        return {"anyOf": [random_schema(rng, depth + 1), {"type": "null"}]}
    if kind == "format":
        return {"type": "string", "format": rng.choice(FORMATS)}
    if kind == "length":
        return {"type": "string", "maxLength": 8, "minLength": rng.choice([0, 3])}
    if kind == "pattern":
        return {"type": "string", "pattern": rng.choice(["^[a-z]{3}-[0-9]+$", "^a*b$"])}
    if kind == "range":
        return {"type": rng.choice(["integer", "number"]), "minimum": 1000, "maximum": 99999}
    return {"type": kind}


def answer(
    format: Format, tokenizer: Tokenizer, forms: TokenForms, budget: int, style: str, seed: int
) -> str:
    """A text under the format, by somebody who would never end it."""
    eos = frozenset(tokenizer.eos_ids)
    guide = Guides(tokenizer, None, format, (), eos, budget)(0)
    rng = np.random.default_rng(seed)
    likes = rng.normal(0, 3, tokenizer.vocab_size)
    if style == "digits":
        likes = forms.leading_digits + rng.random(tokenizer.vocab_size)
    likes[list(eos)] = -100
    out: list[int] = []
    for _ in range(budget):
        forced = guide.forced()
        if forced:
            token = int(forced[0])
        else:
            allowed = guide.allowed()
            assert allowed is not None
            ids = np.flatnonzero(allowed)
            token = int(rng.choice(ids) if style == "chance" else ids[np.argmax(likes[ids])])
        over = guide.accept(token)
        if token not in eos:
            out.append(token)
        if over:
            break
    return tokenizer.decode(out)


@pytest.mark.parametrize("seed", range(24))
def test_every_budget_gives_what_parses_and_fits(
    grammars: Grammars, forms: TokenForms, tokenizer: Tokenizer, seed: int
) -> None:
    schema = random_schema(random.Random(seed))
    format = Format(
        grammars.compile(json_grammar(schema)), forms,
        margin_of([schema], lambda text: len(tokenizer.encode(text))), strings_are_free([schema]),
    )  # fmt: skip
    shortest = format.shortest()
    assert shortest > 0
    for budget, style in zip(
        (shortest, shortest + 1, shortest + 5, 2 * shortest + 20, 120),
        ("digits", "chance", "likes", "digits", "chance"),
        strict=True,
    ):
        text = answer(format, tokenizer, forms, budget, style, seed)
        jsonschema.validate(json.loads(text), schema)


def test_numbers_are_bounded_and_their_exponents(
    grammars: Grammars, forms: TokenForms, tokenizer: Tokenizer
) -> None:
    for kind in ("integer", "number"):
        schema = {"type": kind}
        format = Format(grammars.compile(json_grammar(schema)), forms, 6, True)
        text = answer(format, tokenizer, forms, 400, "digits", 0)
        mantissa, _, exponent = text.lower().partition("e")
        assert sum(letter.isdigit() for letter in mantissa) <= 16
        assert sum(letter.isdigit() for letter in exponent) <= 2
        assert float(text) == json.loads(text)


def test_where_a_text_is() -> None:
    text = JsonText()
    text.push(b'<tool_call>\n{"a\\"1": 12')
    assert text.in_number and text.n_digits == 2 and not text.in_string
    text.push(b".5e3")
    assert text.in_exponent and text.n_digits == 1
    text.push(b', "b": "1')
    assert text.in_string and not text.in_number


SCHEMA = {
    "type": "object",
    "properties": {"population": {"type": "number"}, "name": {"type": "string"}},
    "required": ["population", "name"],
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_an_answer_that_is_cut_parses_and_says_so(
    scripted: Live, prefix: str, stream: bool
) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA}}
    body = {"response_format": wanted, "max_tokens": 4}
    refused = scripted.chat(prefix, body)
    error = refused.json()["error"]
    assert refused.status_code == 400 and error["code"] == "max_tokens_too_small"
    assert error["param"] == "max_tokens"
    shortest = int(error["message"].split("takes ")[1].split(".")[0])
    body["max_tokens"] = shortest
    if stream:
        chunks = scripted.stream(prefix, body)
        choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
        text = "".join(choice["delta"].get("content") or "" for choice in choices)
        finish = choices[-1]["finish_reason"]
    else:
        choice = scripted.chat(prefix, body).json()["choices"][0]
        text, finish = choice["message"]["content"], choice["finish_reason"]
    jsonschema.validate(json.loads(text), SCHEMA)
    assert finish == "length"


def test_a_call_that_has_no_room_becomes_words_under_auto_alone(scripted: Live) -> None:
    tool = {"type": "function", "function": {"name": "look_up", "parameters": SCHEMA}}
    body = {"tools": [tool], "max_tokens": 5}
    assert scripted.chat("/v1", {**body, "tool_choice": "required"}).status_code == 400
    assert scripted.chat("/v1", body).status_code == 200
