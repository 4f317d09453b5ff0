"""Reads words and calls of tools out of an answer's text, however it is cut into pieces."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from tinyllm.api.constraints.call_forms import HERMES, CallForm
from tinyllm.api.constraints.quoted_values import QuotedValues
from tinyllm.api.constraints.tool_calls import is_text, object_schema
from tinyllm.api.contract.tools import Tool


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


@dataclass(frozen=True)
class Words:
    """Text outside of calls."""

    text: str


Found = CallStart | CallArguments | Words
State = Literal["words", "name", "arguments", "pairs", "quoted", "tail", "list"]
STATES: dict[str, State] = {"json": "arguments", "parameters": "pairs", "quoted": "quoted"}


@dataclass(frozen=True)
class CallSpec:
    """How the calls of an answer are to be read.

    texts: by tool, the parameters whose values are strings; where a form writes those bare.
    words: whether free text may stand between calls.
    """

    form: CallForm = HERMES
    texts: Mapping[str, frozenset[str]] | None = None
    words: bool = False


def texts_of(tools: Iterable[Tool]) -> dict[str, frozenset[str]]:
    """By tool, the parameters that are strings."""
    return {
        tool.function.name: frozenset(
            key
            for key, schema in (object_schema(tool).get("properties") or {}).items()
            if is_text(schema)
        )
        for tool in tools
    }


class CallReader:
    """Reads one answer; `push` its text in pieces, and `finish`.

    Space around a call belongs to the form, not to the words. Where no words are expected, text
    outside of calls is passed over.
    """

    def __init__(self, spec: CallSpec | None = None) -> None:
        self._spec = spec or CallSpec()
        self._form = self._spec.form
        # What may stand before a name; space in it is as the model likes.
        self._start = self._form.first + self._form.opening
        self._starts = re.compile(_loosely(self._start))
        self._next = re.compile(_loosely(self._form.between + self._form.opening))
        # A list's calls may have the ids that the template writes.
        self._ends = re.compile(r'\s*(,\s*"id"\s*:\s*"\w*"\s*)?' + _loosely(self._form.closing))
        self._signal = self._start.lstrip()[:1]
        self._text = ""  # what isn't understood yet
        self._state: State = "words"
        self._index = 0
        self._name = ""
        self._n_pairs = 0
        self._space = ""  # held back until it is known whether words follow
        self._said = False
        self._json = _JsonEnd()
        self._quoted = QuotedValues(self._form.quote)

    def push(self, text: str) -> list[Found]:
        """What the text, with all before it, now says."""
        self._text += text
        found: list[Found] = []
        while True:
            before = (self._state, self._text)
            getattr(self, f"_in_{self._state}")(found)
            if (self._state, self._text) == before:
                return found

    def finish(self) -> list[Found]:
        """What was held back, once no text can follow."""
        found = self.push("")
        if self._state == "words" and self._text:
            self._say(self._text, found)
            self._text = ""
        return found

    def _in_words(self, found: list[Found]) -> None:
        if match := self._starts.search(self._text):
            self._say(self._text[: match.start()], found)
            self._space = "\n" if self._said else ""
            self._text = self._text[match.end() :]
            self._state = "name"
            return
        # A call may have begun: its start is kept until it is one, or can't be.
        begun = self._text.find(self._signal)
        while begun >= 0 and not self._may_start(self._text[begun:]):
            begun = self._text.find(self._signal, begun + 1)
        end = len(self._text) if begun < 0 else begun
        self._say(self._text[:end], found)
        self._text = self._text[end:]

    def _may_start(self, text: str) -> bool:
        """Whether `text` is the beginning of what a call begins with."""
        return re.sub(r"\s+", "", self._start).startswith(re.sub(r"\s+", "", text))

    def _say(self, text: str, found: list[Found]) -> None:
        if not self._spec.words:
            return
        text = self._space + text
        kept = text.rstrip()
        self._space = text[len(kept) :]
        if kept:
            self._said = True
            found.append(Words(kept))

    def _in_name(self, found: list[Found]) -> None:
        end = self._text.find(self._form.middle)
        if end < 0:
            return
        self._name = self._text[:end]
        if self._form.counted:
            self._name = self._name.rpartition(":")[0]
        found.append(CallStart(self._index, self._name))
        self._text = self._text[end + len(self._form.middle) :]
        self._json, self._quoted, self._n_pairs = _JsonEnd(), QuotedValues(self._form.quote), 0
        self._state = STATES[self._form.arguments]

    def _in_arguments(self, found: list[Found]) -> None:
        length = self._json.scan(self._text)
        if length:
            found.append(CallArguments(self._index, self._text[:length]))
            self._text = self._text[length:]
        if self._json.done:
            self._state = "tail"

    def _in_quoted(self, found: list[Found]) -> None:
        said, used = self._quoted.scan(self._text)
        if said:
            found.append(CallArguments(self._index, said))
            self._text = self._text[used:]
        if self._quoted.done:
            self._state = "tail"

    def _in_pairs(self, found: list[Found]) -> None:
        form = self._form
        if self._text.startswith(form.pair_opening):
            end = self._text.find(form.pair_closing)
            key, middle, value = self._text[len(form.pair_opening) : max(end, 0)].partition(
                form.pair_middle
            )
            if end < 0 or not middle:
                return
            self._text = self._text[end + len(form.pair_closing) :]
            before = ", " if self._n_pairs else "{"
            self._n_pairs += 1
            pair = f"{before}{json.dumps(key, ensure_ascii=False)}: {self._as_json(key, value)}"
            found.append(CallArguments(self._index, pair))
        elif self._text.startswith(form.closing):
            found.append(CallArguments(self._index, "}" if self._n_pairs else "{}"))
            self._state = "tail"

    def _as_json(self, key: str, value: str) -> str:
        """A bare value: a string if the schema says so, or if it is no JSON."""
        texts = (self._spec.texts or {}).get(self._name)
        if texts is None or key not in texts:
            try:
                json.loads(value)
                return value
            except (ValueError, RecursionError):
                pass
        return json.dumps(value, ensure_ascii=False)

    def _in_tail(self, found: list[Found]) -> None:
        """What ends a call."""
        if match := self._ends.match(self._text):
            self._text = self._text[match.end() :]
            self._index += 1
            self._state = "list" if self._form.last else "words"

    def _in_list(self, found: list[Found]) -> None:
        """Between a list's calls, or at its end."""
        if match := self._next.match(self._text):
            self._text = self._text[match.end() :]
            self._state = "name"
        elif self._text.lstrip().startswith(self._form.last):
            self._text = self._text.lstrip()[len(self._form.last) :]
            self._state = "words"


class _JsonEnd:
    """Finds where a JSON object ends, letter by letter."""

    def __init__(self) -> None:
        self.done = False
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def scan(self, text: str) -> int:
        """How much of `text` belongs to the object."""
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
                    self.done = True
                    return i + 1
        return len(text)


def _loosely(start: str) -> str:
    """A pattern of `start` with any space, or none, where it has some or a bracket opens."""
    pieces = re.split(r"\s+", start)
    return r"\s*".join(map(re.escape, pieces))
