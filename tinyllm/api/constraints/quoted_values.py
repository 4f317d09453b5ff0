"""Arguments as FunctionGemma and Gemma 4 write them: `city:<escape>Rome<escape>,days:[1,2]`.

Keys stand bare, in alphabetical order; a string stands between two quotes that are tokens of their
own, with nothing in it escaped; all else is as in JSON. Here are its three uses: to write it, the
grammar of it, and JSON text read out of it, however it is cut into pieces.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from tinyllm.api.constraints.bare_text import text_rules
from tinyllm.api.constraints.grammar import UnsupportedSchema

PLAIN_KEY = re.compile(r"[\w.$-]+")  # any other stands between quotes, too
BARE_KEY = r"/[^<>:,{}\[\]\n]+/"


def write(value: Any, quote: str) -> str:
    """A value in this notation."""
    if isinstance(value, str):
        return f"{quote}{value}{quote}"
    if isinstance(value, Mapping):
        return "{" + write_pairs(value, quote) + "}"
    if isinstance(value, list):
        return "[" + ",".join(write(item, quote) for item in value) + "]"
    return json.dumps(value)


def write_pairs(values: Mapping[str, Any], quote: str) -> str:
    """What stands between an object's braces."""
    names = {key: key if PLAIN_KEY.fullmatch(key) else write(key, quote) for key in values}
    return ",".join(f"{names[key]}:{write(values[key], quote)}" for key in in_order(values))


def in_order(names: Mapping[str, Any]) -> list[str]:
    """As Jinja's `dictsort` orders them, with which the templates write."""
    return sorted(names, key=str.lower)


# -- the grammar -----------------------------------------------------------------------------------


class Rules:
    """The grammar of values that follow schemas, a rule each.

    Args:
        prefix: how the rules' names begin.
        quote: the string's quote, as a grammar spells it.
        whole: the outermost schema, into which references point.
    """

    def __init__(self, prefix: str, quote: str, whole: Mapping[str, Any]) -> None:
        self.rules: list[str] = []
        self._prefix, self._quote, self._whole = prefix, quote, whole
        self._any = ""
        self._referred: dict[str, str] = {}  # a place in the schema → its rule

    def pairs(self, schema: Mapping[str, Any]) -> str:
        """The name of a rule for what stands between an object's braces."""
        properties = schema.get("properties") or {}
        required = set(schema.get("required", ()))
        if not properties:
            if schema.get("additionalProperties") is False:
                return self._rule('""')
            pair = f'{BARE_KEY} ":" {self.anything()}'
            return self._rule(f'({pair} ("," {pair})*)?')
        keys = in_order(properties)
        pairs = [self._rule(f'{self._key(key)} ":" {self.value(properties[key])}') for key in keys]
        # rest: what may follow once a pair has been written; begun from the last key.
        rest, first = "", [] if required & set(keys) else ['""']
        for key, pair in zip(reversed(keys), reversed(pairs), strict=True):
            if key in required:
                first = [f"{pair} {rest}"]
            else:
                first.append(f"{pair} {rest}")
            optional = "" if key in required else "?"
            rest = self._rule(f'("," {pair}){optional} {rest}')
        return self._rule(" | ".join(first))

    def value(self, schema: Any) -> str:
        """The name of a rule for a value."""
        if schema is True or schema == {}:
            return self.anything()
        if not isinstance(schema, Mapping):
            raise UnsupportedSchema("a schema is an object")
        if "$ref" in schema:
            return self._reference(str(schema["$ref"]))
        for several in ("anyOf", "oneOf"):
            if several in schema:
                options = [self.value(option) for option in schema[several]]
                return self._rule(" | ".join(options))
        if schema.get("type") == "string":
            return self._text(schema)
        if "enum" in schema or "const" in schema:
            options = schema["enum"] if "enum" in schema else [schema["const"]]
            return self._rule(" | ".join(self._constant(option) for option in options))
        kind = schema.get("type")
        if isinstance(kind, list):
            options = [self.value({**schema, "type": one}) for one in kind]
            return self._rule(" | ".join(options))
        if kind is None and "properties" in schema:
            kind = "object"
        if kind == "object":
            return self._rule(f'"{{" {self.pairs(schema)} "}}"')
        if kind == "array":
            item = self.value(schema.get("items", True))
            least, most = int(schema.get("minItems", 0)), schema.get("maxItems")
            more = f"{{{max(least - 1, 0)},{'' if most is None else max(int(most) - 1, 0)}}}"
            items = f'{item} ("," {item}){more}'
            inside = items if least else f"({items})?"
            return self._rule(f'"[" {"" if most == 0 else inside} "]"')
        if kind in ("integer", "number", "boolean", "null"):
            return self._rule(f"%json {json.dumps(schema)}")
        return self.anything()

    def anything(self) -> str:
        """The name of the rule for any value."""
        if not self._any:
            self._any = f"{self._prefix}_any"
            pair = f'{BARE_KEY} ":" {self._any}'
            plain = '{"type": ["number", "boolean", "null"]}'
            self.rules.append(
                f"{self._any}: {self._text({})} | %json {plain}"
                f' | "[" ({self._any} ("," {self._any})*)? "]" | "{{" ({pair} ("," {pair})*)? "}}"'
            )
        return self._any

    def _key(self, key: str) -> str:
        return json.dumps(key) if PLAIN_KEY.fullmatch(key) else self._constant(key)

    def _text(self, schema: Mapping[str, Any]) -> str:
        inside = f"{self._prefix}_t{len(self.rules)}"
        self.rules += text_rules(inside, schema, self._quote)
        return self._rule(f"{self._quote} {inside}")

    def _constant(self, option: Any) -> str:
        if isinstance(option, str):
            return f"{self._quote} {json.dumps(option)} {self._quote}"
        if isinstance(option, (Mapping, list)):
            raise UnsupportedSchema("this model's form of call can't be held to a whole object")
        return json.dumps(json.dumps(option))

    def _reference(self, place: str) -> str:
        """The rule of a place in the schema: one, so that what refers to itself can be followed."""
        if place not in self._referred:
            name = self._referred[place] = f"{self._prefix}_r{len(self._referred)}"
            found: Any = self._whole
            for step in filter(None, place.removeprefix("#").split("/")):
                if not isinstance(found, Mapping) or step not in found:
                    raise UnsupportedSchema(f"$ref {place!r} isn't in it")
                found = found[step]
            self.rules.append(f"{name}: {self.value(found)}")
        return self._referred[place]

    def _rule(self, body: str) -> str:
        name = f"{self._prefix}_v{len(self.rules)}"
        self.rules.append(f"{name}: {body}")
        return name


