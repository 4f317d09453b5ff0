"""How a call is written by the model, and read back.

    <tool_call>
    {"name": "get_weather", "arguments": {"location": "Boston"}}
    </tool_call>

A model of this size seldom writes that by itself, so once a call is due the grammar holds it to
the form and to the schema of the tool that it picks. What comes out is therefore always this very
text, and reading it needs no guessing, however it is cut into pieces.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tinyllm.api.constraints.grammar import MAX_SCHEMA_BYTES, UnsupportedSchema, prepared
from tinyllm.api.contract.tools import Tool

MAX_CALLS = 8  # parallel calls in one answer
OPEN, CLOSE = "<tool_call>\n", "\n</tool_call>"
_HEAD, _MIDDLE = '{"name": "', '", "arguments": '


def write_call(name: str, arguments: Any) -> str:
    """A call as the model writes it."""
    return f"{OPEN}{_HEAD}{name}{_MIDDLE}{json.dumps(arguments, ensure_ascii=False)}}}{CLOSE}"


def calls_grammar(tools: Sequence[Tool], parallel: bool, first: Sequence[Tool] = ()) -> str:
    """The grammar of one call, or of several, to any of `tools`. Raises UnsupportedSchema.

    The first call goes to one of `first`, if any are given.
    """
    more = f' ("\\n" call){{0,{MAX_CALLS - 1}}}' if parallel else ""
    openers = [i for i, tool in enumerate(tools) if not first or tool in first]
    rules = [
        f"start: opening{more}",
        f"opening: {_call_rule(openers)}",
        f"call: {_call_rule(range(len(tools)))}",
    ]
    size = 0
    for i, tool in enumerate(tools):
        try:
            schema = prepared(_object_schema(tool))
        except UnsupportedSchema as error:
            raise UnsupportedSchema(f"{error}", i) from None
        if (size := size + len(schema)) > MAX_SCHEMA_BYTES:
            raise UnsupportedSchema(f"the schemas have more than {MAX_SCHEMA_BYTES} bytes", i)
        rules.append(f"tool{i}: {json.dumps(tool.function.name + _MIDDLE)} %json {schema}")
    return "%llguidance {}\n" + "\n".join(rules) + "\n"


def _call_rule(tools: Iterable[int]) -> str:
    choice = " | ".join(f"tool{i}" for i in tools)
    return f"{json.dumps(OPEN + _HEAD)} ({choice}) {json.dumps('}' + CLOSE)}"


def _object_schema(tool: Tool) -> dict[str, Any]:
    """Arguments are an object, whatever else the schema says; none given means no arguments."""
    schema = tool.function.parameters
    if not schema:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    return schema if "type" in schema or "$ref" in schema else {"type": "object", **schema}


@dataclass(frozen=True)
class CallStart:
    """The model has named the tool."""

    index: int
    name: str


@dataclass(frozen=True)
class CallArguments:
    """More of a call's arguments, as JSON text."""

    index: int
    text: str


class CallReader:
    """Reads calls out of text that comes in pieces cut anywhere."""

    def __init__(self) -> None:
        self._text = ""  # what isn't understood yet
        self._state = "head"
        self._index = 0
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def push(self, text: str) -> list[CallStart | CallArguments]:
        """What the text, with all before it, now says."""
        self._text += text
        found: list[CallStart | CallArguments] = []
        while True:
            before = (self._state, self._text)
            self._step(found)
            if (self._state, self._text) == before:
                return found

    def _step(self, found: list[CallStart | CallArguments]) -> None:
        if self._state == "head":
            head = OPEN + _HEAD
            if len(self._text) >= len(head) and self._text.lstrip("\n").startswith(head):
                self._text = self._text.lstrip("\n")[len(head) :]
                self._state = "name"
        elif self._state == "name":
            if (end := self._text.find(_MIDDLE)) >= 0:
                found.append(CallStart(self._index, self._text[:end]))
                self._text = self._text[end + len(_MIDDLE) :]
                self._state = "arguments"
        elif self._state == "arguments":
            length, done = self._scan(self._text)
            if length:
                found.append(CallArguments(self._index, self._text[:length]))
                self._text = self._text[length:]
            if done:
                self._state = "tail"
        elif self._state == "tail":
            tail = "}" + CLOSE
            if self._text.startswith(tail):
                self._text = self._text[len(tail) :]
                self._index += 1
                self._state = "head"

    def _scan(self, text: str) -> tuple[int, bool]:
        """How much of `text` belongs to the arguments' object, and whether it ends there."""
        for i, letter in enumerate(text):
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif letter == "\\":
                    self._escaped = True
                elif letter == '"':
                    self._in_string = False
            elif letter == '"':
                self._in_string = True
            elif letter in "{[":
                self._depth += 1
            elif letter in "}]":
                self._depth -= 1
                if self._depth == 0:
                    return i + 1, True
        return len(text), False
