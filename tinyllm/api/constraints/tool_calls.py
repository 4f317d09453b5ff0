"""The grammar of an answer that calls tools, in the form that the model was taught.

Under `tool_choice: required` the answer is calls and nothing else. Where the model chooses, words
come first, as many as it likes, and every call that it begins is held to the form and to the schema
of the tool that it picks; so reading it back needs no guessing (`call_reader`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tinyllm.api.constraints.bare_text import text_rules
from tinyllm.api.constraints.call_forms import HERMES, CallForm
from tinyllm.api.constraints.grammar import UnsupportedSchema, prepared
from tinyllm.api.constraints.quoted_values import Rules
from tinyllm.api.contract.tools import Tool
from tinyllm.api.limits import MAX_CALLS, MAX_SCHEMA_BYTES


def calls_grammar(
    tools: Sequence[Tool],
    parallel: bool,
    first: Sequence[Tool] = (),
    form: CallForm = HERMES,
    control: Mapping[str, int] | None = None,
    words: bool = False,
) -> str:
    """The grammar of one call, or of several, to any of `tools`. Raises UnsupportedSchema.

    Args:
        first: the first call goes to one of these, if any are given.
        form: how a call is written.
        control: the control tokens that the form may use, text → id: no text can write them.
        words: whether free text may come before and instead of calls; `form` has a marker then.
    """
    spell = _Speller(control or {})
    openers = [i for i, tool in enumerate(tools) if words or not first or tool in first]
    several = parallel and form.several
    again = f"{{0,{MAX_CALLS - 1}}}"
    if words and form.marker is None:  # a call is a whole answer, known by its first letter
        rules = [
            "start: opening | words",
            f"words: /([^{re.escape(form.opening[0])}](.|\\n)*)?/",
            f"opening: {_call_rule(openers, form.opening, form, spell)}",
        ]
    elif words:
        assert form.marker is not None
        # A list is written once and holds all calls; of the others each has a marker of its own.
        listed = f" ({spell(form.between)} call){again}" if several and form.last else ""
        most = MAX_CALLS if several and not form.last else 1
        head = (form.first + form.opening).removeprefix(form.marker)
        rules = [
            f"start: (marked){{0,{most}}} words",
            "words: TEXT",
            "TEXT: /(.|\n)*/",
            *_marked(form.marker, spell),
            f"marked: marker opening{listed} {spell(form.last)}",
            f"opening: {_call_rule(openers, head, form, spell)}",
        ]
    else:
        more = f" ({spell(form.between)} call){again}" if several else ""
        rules = [
            f"start: {spell(form.first)} opening{more} {spell(form.last)}",
            f"opening: {_call_rule(openers, form.opening, form, spell)}",
        ]
    rules.append(f"call: {_call_rule(range(len(tools)), form.opening, form, spell)}")
    size = 0
    for i, tool in enumerate(tools):
        try:
            schema = prepared(object_schema(tool))
        except UnsupportedSchema as error:
            raise UnsupportedSchema(f"{error}", i) from None
        if (size := size + len(schema)) > MAX_SCHEMA_BYTES:
            raise UnsupportedSchema(f"the schemas have more than {MAX_SCHEMA_BYTES} bytes", i)
        named = spell(tool.function.name + form.middle)
        if form.counted:
            named = f"{spell(tool.function.name)} /:[0-9]{{1,3}}/ {spell(form.middle)}"
        if form.arguments == "json":
            rules.append(f"tool{i}: {named} %json {schema}")
        else:
            write = _quoted_rules if form.arguments == "quoted" else _parameter_rules
            try:
                rules += write(f"tool{i}", named, json.loads(schema), form, spell)
            except UnsupportedSchema as error:
                raise UnsupportedSchema(f"{error}", i) from None
            except (TypeError, ValueError, AttributeError):  # a list in place of an object, say
                raise UnsupportedSchema("it isn't a JSON Schema", i) from None
    return "%llguidance {}\n" + "\n".join(rules) + "\n"


def _marked(marker: str, spell: _Speller) -> list[str]:
    """Free text up to a marker: its first occurrence ends the text."""
    spelled = spell(marker)
    if spelled.startswith("<["):  # a control token, which no text can hold
        return [f"marker: TEXT {spelled}"]
    return [f"marker[lazy]: TEXT {spelled}"]


def _call_rule(tools: Iterable[int], opening: str, form: CallForm, spell: _Speller) -> str:
    choice = " | ".join(f"tool{i}" for i in tools)
    return f"{spell(opening)} ({choice}) {spell(form.closing)}"


def _quoted_rules(
    rule: str, named: str, schema: Mapping[str, Any], form: CallForm, spell: _Speller
) -> list[str]:
    values = Rules(rule, spell(form.quote), schema)
    return [f"{rule}: {named} {values.pairs(schema)}", *values.rules]


def _parameter_rules(
    rule: str, named: str, schema: Mapping[str, Any], form: CallForm, spell: _Speller
) -> list[str]:
    """A tool's parameters in the schema's order, each between the form's tags."""
    ends = json.dumps(form.pair_closing)
    properties = schema.get("properties") or {}
    if not properties and schema.get("additionalProperties") is not False:
        key = f"{spell(form.pair_opening)} /[^<>\n]+/ {spell(form.pair_middle)}"
        return [
            f"{rule}: {named} ({key} {rule}_value)*",
            *text_rules(f"{rule}_value", {}, ends),
        ]
    order, rules = [], []
    for j, (key, inner) in enumerate(properties.items()):
        optional = "" if key in schema.get("required", ()) else "?"
        order.append(f"{rule}_{j}{optional}")
        begins = spell(form.pair_opening + key + form.pair_middle)
        if not is_text(inner):
            shared = {k: schema[k] for k in ("$defs", "definitions", "x-guidance") if k in schema}
            inner = json.dumps({**shared, **inner} if isinstance(inner, dict) else inner)
            rules.append(f"{rule}_{j}: {begins} %json {inner} {ends}")
        else:
            rules.append(f"{rule}_{j}: {begins} {rule}_{j}_text")
            rules += text_rules(f"{rule}_{j}_text", inner, ends)
    return [f"{rule}: {named} {' '.join(order)}", *rules]


def is_text(schema: Any) -> bool:
    """Whether a parameter's value is a string, which a form may write without quotes."""
    if not isinstance(schema, Mapping):
        return False
    options = schema.get("enum")
    if isinstance(options, list):
        return bool(options) and all(isinstance(option, str) for option in options)
    return schema.get("type") == "string"


def object_schema(tool: Tool) -> dict[str, Any]:
    """Arguments are an object, whatever else the schema says; none given means no arguments."""
    schema = tool.function.parameters
    if not schema:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    return schema if "type" in schema or "$ref" in schema else {"type": "object", **schema}


class _Speller:
    """Texts as a grammar writes them: control tokens by their ids, the rest in quotes."""

    def __init__(self, control: Mapping[str, int]) -> None:
        self._control = control
        texts = sorted(map(re.escape, control), key=len, reverse=True)
        self._pattern = re.compile(f"({'|'.join(texts)})") if texts else None

    def __call__(self, text: str) -> str:
        pieces = self._pattern.split(text) if self._pattern else [text]
        return " ".join(
            f"<[{self._control[piece]}]>" if piece in self._control else json.dumps(piece)
            for piece in pieces
            if piece
        )
