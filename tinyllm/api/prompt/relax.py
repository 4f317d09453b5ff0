"""Keywords of JSON Schema that a grammar can't hold an answer to: refused, or left out by name.

Which of the two must not hang on the user's words. So every tool and format is looked at up front:
what says `strict: true` is refused, and elsewhere the keyword is dropped and the caller told of it
(tools of strangers bring all sorts, and the rest of a schema still holds).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, TypeVar

from tinyllm.api.constraints.grammar import INNER_SCHEMAS, NAMED_SCHEMAS
from tinyllm.api.contract.errors import Loc, invalid, path_of
from tinyllm.api.contract.structured import StructuredRequest
from tinyllm.api.contract.tools import SchemaFormat, Tool

Asked = TypeVar("Asked", bound=StructuredRequest)

# What llguidance calls "unimplemented keys"; a test holds the list against it.
UNHELD = frozenset(
    ("uniqueItems", "propertyNames", "not", "if", "then", "else", "dependentRequired",
     "dependentSchemas", "dependencies", "contains", "minContains", "maxContains",
     "unevaluatedProperties", "unevaluatedItems")
)  # fmt: skip


def relaxed(request: Asked) -> tuple[Asked, list[str]]:
    """The request without such keywords, and their places. ApiError where strictness is asked."""
    names: list[str] = []
    update: dict[str, Any] = {}
    tools: list[Tool] = list(getattr(request, "tools", None) or ())
    for i, tool in enumerate(tools):
        place: Loc = ("tools", i, "function", "parameters")
        schema, dropped = _without(tool.function.parameters, place, bool(tool.function.strict))
        if dropped:
            function = tool.function.model_copy(update={"parameters": schema})
            tools[i] = tool.model_copy(update={"function": function})
            names += dropped
            update["tools"] = tools
    wanted = request.response_format
    if isinstance(wanted, SchemaFormat):
        named = wanted.json_schema
        schema, dropped = _without(named.json_schema, request.schema_place, bool(named.strict))
        if dropped:
            named = named.model_copy(update={"json_schema": schema})
            update["response_format"] = wanted.model_copy(update={"json_schema": named})
            names += dropped
    return (request.model_copy(update=update) if update else request), names


def _without(schema: dict[str, Any] | None, place: Loc, strict: bool) -> tuple[Any, list[str]]:
    """A copy without the keywords that can't be held, and where they stood."""
    found = list(_unheld(schema, place))
    if not found:
        return schema, []
    if strict:
        loc = found[0][1]
        raise invalid(f"An answer can't be held to {loc[-1]}, and strict is set.", *loc,
                      kind="json_schema")  # fmt: skip
    own = copy.deepcopy(schema)
    for node, loc in list(_unheld(own, place)):
        node.pop(str(loc[-1]), None)
    return own, [path_of(loc) for _, loc in found]


def _unheld(schema: Any, place: Loc) -> Iterator[tuple[dict[str, Any], Loc]]:
    """Each such keyword, with the schema that it stands in and its place."""
    pending: list[tuple[Any, Loc]] = [(schema, place)]
    while pending:
        node, loc = pending.pop()
        if isinstance(node, list):
            pending += [(item, (*loc, i)) for i, item in enumerate(node)]
        if not isinstance(node, dict):
            continue
        for keyword, value in node.items():
            here = (*loc, keyword)
            if keyword in UNHELD and not _says_nothing(keyword, value):
                yield node, here
            elif keyword in INNER_SCHEMAS:
                pending.append((value, here))
            elif keyword in NAMED_SCHEMAS and isinstance(value, dict):
                pending += [(inner, (*here, name)) for name, inner in value.items()]


def _says_nothing(keyword: str, value: Any) -> bool:
    """What every value fulfils; the grammar leaves it out by itself."""
    if keyword == "propertyNames":
        return value in ({}, True, {"type": "string"})
    return keyword == "uniqueItems" and value is False
