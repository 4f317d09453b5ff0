"""No string of a chat can read as a control token, or become part of one: letters are swapped.

A template glues people's strings to its own. So in every string that goes in, the first letter of
anything that is a control token, or could become one with what is put around it, is swapped for a
stand-in letter that occurs nowhere else; when the template is rendered, what reads as a control
token the template has written, and the letters are put back.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tinyllm.errors import TokenizerError

ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function", "ipython"})
PRIVATE_USE = range(0xE000, 0xF900)  # code points that mean nothing: stand-ins are taken from here


class ControlTexts:
    """A tokenizer's control tokens as texts: where they stand in a string, or could arise."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts = frozenset(filter(None, texts))
        self._lengths = sorted({len(text) for text in self.texts})
        self._longest = max(self._lengths, default=0)
        self._first = re.compile("|".join(re.escape(c) for c in {t[0] for t in self.texts}) or "$^")
        self._heads = {text[:k] for text in self.texts for k in range(1, len(text))}
        self._tails = {text[k:] for text in self.texts for k in range(1, len(text))}

    def inside(self, text: str) -> set[int]:
        """Where a control token is written out in the text."""
        return {
            at
            for at in (match.start() for match in self._first.finditer(text))
            if any(text[at : at + n] in self.texts for n in self._lengths)
        }

    def at_ends(self, text: str) -> set[int]:
        """Where the text could become part of a control token by what a template puts around it."""
        places: set[int] = set()
        start = len(text) - len(text.lstrip())  # templates trim, which moves the ends
        end = len(text.rstrip())
        for first, last in {(0, len(text)), (start, end)}:
            core = text[first:last]
            if 0 < len(core) < self._longest and any(core in special for special in self.texts):
                places.add(first)  # the middle of one
            for k in range(1, min(self._longest, len(core) + 1)):
                if core[:k] in self._tails:  # the end of one
                    places.add(first)
                if core[-k:] in self._heads:  # the beginning of one
                    places.add(last - k)
        return places

    def rename(self, text: str, names: Mapping[str, str]) -> str:
        """The text with every control token in it under another name.

        Leftmost first, and of several at one place the longest, as the tokenizers library reads.
        """
        pieces, done = [], 0
        for match in self._first.finditer(text):
            at = match.start()
            found = next(
                (text[at : at + n] for n in reversed(self._lengths)
                 if at >= done and text[at : at + n] in self.texts), None
            )  # fmt: skip
            if found is not None:
                pieces += [text[done:at], names[found]]
                done = at + len(found)
        return "".join(pieces) + text[done:]


class StandIns:
    """The letters swapped in one chat. `inputs` is all that goes into it, the template included."""

    def __init__(self, control: ControlTexts, inputs: object) -> None:
        self._control = control
        used = set().union(*map(set, strings(inputs)), *control.texts)
        self._free = (chr(c) for c in PRIVATE_USE if chr(c) not in used)
        self._letters: dict[str, str] = {}  # letter → its stand-in

    def protect(self, value: Any) -> Any:
        """`value` with every string in it made harmless.

        Words that templates look for, the keys and what stands under "type", are only searched
        for whole control tokens: `text` is also the middle of `<jupyter_text>`.
        """
        if isinstance(value, str):
            return self._swap(value, self._control.inside(value) | self._control.at_ends(value))
        if isinstance(value, Mapping):
            return {
                self._word(key): self._word(item) if key == "type" else self.protect(item)
                for key, item in value.items()
            }
        if isinstance(value, (list, tuple)):
            return [self.protect(item) for item in value]
        return value

    def protect_message(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """As `protect`; but a role stays as it is, for templates do write `<|{{ role }}|>`."""
        safe: dict[str, Any] = self.protect(message)
        role = message.get("role")
        if isinstance(role, str) and role in ROLES:
            safe["role"] = role
        return safe

    def undo(self, text: str) -> str:
        """Give every stand-in its letter back, also where a template wrote it as a JSON escape."""
        for letter, stand_in in self._letters.items():
            text = text.replace(stand_in, letter)
            text = text.replace(f"\\u{ord(stand_in):04x}", json.dumps(letter)[1:-1])
        return text

    def _word(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._swap(value, self._control.inside(value))
        return self.protect(value)

    def _swap(self, text: str, places: set[int]) -> str:
        if not places:
            return text
        letters = list(text)
        for place in places:
            letter = letters[place]
            if letter not in self._letters:
                stand_in = next(self._free, None)
                if stand_in is None:
                    raise TokenizerError("the messages use up all private-use letters")
                self._letters[letter] = stand_in
            letters[place] = self._letters[letter]
        return "".join(letters)


def strings(value: object) -> Iterator[str]:
    """All strings inside nested lists and mappings; each checked to be Unicode."""
    if isinstance(value, str):
        check_unicode(value)
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from strings(key)
            yield from strings(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from strings(item)


def check_unicode(text: str) -> None:
    """Raise `TokenizerError` on a lone half of a surrogate pair, which no tokenizer can take."""
    if not isinstance(text, str):
        raise TypeError(f"text must be a string, not {type(text).__name__}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"the text is not Unicode: half of a surrogate pair at position {error.start}"
        ) from error