# -- reading ---------------------------------------------------------------------------------------


class QuotedValues:
    """Reads one object, from behind its opening brace to before its closing one, into JSON text."""

    def __init__(self, quote: str) -> None:
        self.done = False
        self._quote = quote
        self._begun = False
        self._open = ["{"]
        self._in_text = False
        self._key = True  # whether a bare word is a key

    def scan(self, text: str) -> tuple[str, int]:
        """The JSON text that `text` says, and how much of `text` that was."""
        out, at = ([] if self._begun else ["{"]), 0
        self._begun = True
        while at < len(text) and not self.done:
            take = self._text if self._in_text else self._bare
            said, used = take(text[at:])
            if not used:
                break
            out.append(said)
            at += used
        if self.done:
            out.append("}")
        return "".join(out), at

    def _text(self, text: str) -> tuple[str, int]:
        """Letters of a string, up to what may be the beginning of its quote."""
        end = text.find(self._quote)
        if end == 0:
            self._in_text = False
            return '"', len(self._quote)
        end = end if end > 0 else len(text) - _begins(text, self._quote)
        return json.dumps(text[:end], ensure_ascii=False)[1:-1], end

    def _bare(self, text: str) -> tuple[str, int]:
        """A bracket, a comma, a quote, or a whole bare word."""
        if text.startswith(self._quote):
            self._in_text, self._key = True, False
            return '"', len(self._quote)
        letter = text[0]
        if letter in "{[":
            self._open.append(letter)
            self._key = letter == "{"
            return letter, 1
        if letter in "}]":
            self._open.pop()
            self.done = not self._open
            self._key = False
            return ("", 0) if self.done else (letter, 1)
        if letter == ",":
            self._key = self._open[-1] == "{"
            return ", ", 1
        if letter == ":":  # behind a key between quotes
            return ": ", 1
        if self._quote.startswith(text):
            return "", 0  # it may become a quote
        end = re.search(r":" if self._key else r"[,\]}]", text)
        if end is None:
            return "", 0
        word = text[: end.start()]
        if self._key:
            self._key = False
            return json.dumps(word.strip(), ensure_ascii=False) + ": ", end.end()
        try:
            json.loads(word)
        except ValueError:
            word = json.dumps(word, ensure_ascii=False)
        return word, end.start()


def _begins(text: str, quote: str) -> int:
    """How many letters at the end of `text` may be the beginning of the quote."""
    longest = min(len(quote) - 1, len(text))
    return next((n for n in range(longest, 0, -1) if text.endswith(quote[:n])), 0)
