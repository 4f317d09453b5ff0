"""Structured answers end: every budget from the shortest answer on gives JSON that fits."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import numpy as np
import pytest

from tests.api.support import MODEL, PREFIXES, Live
from tinyllm.api.constraints import closing
from tinyllm.api.constraints.call_forms import HERMES
from tinyllm.api.constraints.call_reader import CallReader, CallStart, Words
from tinyllm.api.constraints.closing import (
    Closing,
    Format,
    TokenForms,
    margin_of,
    strings_are_free,
)
from tinyllm.api.constraints.grammar import Grammars, Matcher, json_grammar
from tinyllm.api.constraints.guides import Guides
from tinyllm.api.constraints.json_text import JsonText
from tinyllm.api.contract.chat_completions import read_chat
from tinyllm.api.contract.dialect import O as DIALECT
from tinyllm.api.prompt.formats import answer_format
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


# -- calls of tools --------------------------------------------------------------------------


def tool(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": schema}}


def format_of(
    server: Live, tools: list[dict[str, Any]], words: bool = False, **more: Any
) -> Format:
    """What a request with these tools is held to, as the planner makes it."""
    message = {"role": "user", "content": "Hi"}
    body = {"model": MODEL, "messages": [message], "tools": tools, **more}
    request = read_chat(body, DIALECT)
    model = server.service.model(MODEL)
    format, _ = answer_format(request, model, request.callable_tools(), (), lambda: False, words)
    assert format is not None
    return format


def calls_in(text: str) -> list[tuple[str, Any]]:
    """(name, arguments) of each call; all of them must be whole."""
    reader, found = CallReader(), []  # of [name, arguments]
    for piece in reader.push(text):
        if isinstance(piece, CallStart):
            found.append([piece.name, ""])
        elif not isinstance(piece, Words):
            found[-1][1] += piece.text
    assert text.count(HERMES.opening) == text.count(HERMES.closing) == len(found), text
    return [(name, json.loads(arguments)) for name, arguments in found]


@pytest.mark.parametrize("choice", ["named", "required", "required, one at most"])
@pytest.mark.parametrize("seed", range(8))
def test_every_budget_gives_calls_that_parse_and_fit(
    scripted: Live, forms: TokenForms, tokenizer: Tokenizer, seed: int, choice: str
) -> None:
    rng = random.Random(seed)
    schemas = {
        name: {"type": "object",
               "properties": {"it": random_schema(rng, 1), "at": {"type": "number"}},
               "required": ["it"], "additionalProperties": False}
        for name in ("look_up", "add", "go")
    }  # fmt: skip
    tools = [tool(name, schema) for name, schema in schemas.items()]
    wanted: dict[str, Any] = {"tool_choice": "required"}
    if choice == "named":
        wanted = {"tool_choice": {"type": "function", "function": {"name": "add"}}}
    elif choice != "required":
        wanted["parallel_tool_calls"] = False
    format = format_of(scripted, tools, **wanted)
    shortest = format.shortest()
    assert shortest > 0
    for budget, style in zip(
        (shortest, shortest + 1, shortest + 9, 2 * shortest + 30, 160),
        ("digits", "chance", "likes", "digits", "chance"),
        strict=True,
    ):
        calls = calls_in(answer(format, tokenizer, forms, budget, style, seed))
        assert calls
        for name, arguments in calls:
            assert choice != "named" or name == "add"
            jsonschema.validate(arguments, schemas[name])
        assert choice != "required, one at most" or len(calls) == 1


@pytest.mark.parametrize("spare", [0, 1, 5, 20])
def test_what_has_room_is_not_cut(
    scripted: Live, tokenizer: Tokenizer, forms: TokenForms, spare: int
) -> None:
    """A call that just fits is written as the model wants it, with parallel calls allowed."""
    schema = {"type": "object", "properties": {"location": {"type": "string"},
              "unit": {"enum": ["celsius", "fahrenheit"]}}, "required": ["location"]}  # fmt: skip
    format = format_of(scripted, [tool("get_weather", schema)], tool_choice="required")
    wanted = HERMES.write("get_weather", {"location": "Boston, Massachusetts"})
    eos = frozenset(tokenizer.eos_ids)
    guide, said, n_tokens = Guides(tokenizer, None, format, (), eos, 999)(0), b"", 0
    while said != wanted.encode():  # how many tokens it takes, one letter or more at a time
        token = next_of(wanted, said, guide, forms)
        guide.accept(token)
        said, n_tokens = said + forms.tokens[token], n_tokens + 1
    budget = n_tokens + spare
    guide, said = Guides(tokenizer, None, format, (), eos, budget)(0), b""
    for _ in range(budget):
        token = next_of(wanted, said, guide, forms)
        said += forms.tokens[token] if token not in eos else b""
        if guide.accept(token):
            break
    assert said.decode() == wanted


@pytest.mark.parametrize("budget", [12, 40, 70])
def test_words_go_on_to_the_limit_and_a_call_among_them_is_whole(
    scripted: Live, tokenizer: Tokenizer, forms: TokenForms, budget: int
) -> None:
    """Where the model may write either, what it begins near the limit is what it can end."""
    schema = {"type": "object", "properties": {"n": {"type": "number"}}, "required": ["n"]}
    format = format_of(scripted, [tool("add", schema)], words=True)
    eos = frozenset(tokenizer.eos_ids)
    call = "Well. " + HERMES.write("add", {"n": 12}) + " word" * 100
    for wanted, found in (("word " * 100, []), (call, [("add", {"n": 12})] if budget > 12 else [])):
        guide, said, n_tokens = Guides(tokenizer, None, format, (), eos, budget)(0), b"", 0
        while n_tokens < budget:
            token = next_of(wanted, said, guide, forms)
            said, n_tokens = said + (forms.tokens[token] if token not in eos else b""), n_tokens + 1
            if guide.accept(token):
                break
        assert n_tokens == budget or wanted == call
        assert calls_in(said.decode()) == found


def next_of(wanted: str, said: bytes, guide: Any, forms: TokenForms) -> int:
    """The forced token, or the longest one that leads on to what is wanted."""
    if forced := guide.forced():
        return int(forced[0])
    rest, allowed = wanted.encode()[len(said) :], np.flatnonzero(guide.allowed())
    fitting = [int(t) for t in allowed if forms.tokens[t] and rest.startswith(forms.tokens[t])]
    return max(fitting, key=lambda t: len(forms.tokens[t]), default=int(allowed[0]))


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


@pytest.mark.parametrize(
    ("schema", "takes"),
    [({"type": "array", "items": {"type": "integer"}, "minItems": 300}, "900"),
     ({"type": "array", "items": {"type": "integer"}, "minItems": 10_000}, "over 2048"),
     ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "over 2048")],
)  # fmt: skip
def test_what_takes_long_at_the_least_is_refused_beforehand(
    scripted: Live, schema: dict[str, Any], takes: str
) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "long", "schema": schema}}
    refused = scripted.chat("/v1", {"response_format": wanted, "max_tokens": 100})
    error = refused.json()["error"]
    assert refused.status_code == 400 and error["code"] == "max_tokens_too_small"
    assert error["message"].endswith(f"takes {takes}.")


def test_a_way_ends_where_its_grammar_gives_up(
    grammars: Grammars, forms: TokenForms, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it forces is a million letters, of which the grammar can follow a few thousand."""
    schema = {"type": "string", "pattern": "^(a{1000}){1000}$"}
    start = grammars.compile(json_grammar(schema)).matcher()
    accepted: list[int] = []
    accept = Matcher.accept

    def counted(self: Matcher, token: int) -> bool:
        accepted.append(token)
        return accept(self, token)

    monkeypatch.setattr(Matcher, "accept", counted)
    assert closing.way_to_close(start, JsonText(), forms) is None
    assert len(accepted) < 10_000


def test_a_call_that_has_no_room_becomes_words_under_auto_alone(scripted: Live) -> None:
    tool = {"type": "function", "function": {"name": "look_up", "parameters": SCHEMA}}
    body = {"tools": [tool], "max_tokens": 5}
    assert scripted.chat("/v1", {**body, "tool_choice": "required"}).status_code == 400
    assert scripted.chat("/v1", body).status_code == 200


def test_a_way_that_is_never_found_is_not_looked_for_at_every_token(
    grammars: Grammars, forms: TokenForms, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search takes the engine's thread, and with it every other answer, a tenth of a second."""
    searches: list[int] = []
    look = closing.way_to_close
    monkeypatch.setattr(closing, "way_to_close", lambda *args: searches.append(1) or look(*args))
    schema = {"type": "string", "minLength": 100_000, "maxLength": 200_000}
    matcher = grammars.compile(json_grammar(schema)).matcher()
    one = Closing(matcher, forms, 6, 0, free_strings=False, stop_ids=frozenset((2,)))
    for n_left in range(300, 0, -1):
        mask = one.allowed(matcher.allowed(), n_left)
        token = int(np.flatnonzero(mask)[0])
        matcher.accept(token)
        one.accept(token)
    assert len(searches) == closing.MAX_FAILED
