"""A short JSON text for a schema, by its keywords alone: how much one token may open up.

It serves as a measure and need not fit: patterns and formats are taken as so many letters.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from tinyllm.api.limits import LEAST_DEPTH

SOME_TEXT = 40  # letters of a string that a pattern or a format describes
_PLAIN = {"boolean": "true", "null": "null"}


def least(schema: Any, root: Mapping[str, Any], depth: int = 0) -> str:
    """About the shortest JSON text that fits `schema`; `root` is what its `$ref`s point into."""
    if not isinstance(schema, Mapping) or depth > LEAST_DEPTH:
        return "0"
    if "const" in schema:
        return json.dumps(schema["const"])
    if isinstance(schema.get("enum"), list) and schema["enum"]:
        return min((json.dumps(value) for value in schema["enum"]), key=len)
    if isinstance(schema.get("$ref"), str):
        return least(_target(schema["$ref"], root), root, depth + 1)
    for keyword in ("anyOf", "oneOf"):
        if isinstance(schema.get(keyword), list) and schema[keyword]:
            return min((least(one, root, depth + 1) for one in schema[keyword]), key=len)
    if isinstance(schema.get("allOf"), list) and schema["allOf"]:
        return max((least(one, root, depth + 1) for one in schema["allOf"]), key=len)
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = kind[0] if kind else None
    if kind == "object" or "properties" in schema:
        properties, required = schema.get("properties"), schema.get("required")
        if not isinstance(properties, Mapping) or not isinstance(required, list):
            return "{}"
        pairs = (
            f"{json.dumps(name)}: {least(properties.get(name), root, depth + 1)}"
            for name in required
        )
        return "{" + ", ".join(pairs) + "}"
    if kind == "array":
        n = schema.get("minItems", 0)
        item = least(schema.get("items"), root, depth + 1)
        return "[" + ", ".join([item] * (min(n, 64) if isinstance(n, int) else 0)) + "]"
    if kind == "string":
        n = schema.get("minLength", 0)
        n = min(n, 512) if isinstance(n, int) else 0
        return '"' + "a" * max(n, SOME_TEXT * ("pattern" in schema or "format" in schema)) + '"'
    if kind in ("integer", "number"):
        bounds = (schema.get(key, 0) for key in ("minimum", "maximum", "multipleOf"))
        return max((str(bound) for bound in bounds), key=len)
    return _PLAIN.get(kind, "0") if isinstance(kind, str) else "0"


def openings(schema: Any, root: Mapping[str, Any]) -> Iterator[str]:
    """What an answer may begin without having to, each as short as it can be ended."""
    pending, seen = [schema], 0
    while pending and seen < 2000:
        node = pending.pop()
        seen += 1
        if isinstance(node, list):
            pending.extend(node)
        if not isinstance(node, Mapping):
            continue
        pending.extend(node.values())
        required = node.get("required")
        if isinstance(node.get("properties"), Mapping):
            for name, inner in node["properties"].items():
                if not isinstance(required, list) or name not in required:
                    yield f", {json.dumps(name)}: {least(inner, root)}"
        for keyword in ("items", "additionalProperties"):
            if isinstance(node.get(keyword), Mapping):
                yield f', "a": {least(node[keyword], root)}'
        for keyword in ("anyOf", "oneOf"):
            if isinstance(node.get(keyword), list):
                yield from (least(one, root) for one in node[keyword])


def _target(ref: str, root: Mapping[str, Any]) -> Any:
    node: Any = root
    for key in ref.removeprefix("#").strip("/").split("/"):
        if key:
            node = node.get(key) if isinstance(node, Mapping) else None
    return node
