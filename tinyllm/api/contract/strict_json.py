"""JSON from strangers: what the standard parser lets through and a server must not.

`json.loads` takes NaN and Infinity, turns 1e400 into infinity, builds integers of any size and
strings with half a surrogate pair. Each is found here with its place in the document, so that
the error can name it. And it is counted before it is parsed: the parser holds the interpreter's
lock from beginning to end, so whatever it takes, every other request waits for.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from tinyllm.api.contract.errors import ApiError, Loc, invalid
from tinyllm.api.limits import (
    MAX_CONTAINERS,
    MAX_DEPTH,
    MAX_ENTRIES,
    MAX_INT,
    MAX_INT_DIGITS,
    MAX_MARKS,
    READ_TWICE,
)


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object in `body`; an ApiError that names the place if it is anything else.

    At most about a quarter of a second of the interpreter's lock for 32 MiB of any shape.
    """
    if sum(map(body.count, (b",", b"[", b"{"))) > MAX_MARKS:
        raise _too_many(f"The body holds more than {MAX_MARKS:,} commas and brackets")
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        if len(body) > READ_TWICE:
            raise _not_json(f"it is not UTF-8 (byte {error.start})") from None
        # Such a byte becomes half a surrogate pair, and is found at its place as these are.
        text = body.decode("utf-8", "surrogateescape")
    if text.startswith("\ufeff"):
        raise _not_json("it starts with a byte order mark") from None
    try:
        value = json.loads(text, parse_int=_integer)
    except json.JSONDecodeError as error:
        where = f"{error.msg} at line {error.lineno}, column {error.colno}"
        raise _not_json(where, _unreadable_member(text)) from None
    except RecursionError:
        raise _too_deep(_unreadable_member(text)) from None
    if not isinstance(value, dict):
        raise invalid("The body must be a JSON object.", kind="dict_type")
    check_values(value)
    return value


def parse_inner(text: str) -> Any:
    """JSON that stands in a string of the body, held to the same rules.

    Raises ValueError, with what is wrong.
    """
    if sum(map(text.count, (",", "[", "{"))) > MAX_MARKS:
        raise ValueError(f"it holds more than {MAX_MARKS:,} commas and brackets")
    try:
        value = json.loads(text, parse_int=_integer)
        check_values(value)
    except RecursionError:
        raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep") from None
    except ApiError as error:
        raise ValueError(error.message) from None
    return value


def _integer(digits: str) -> int:
    """That integer, or one that is too large as well where converting it would take long."""
    return int(digits) if len(digits) <= MAX_INT_DIGITS + 1 else MAX_INT + 1


def _not_json(why: str, loc: Loc = ()) -> ApiError:
    return invalid(f"The body is not valid JSON: {why}.", *loc, kind="json_invalid")


def _too_deep(loc: Loc) -> ApiError:
    message = f"The body is nested more than {MAX_DEPTH} levels deep."
    return invalid(message, *loc, kind="too_deep")


def check_values(root: Any) -> None:
    """Refuse what JSON has no room for, anywhere below `root`. ApiError names the place.

    So that what reads the values next, a rule at a time, has few of them to read.
    """
    pending: list[tuple[Loc, Any]] = [((), root)]
    containers = 0
    while pending:
        loc, value = pending.pop()
        if isinstance(value, str):
            if not _is_text(value):
                raise invalid("It is not text in UTF-8.", *loc, kind="string_unicode")
        elif isinstance(value, float):
            if not math.isfinite(value):
                raise invalid("The number must be finite.", *loc, kind="finite_number")
        elif isinstance(value, bool) or value is None:
            continue
        elif isinstance(value, int):
            if abs(value) > MAX_INT:
                raise invalid("The integer doesn't fit in 64 bits.", *loc, kind="int_too_large")
        else:
            if len(loc) >= MAX_DEPTH:
                raise _too_deep(loc[:1])
            containers += 1
            if containers > MAX_CONTAINERS:
                raise _too_many(f"The body holds more than {MAX_CONTAINERS:,} objects and lists")
            if len(value) > MAX_ENTRIES and not _is_numbers(value):
                raise _too_many(f"More than {MAX_ENTRIES:,} entries", *loc)
            if isinstance(value, dict):
                for key in value:
                    if not _is_text(key):
                        raise invalid("A key is not text in UTF-8.", *loc, kind="string_unicode")
                pending.extend(((*loc, key), item) for key, item in value.items())
            else:
                pending.extend(((*loc, i), item) for i, item in enumerate(value))


def _is_numbers(value: Any) -> bool:
    return isinstance(value, list) and {int, float}.issuperset(map(type, value))


def _too_many(message: str, *loc: str | int) -> ApiError:
    return invalid(f"{message}.", *loc, kind="too_many_values")


def _is_text(value: str) -> bool:
    if value.isascii():
        return True
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


_GAP = re.compile(r"[ \t\n\r,:]*")  # what stands between keys and values


def _unreadable_member(text: str) -> Loc:
    """The top-level key whose value the parser can't read; () if it fails elsewhere.

    Keys and values are read one by one until that fails: by the same parser, so only where the
    document is short enough to be read twice.
    """
    decoder, key = json.JSONDecoder(parse_int=_integer), None
    end = text.find("{") + 1
    try:
        while len(text) <= READ_TWICE:
            key, end = decoder.raw_decode(text, _after_gap(text, end))
            _, end = decoder.raw_decode(text, _after_gap(text, end))
            key = None
    except (ValueError, RecursionError):
        pass
    return (key,) if isinstance(key, str) and _is_text(key) else ()


def _after_gap(text: str, start: int) -> int:
    gap = _GAP.match(text, start)
    return start if gap is None else gap.end()
