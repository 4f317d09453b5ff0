"""What an answer must fit: a response format, or calls of tools, as a grammar and in words."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tinyllm.api.constraints.call_forms import HERMES
from tinyllm.api.constraints.closing import Format, have_patterns, margin_of, strings_are_free
from tinyllm.api.constraints.grammar import Grammar, TooComplex, UnsupportedSchema, json_grammar
from tinyllm.api.constraints.least import least
from tinyllm.api.constraints.tool_calls import calls_grammar
from tinyllm.api.contract.chat_completions import ChatRequest
from tinyllm.api.contract.errors import ApiError, invalid
from tinyllm.api.contract.structured import StructuredRequest
from tinyllm.api.contract.tools import JsonFormat, SchemaFormat, Tool
from tinyllm.api.prompt.served import ServedModel


def answer_format(
    request: ChatRequest,
    model: ServedModel,
    tools: Sequence[Tool],
    first: Sequence[Tool],
    gone: Callable[[], bool],
    words: bool = False,
) -> tuple[Format | None, str]:
    """What the answer must fit, and the same in words for the prompt.

    With `words` the model may write words, calls of tools, or both.

    Raises ApiError, and GivenUp once `gone` says that nobody waits for it any more.
    """
    if tools:
        grammar = _calls_grammar(request, model, tools, first, gone, words)
        parallel = request.parallel_tool_calls is not False
        return _format_of_calls(grammar, model, tools, parallel or words), ""
    return wanted_format(request, model, gone)


def wanted_format(
    request: StructuredRequest, model: ServedModel, gone: Callable[[], bool]
) -> tuple[Format | None, str]:
    """A response format, and the same in words. Raises as `answer_format` does."""
    wanted = request.response_format
    if isinstance(wanted, JsonFormat):
        text = json_grammar({"type": "object"})
        grammar = _compiled(model, text, gone, "response_format")
        return _format(grammar, model, ()), "Answer with a JSON object and nothing else."
    if isinstance(wanted, SchemaFormat):
        place = request.schema_place
        schema = wanted.json_schema.json_schema or {}
        try:
            text = json_grammar(schema)
        except UnsupportedSchema as error:
            raise _unsupported(error, *place) from None
        grammar = _compiled(model, text, gone, *place)
        return _format(grammar, model, (schema,)), "Answer with JSON and nothing else."
    return None, ""


def _format(
    grammar: Grammar, model: ServedModel, schemas: Sequence[Mapping[str, Any]], more: str = ""
) -> Format:
    """With what it takes to end an answer; `more` is a text that may be begun behind it."""

    def count(text: str) -> int:
        return len(model.tokenizer.encode(text))

    margin, anew = margin_of(schemas, count), count(more) if more else 0
    return Format(
        grammar, model.token_forms, margin, strings_are_free(schemas), anew, have_patterns(schemas)
    )


def _format_of_calls(
    grammar: Grammar, model: ServedModel, tools: Sequence[Tool], more: bool
) -> Format:
    """With what one more call takes, where it may come behind another one or behind words."""
    schemas = [tool.function.parameters or {} for tool in tools]
    calls = (
        (model.call_form or HERMES).write(tool.function.name, json.loads(least(schema, schema)))
        for tool, schema in zip(tools, schemas, strict=True)
    )
    return _format(grammar, model, schemas, max(calls, key=len) if more else "")


def _calls_grammar(
    request: ChatRequest,
    model: ServedModel,
    tools: Sequence[Tool],
    first: Sequence[Tool],
    gone: Callable[[], bool],
    words: bool,
) -> Grammar:
    form = model.call_form or HERMES
    control = model.tokenizer.special_tokens
    names = [tool.function.name for tool in request.tools or ()]

    def place(tool: Tool) -> tuple[str | int, ...]:
        return ("tools", names.index(tool.function.name), "function", "parameters")

    try:
        parallel = request.parallel_tool_calls is not False
        text = calls_grammar(tools, parallel, first, form, control, words)
        # Tried with bytes for tokens, where control tokens are text as well.
        trial = calls_grammar(tools, parallel, first, form, {}, words)
    except UnsupportedSchema as error:
        raise _unsupported(error, *place(tools[error.index or 0])) from None
    try:
        return model.grammars.compile(text, gone, trial)
    except TooComplex as error:
        raise _unsupported(error, "tools") from None
    except UnsupportedSchema as error:
        for tool in tools:  # whose fault is it?
            try:
                model.grammars.compile(calls_grammar([tool], parallel=False), gone)
            except UnsupportedSchema as own:
                raise _unsupported(own, *place(tool)) from None
        raise _unsupported(error, "tools") from None


def _compiled(
    model: ServedModel, text: str, gone: Callable[[], bool], *place: str | int
) -> Grammar:
    try:
        return model.grammars.compile(text, gone)
    except UnsupportedSchema as error:
        raise _unsupported(error, *place) from None


def _unsupported(error: UnsupportedSchema, *loc: str | int) -> ApiError:
    return invalid(f"This JSON Schema can't be followed: {error}.", *loc, kind="json_schema")
