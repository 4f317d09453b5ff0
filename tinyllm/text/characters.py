"""Tokens as text to look at, where several tokens share one character as well.

A token is some bytes, and a letter of Chinese or Cyrillic or an emoji is up to four of them: a
byte-level vocabulary may cut it anywhere. By itself such a token is no text; beside its neighbours
it is a part of their character, and is shown as that: "东⟨e4b8⟩", then "东⟨9c⟩".
"""

from __future__ import annotations

import codecs
import contextlib
from collections.abc import Iterable, Iterator, Sequence


class TokenTexts:
    """What shows tokens, on top of `token_bytes`."""

    def token_bytes(self, token_id: int) -> bytes:
        """What a token stands for, as raw bytes: perhaps only a part of a character."""
        raise NotImplementedError

    def token_text(self, token_id: int, after: bytes = b"") -> str:
        r"""A token for display: on one line, with `\n` and stray bytes (`\xe2`) escaped.

        Args:
            token_id: the token.
            after: the beginning of a character that stands before it; see `unfinished`. What the
                token makes of it is shown as that character and the token's own bytes: "东⟨9c⟩".
        """
        raw = self.token_bytes(token_id)
        return parts_of_characters([after, raw])[1] if after else escaped(raw)

    def token_texts(self, ids: Iterable[int]) -> list[str]:
        """Tokens that stand side by side, each for display: parts of a character as such."""
        texts: list[str] = []
        group: list[bytes] = []  # tokens that share characters
        for token in ids:
            group.append(self.token_bytes(token))
            if not unfinished(b"".join(group)):
                texts += parts_of_characters(group)
                group = []
        return texts + parts_of_characters(group)

    def unfinished(self, ids: Sequence[int]) -> bytes:
        """The first bytes of a character that the last of these tokens have begun, or b""."""
        return unfinished(b"".join(self.token_bytes(token) for token in ids[-3:]))


def unfinished(raw: bytes) -> bytes:
    """The bytes at the end that begin a character of UTF-8 without ending it: 0 to 3."""
    for tail in (raw[-3:], raw[-2:], raw[-1:]):
        if tail and tail[0] >= 0xC2:
            with contextlib.suppress(UnicodeDecodeError):
                if codecs.utf_8_decode(tail, "strict", False)[1] == 0:
                    return tail
    return b""


def parts_of_characters(pieces: Sequence[bytes]) -> list[str]:
    """Byte strings side by side, each as text: a character that they share is named in each."""
    raw = b"".join(pieces)
    texts, start = [], 0
    spans = list(_characters(raw))
    for piece in pieces:
        end, text = start + len(piece), ""
        for first, last in spans:
            if first >= end or last <= start:
                continue
            own, character = raw[max(first, start) : min(last, end)], raw[first:last]
            text += escaped(character) + ("" if own == character else f"⟨{own.hex()}⟩")
        texts.append(text)
        start = end
    return texts


def escaped(raw: bytes) -> str:
    r"""Bytes on one line: text as it is, what doesn't print and stray bytes escaped."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        return "".join(chr(b) if 32 <= b < 127 else f"\\x{b:02x}" for b in raw)
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def _characters(raw: bytes) -> Iterator[tuple[int, int]]:
    """Where each character begins and ends; a byte that belongs to none is taken by itself."""
    at = 0
    while at < len(raw):
        end = at + max(1, _length(raw[at]))
        try:
            raw[at:end].decode("utf-8")
        except UnicodeDecodeError:
            end = at + 1
        yield at, min(end, len(raw))
        at = end


def _length(first: int) -> int:
    """How many bytes a character has that begins with this one; 0: none begins so."""
    table = ((0x80, 1), (0xC2, 0), (0xE0, 2), (0xF0, 3), (0xF5, 4))  # RFC 3629, section 4
    return next((n for above, n in table if first < above), 0)
