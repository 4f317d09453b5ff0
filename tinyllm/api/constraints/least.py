"""A short JSON text for a schema, by its keywords alone: how much one token may open up.

It serves as a measure and need not fit: patterns and formats are taken as so many letters. A small
schema can stand for very long texts, and for very many (options of options, lists of lists), so a
text and all the work for a schema are bounded; what is beyond is taken as "0".
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from tinyllm.api.limits import LEAST_DEPTH, LEAST_LETTERS, LEAST_WORK

SOME_TEXT = 40  # letters of a string that a pattern or a format describes
_PLAIN = {"boolean": "true", "null": "null"}


def least(schema: Any, root: Mapping[str, Any]) -> str:
    """About the shortest JSON text that fits `schema`; `root` is what its `$ref`s point into."""
    return _Texts(root).least(schema)


def openings(schema: Any, root: Mapping[str, Any]) -> Iterator[str]:
    """What an answer may begin without having to, each as short as it can be ended."""
    least = _Texts(root).least
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
                    yield f", {json.dumps(name)}: {least(inner)}"
        for keyword in ("items", "additionalProperties"):
            if isinstance(node.get(keyword), Mapping):
                yield f', "a": {least(node[keyword])}'
        for keyword in ("anyOf", "oneOf"):
            if isinstance(node.get(keyword), list):
                yield from (least(one) for one in node[keyword])


class _Texts:
    """Texts for the parts of one schema, which share a budget of work."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._left = LEAST_WORK

    def least(self, schema: Any, depth: int = 0) -> str:
        if not isinstance(schema, Mapping) or depth > LEAST_DEPTH or self._left <= 0:
            return "0"
        text = self._text(schema, depth)
        self._left -= 10 + len(text)
        return text

    def _text(self, schema: Mapping[str, Any], depth: int) -> str:
        if "const" in schema:
            return json.dumps(schema["const"])
        if isinstance(schema.get("enum"), list) and schema["enum"]:
            texts = [json.dumps(value) for value in schema["enum"]]
            self._left -= sum(map(len, texts))
            return min(texts, key=len)
        if isinstance(schema.get("$ref"), str):
            return self.least(self._target(schema["$ref"]), depth + 1)
        for keyword in ("anyOf", "oneOf"):
            if isinstance(schema.get(keyword), list) and schema[keyword]:
                return min((self.least(one, depth + 1) for one in schema[keyword]), key=len)
        if isinstance(schema.get("allOf"), list) and schema["allOf"]:
            return max((self.least(one, depth + 1) for one in schema["allOf"]), key=len)
        kind = schema.get("type")
        if isinstance(kind, list):
            kind = kind[0] if kind else None
        if kind == "object" or "properties" in schema:
            return self._object(schema, depth)
        if kind == "array":
            n = schema.get("minItems", 0)
            item = self.least(schema.get("items"), depth + 1)
            n = min(n, 64, LEAST_LETTERS // len(item) + 1) if isinstance(n, int) else 0
            return "[" + ", ".join([item] * n) + "]"
        if kind == "string":
            n = schema.get("minLength", 0)
            n = min(n, 512) if isinstance(n, int) else 0
            return '"' + "a" * max(n, SOME_TEXT * ("pattern" in schema or "format" in schema)) + '"'
        if kind in ("integer", "number"):
            bounds = (schema.get(key, 0) for key in ("minimum", "maximum", "multipleOf"))
            return max((str(bound) for bound in bounds), key=len)
        return _PLAIN.get(kind, "0") if isinstance(kind, str) else "0"

    def _object(self, schema: Mapping[str, Any], depth: int) -> str:
        properties, required = schema.get("properties"), schema.get("required")
        if not isinstance(properties, Mapping) or not isinstance(required, list):
            return "{}"
        pairs, length = [], 0
        for name in required:
            if length > LEAST_LETTERS:
                break
            pairs.append(f"{json.dumps(name)}: {self.least(properties.get(name), depth + 1)}")
            length += len(pairs[-1])
        return "{" + ", ".join(pairs) + "}"

    def _target(self, ref: str) -> Any:
        self._left -= len(ref)
        node: Any = self._root
        for key in ref.removeprefix("#").strip("/").split("/"):
            if key:
                node = node.get(key) if isinstance(node, Mapping) else None
        return node
