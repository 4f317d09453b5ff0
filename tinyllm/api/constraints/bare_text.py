"""Strings that stand without JSON's quotes, held to what their schema says of them.

The grammar engine does that for JSON alone. Where a form of call writes a string as it is, up to a
tag or a quote, its `pattern`, lengths and `format` are put together here as one regular expression;
what can't be is refused, as in JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from tinyllm.api.constraints.grammar import FORMATS, UnsupportedSchema

# Keywords that lay another schema over the string: they would go unheeded.
LAID_OVER = ("allOf", "anyOf", "oneOf", "not", "if", "then", "else", "$ref", "$dynamicRef")
ANY = r"(.|\n)*"

_DAY = (r"(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
        r"|02-(?:0[1-9]|[12][0-9]))")  # fmt: skip
_DATE = f"[0-9]{{4}}-{_DAY}"
_HOUR = "(?:[01][0-9]|2[0-3]):[0-5][0-9]"
_TIME = rf"{_HOUR}:[0-5][0-9](?:\.[0-9]{{1,9}})?(?:Z|[+-]{_HOUR})"
_N = "[0-9]{1,9}"
_DAYS = f"(?:{_N}Y(?:{_N}M(?:{_N}D)?)?|{_N}M(?:{_N}D)?|{_N}D)"
_HOURS = f"T(?:{_N}H(?:{_N}M(?:{_N}S)?)?|{_N}M(?:{_N}S)?|{_N}S)"
_LABEL = "[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST = rf"{_LABEL}(?:\.{_LABEL})*"
_BYTE = "(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_HEX = "[0-9A-Fa-f]"
_WORD = f"{_HEX}{{1,4}}"
_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_OF_URI = r"(?:[A-Za-z0-9._~:/?\[\]@!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*"


def _ipv6() -> str:
    """Eight words; or fewer on both sides of one ::."""
    sides = [f"{_WORD}(?::{_WORD}){{7}}"]
    for left in range(8):
        before = f"{_WORD}(?::{_WORD}){{{left - 1}}}" if left else ""
        after = f"(?:{_WORD}(?::{_WORD}){{0,{6 - left}}})?" if left < 7 else ""
        sides.append(f"{before}::{after}")
    return "|".join(sides)


AS_PATTERN = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "duration": f"P(?:{_N}W|{_DAYS}(?:{_HOURS})?|{_HOURS})",
    "email": rf"{_ATOM}(?:\.{_ATOM})*@{_HOST}",
    "hostname": _HOST,
    "ipv4": rf"{_BYTE}(?:\.{_BYTE}){{3}}",
    "ipv6": _ipv6(),
    "uuid": f"{_HEX}{{8}}(?:-{_HEX}{{4}}){{3}}-{_HEX}{{12}}",
    "uri": rf"[A-Za-z][A-Za-z0-9+.-]*:{_OF_URI}(?:#{_OF_URI})?",
}
assert AS_PATTERN.keys() == FORMATS


def options(schema: Mapping[str, Any]) -> list[str] | None:
    """The strings that an `enum` or `const` leaves, of those that fit the rest; None without."""
    if "const" in schema:
        named = [schema["const"]]
    elif "enum" in schema:
        named = schema["enum"]
    else:
        return None
    try:
        wanted = [re.compile(one) for one in patterns(schema)]
    except re.error as error:
        raise UnsupportedSchema(f"the pattern isn't understood: {error}") from None
    fitting = [o for o in named if isinstance(o, str) and all(w.fullmatch(o) for w in wanted)]
    if not fitting:
        raise UnsupportedSchema("no string fits all that it says")
    return fitting


def patterns(schema: Mapping[str, Any]) -> list[str]:
    """Regular expressions that all have to match a whole string of this schema.

    Raises UnsupportedSchema for what can't be one.
    """
    if over := [keyword for keyword in LAID_OVER if keyword in schema]:
        raise UnsupportedSchema(
            f"{over[0]} beside a string's type can't be followed in this model's form of call"
        )
    found = []
    if isinstance(pattern := schema.get("pattern"), str):
        found.append(searched(pattern))
    if (form := schema.get("format")) in AS_PATTERN:
        found.append(f"(?:{AS_PATTERN[form]})")
    least, most = (schema.get(key) for key in ("minLength", "maxLength"))
    if least or most is not None:
        found.append(rf"(.|\n){{{int(least or 0)},{'' if most is None else int(most)}}}")
    return found


def searched(pattern: str) -> str:
    """A schema's pattern, which may match anywhere, as one that matches the whole.

    ^ and $ may stand at the ends of the alternatives between which it chooses, nowhere else.
    """
    whole = []
    for one in _alternatives(pattern):
        begins, ends = one.startswith("^"), bool(re.search(r"(?<!\\)(?:\\\\)*\$$", one))
        inside = one[begins : len(one) - ends]
        if re.search(r"[$^]", re.sub(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", "", inside, flags=re.S)):
            raise UnsupportedSchema(f"the pattern {pattern!r} has an anchor within")
        whole.append(f"{'' if begins else ANY}(?:{inside}){'' if ends else ANY}")
    return f"(?:{'|'.join(whole)})"


def _alternatives(pattern: str) -> list[str]:
    """What stands between the outermost bars."""
    found, depth = [""], 0
    for piece in re.findall(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|.", pattern, re.S):
        depth += (piece == "(") - (piece == ")")
        if piece == "|" and depth == 0:
            found.append("")
        else:
            found[-1] += piece
    return found


def text_rules(rule: str, schema: Mapping[str, Any], end: str) -> list[str]:
    """Grammar rules, of which `rule` is such a string and its end.

    Args:
        end: as a grammar spells it: what stands behind the string and so not in it, or a token.
    """
    if (named := options(schema)) is not None:
        choice = " | ".join(json.dumps(option) for option in named)
        return [f"{rule}: ({choice}) {end}"]
    held = " & ".join(f"/{_in_slashes(one)}/" for one in patterns(schema))
    own = f"{rule.upper()}_HELD"
    if end.startswith("<["):  # a token: no text can hold it
        return [
            f"{rule}: {own if held else f'/{ANY}/'} {end}",
            *([f"{own}: {held}"] if held else []),
        ]
    if not held:
        return [f"{rule}[lazy]: /{ANY}/ {end}"]
    # It ends where its end is first met.
    early = f"/{ANY}{_in_slashes(re.escape(json.loads(end)))}(.|\\n)+/"
    return [f"{rule}: {own}", f"{own}: ({held}) {end} & ~{early}"]


def _in_slashes(pattern: str) -> str:
    r"""A regular expression as it stands between two slashes: / and line ends become \/ and \n."""
    spelled = re.sub(
        r"\\.|/", lambda m: "\\/" if m[0] in ("/", "\\/") else m[0], pattern, flags=re.S
    )
    return spelled.replace("\\\n", "\\n").replace("\n", "\\n").replace("\r", "\\r")
