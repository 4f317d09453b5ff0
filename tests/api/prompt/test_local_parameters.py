"""Parameters that users of local servers send: they work, and what can't is refused by name."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from tests.api.support import MODEL, PREFIXES, Live, S
from tinyllm.tokenizer import Tokenizer

pytestmark = pytest.mark.parametrize("prefix", PREFIXES)
ANSWER = "The capital of France is Paris."
SCHEMA = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}


def content(server: Live, prefix: str, **body: Any) -> str:
    response = server.chat(prefix, body)
    assert response.status_code == 200, response.text
    assert "x-ignored-params" not in response.headers
    text: str = response.json()["choices"][0]["message"]["content"]
    return text


def test_stop_token_ids_end_an_answer_and_are_not_shown(
    scripted: Live, prefix: str, tokenizer: Tokenizer
) -> None:
    [paris] = tokenizer.encode(" Paris")
    assert content(scripted, prefix, stop_token_ids=[paris]) == "The capital of France is"


def test_min_tokens_keep_an_answer_from_ending(scripted: Live, prefix: str) -> None:
    answer = scripted.chat(prefix, {"min_tokens": 12, "max_tokens": 20}).json()
    assert answer["usage"]["completion_tokens"] > 12
    assert answer["choices"][0]["message"]["content"].startswith(ANSWER)


def test_ignore_eos_goes_on(scripted: Live, prefix: str) -> None:
    answer = scripted.chat(prefix, {"ignore_eos": True, "max_tokens": 20}).json()
    assert answer["usage"]["completion_tokens"] == 20
    assert answer["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("penalty", [1.3, 0.8])
def test_repetitions_are_counted_in_the_prompt_too(
    scripted: Live, prefix: str, penalty: float, tokenizer: Tokenizer
) -> None:
    """The script's tokens are 12 above the others' few: a strong penalty is needed to turn it."""
    assert content(scripted, prefix, repetition_penalty=penalty, max_tokens=3)
    said = {"role": "user", "content": ANSWER}
    turned = content(scripted, prefix, messages=[said], repetition_penalty=10, max_tokens=1)
    assert turned != "The"


def test_min_p_is_a_stage_of_the_trace(scripted: Live, prefix: str) -> None:
    body = {"min_p": 0.5, "temperature": 1, "seed": 1, "trace": {"stages": True, "candidates": 5}}
    choice = scripted.chat(prefix, {**body, "max_tokens": 2}).json()["choices"][0]
    stages = [stage["name"] for stage in choice["trace"]["steps"][0]["stages"]]
    assert stages == ["raw", "mask", "penalties", "temperature", "top_k", "top_p", "min_p"]
    assert choice["trace"]["steps"][0]["stages"][-1]["n_kept"] == 1


@pytest.mark.parametrize(
    "more",
    [{"guided_json": SCHEMA}, {"guided_json": json.dumps(SCHEMA)},
     {"structured_outputs": {"json": SCHEMA}}, {"json_schema": SCHEMA},
     {"response_format": {"type": "json_object", "schema": SCHEMA}}],
)  # fmt: skip
def test_other_names_of_a_schema(scripted: Live, prefix: str, more: dict[str, Any]) -> None:
    assert set(json.loads(content(scripted, prefix, **more))) == {"ok"}


@pytest.mark.parametrize(
    ("more", "param"),
    [({"guided_json": 3}, "guided_json"), ({"guided_json": "no JSON"}, "guided_json"),
     ({"structured_outputs": {"json": True}}, "structured_outputs.json"),
     ({"structured_outputs": {"json": "no JSON"}}, "structured_outputs.json"),
     ({"guided_json": SCHEMA, "json_schema": SCHEMA}, "json_schema"),
     ({"guided_json": {}, "structured_outputs": {"json": SCHEMA}}, "structured_outputs.json"),
     ({"guided_json": SCHEMA, "response_format": {"type": "text"}}, "response_format")],
)  # fmt: skip
def test_other_names_are_refused_by_the_name_that_was_used(
    scripted: Live, prefix: str, more: dict[str, Any], param: str
) -> None:
    response = scripted.chat(prefix, more)
    assert response.status_code == (422 if prefix == S else 400)
    assert response.json()["error"]["param"] == param


def test_thinking_is_turned_on_and_off_by_the_templates_word(scripted: Live, prefix: str) -> None:
    def thought(**body: Any) -> bool:
        return "reasoning" in scripted.chat(prefix, body).json()["choices"][0]["message"]

    on, off = ({"chat_template_kwargs": {"enable_thinking": wanted}} for wanted in (True, False))
    assert thought(**on) and not thought(**off) and not thought()


def test_what_the_template_has_no_word_of_is_named(scripted: Live, prefix: str) -> None:
    """Documents, as templates made for retrieval take them; in both places that clients know."""
    documents = [{"title": "a", "text": "b"}]
    body = {"documents": documents, "chat_template_kwargs": {"documents": documents}}
    response = scripted.chat(prefix, body)
    assert response.status_code == 200
    assert response.headers["X-Ignored-Params"] == "documents, chat_template_kwargs.documents"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"min_p": 2}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"stop_token_ids": [10**9]}, "stop_token_ids[0]"),
        ({"structured_outputs": {"regex": "a+"}}, "structured_outputs.regex"),
        ({"guided_json": "{"}, "guided_json"),
        ({"guided_json": SCHEMA, "response_format": {"type": "text"}}, "response_format"),
        ({"response_format": {"type": "grammar", "grammar": "a"}}, "response_format"),
        ({"chat_template_kwargs": {"tools": []}}, "chat_template_kwargs.tools"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(
    scripted: Live, prefix: str, body: dict[str, Any], param: str
) -> None:
    response = scripted.chat(prefix, body)
    assert response.status_code == (422 if prefix == S else 400)
    assert response.json()["error"]["param"] == param


def test_text_completions_know_them_too(scripted: Live, prefix: str, tokenizer: Tokenizer) -> None:
    [paris] = tokenizer.encode(" Paris")
    body = {"model": MODEL, "temperature": 0, "max_tokens": 30, "stop_token_ids": [paris],
            "prompt": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"}  # fmt: skip
    answer = scripted.post(f"{prefix}/completions", body).json()
    assert answer["choices"][0]["text"] == "The capital of France is"


# -- every shape of request ------------------------------------------------------------------

SHAPES: dict[str, dict[str, Any]] = {
    "chat/completions": {"messages": [{"role": "user", "content": "Hi"}]},
    "completions": {"prompt": "Hi"},
    "responses": {"input": "Hi"},
}


def asked(server: Live, prefix: str, path: str, **body: Any) -> Any:
    limit = "max_output_tokens" if path == "responses" else "max_tokens"
    more = {limit: body.pop("limit", 24)}
    return server.post(f"{prefix}/{path}", {"model": MODEL, **SHAPES[path], **more, **body})


def text_of(answer: dict[str, Any]) -> str:
    if "output" in answer:
        return str(answer["output"][0]["content"][0]["text"])
    choice = answer["choices"][0]
    return str(choice["message"]["content"] if "message" in choice else choice["text"])


@pytest.mark.parametrize("path", SHAPES)
@pytest.mark.parametrize(
    "more",
    [{"min_p": 0.1}, {"repetition_penalty": 1.1}, {"min_tokens": 2}, {"ignore_eos": True},
     {"stop_token_ids": [5]}, {"chat_template_kwargs": {"enable_thinking": False}},
     {"guided_json": SCHEMA}, {"structured_outputs": {"json": SCHEMA}}, {"json_schema": SCHEMA},
     {"response_format": {"type": "json_object", "schema": SCHEMA}}],
)  # fmt: skip
def test_every_shape_knows_them(
    scripted: Live, prefix: str, path: str, more: dict[str, Any]
) -> None:
    response = asked(scripted, prefix, path, **more)
    assert response.status_code == 200, response.text
    ignored = response.headers.get("x-ignored-params", "")
    template = path == "completions" and "chat_template_kwargs" in more  # there is none
    assert ignored == ("chat_template_kwargs" if template else "")
    if more.keys() & {"guided_json", "structured_outputs", "json_schema", "response_format"}:
        assert set(json.loads(text_of(response.json()))) == {"ok"}


@pytest.mark.parametrize("path", SHAPES)
@pytest.mark.parametrize(
    ("more", "param"),
    [({"min_p": 2}, "min_p"), ({"repetition_penalty": 0}, "repetition_penalty"),
     ({"min_tokens": -1}, "min_tokens"), ({"ignore_eos": "yes"}, "ignore_eos"),
     ({"stop_token_ids": [10**9]}, "stop_token_ids[0]"), ({"guided_json": "{"}, "guided_json"),
     ({"structured_outputs": {"grammar": "a"}}, "structured_outputs.grammar"),
     ({"guided_regex": "a+"}, "guided_regex"), ({"guided_choice": ["a"]}, "guided_choice"),
     ({"guided_grammar": "a"}, "guided_grammar"), ({"grammar": "a"}, "grammar"),
     ({"json_schema": {}, "response_format": {"type": "text"}}, "response_format"),
     ({"response_format": {"type": "grammar", "grammar": "a"}}, "response_format")],
)  # fmt: skip
def test_every_shape_refuses_by_name(
    scripted: Live, prefix: str, path: str, more: dict[str, Any], param: str
) -> None:
    response = asked(scripted, prefix, path, **more)
    assert response.status_code == (422 if prefix == S else 400), response.text
    assert response.json()["error"]["param"] == param


CITY = {
    "type": "object",
    "properties": {"population": {"type": "number"}, "name": {"type": "string"}},
    "required": ["population", "name"],
}


@pytest.mark.parametrize("path", SHAPES)
@pytest.mark.parametrize("temperature", [0, 1, 2])
def test_every_shape_ends_what_it_was_held_to(
    scripted: Live, prefix: str, path: str, temperature: float
) -> None:
    """From the shortest budget on, which a smaller one is told of."""
    named = {"name": "city", "schema": CITY}
    wanted: dict[str, Any] = {"response_format": {"type": "json_schema", "json_schema": named}}
    if path == "responses":
        wanted = {"text": {"format": {"type": "json_schema", **named}}}
    refused = asked(scripted, prefix, path, limit=4, **wanted)
    error = refused.json()["error"]
    assert (refused.status_code, error["code"]) == (400, "max_tokens_too_small")
    shortest = int(error["message"].split("takes ")[1].split(".")[0])
    for limit in (shortest, shortest + 3, shortest + 30):
        more = {**wanted, "limit": limit, "temperature": temperature, "seed": 7}
        answer = asked(scripted, prefix, path, **more).json()
        jsonschema.validate(json.loads(text_of(answer)), CITY)


@pytest.mark.parametrize("path", SHAPES)
def test_every_shape_tells_of_an_overflow_in_the_words_that_clients_match(
    scripted: Live, prefix: str, path: str
) -> None:
    long = json.loads(json.dumps(SHAPES[path]).replace("Hi", "word " * 4000))
    response = scripted.post(f"{prefix}/{path}", {"model": MODEL, **long})
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "context_length_exceeded")
    assert error["message"].startswith("This model's maximum context length is 2048 tokens")
