"""How a vocabulary spells bytes: in GPT-2's stand-in letters, or in SentencePiece's ▁ and <0xE2>.

A token's piece is text in a spelling of the vocabulary's own. tokenizer.json says under "decoder"
how it is turned back, and added tokens (control tokens, runs of spaces) go through that like any
other: in Gemma 3 "▁▁" is an added token, and means two spaces.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import tokenizers

from tinyllm.errors import TokenizerError

STRAY_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
# What a decoder may be made of. Fuse only joins, Strip only takes the first space away.
KNOWN_STEPS = {"ByteLevel", "Metaspace", "ByteFallback", "Replace", "Fuse", "Strip"}


class Pieces:
    """A tokenizer's decoder, a token at a time and in bytes.

    Attributes:
        strips_space: whether a whole text loses one space in front: the tokenizer had put it there.
        reads_any_byte: whether nothing in a text is unknown to the vocabulary.

    Raises:
        TokenizerError: the decoder is of another kind (WordPiece, CTC …).
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        steps = list(_steps(as_json(backend.decoder)))
        names = {step["type"] for step in steps}
        if not names & {"ByteLevel", "Metaspace", "ByteFallback", "Replace"} or names - KNOWN_STEPS:
            raise TokenizerError(
                f"tokenizer.json decodes with {sorted(names) or 'nothing'}; byte-level and "
                "sentencepiece tokenizers are read here"
            )
        self._byte_level = "ByteLevel" in names
        self._byte_fallback = "ByteFallback" in names
        self.reads_any_byte = self._byte_level or self._byte_fallback
        self._replacements = list(_replacements(steps))
        self.strips_space = any(
            (step["type"] == "Strip" and step.get("start", 0) > 0)
            or (step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never")
            for step in steps
        )

    def bytes_of(self, piece: str) -> bytes:
        """What a token stands for: perhaps only a part of a character."""
        if self._byte_level:
            try:
                return bytes(BYTE_OF_LETTER[letter] for letter in piece)
            except KeyError:  # an added token, in letters that are no bytes'
                return piece.encode("utf-8")
        if self._byte_fallback and (byte := STRAY_BYTE.fullmatch(piece)):
            return bytes([int(byte[1], 16)])
        for old, new in self._replacements:
            piece = piece.replace(old, new)
        return piece.encode("utf-8")


def letters_in_one(normalizer: Any) -> int | None:
    """How many letters of a text become one at most, by a normalizer of tokenizer.json.

    None where that isn't known.
    """
    kind = None if normalizer is None else normalizer["type"]
    if kind == "Sequence":
        each = [letters_in_one(step) for step in normalizer["normalizers"]]
        return None if None in each else max([1, *filter(None, each)])
    if kind == "Replace":  # a space by a letter that stands for it
        pattern, content = normalizer["pattern"].get("String"), normalizer["content"]
        return 1 if pattern is not None and len(pattern) <= len(content) else None
    # Unicode's longest canonical compositions are of four code points.
    return {None: 1, "Prepend": 1, "NFC": 4}.get(kind)


def as_json(part: Any) -> Any:
    """A component of a tokenizer as tokenizer.json spells it; None for one that is missing."""
    return None if part is None else json.loads(part.__getstate__())


def _steps(decoder: Any) -> Iterator[dict[str, Any]]:
    """A decoder's steps, those of a sequence one by one."""
    if not isinstance(decoder, dict):
        return
    if decoder.get("type") == "Sequence":
        for step in decoder["decoders"]:
            yield from _steps(step)
    else:
        yield decoder


def _replacements(steps: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """What is replaced by what within a piece, in order."""
    for step in steps:
        if step["type"] == "Metaspace":
            yield step["replacement"], " "
        elif step["type"] == "Replace":
            pattern = step["pattern"]
            if "String" not in pattern:
                raise TokenizerError(f"tokenizer.json decodes with the pattern {pattern!r}")
            yield pattern["String"], step["content"]


def _byte_letters() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 bytes stand for themselves, the others for U+0100 on.

    openai/gpt-2, src/encoder.py, `bytes_to_unicode`.
    """
    letters: dict[str, int] = {}
    spare = 0x100
    for byte in range(256):
        if 0x21 <= byte <= 0x7E or 0xA1 <= byte <= 0xAC or 0xAE <= byte <= 0xFF:
            letters[chr(byte)] = byte
        else:
            letters[chr(spare)] = byte
            spare += 1
    return letters


BYTE_OF_LETTER = _byte_letters()
