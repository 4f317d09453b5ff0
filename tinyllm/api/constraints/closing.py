"""Structured answers that end: numbers of bounded length, and a way to close that still fits.

A grammar lets through what is valid, however long: at temperature 0 a small model may write digits
for ever. So digits are bounded to what every common reader takes exactly (15 of a double's), and
when the tokens that are left just suffice to close what is open, closing is all that is allowed.

The way to close is found by trying: from a copy of the grammar's state, tokens are taken that end
things (a quote inside a string, a brace, the shortest value where one is due) until the grammar is
content. It needn't be the shortest way of all; it is a way, and what it costs is known.

While far more tokens are left than the way takes, nothing is done. Near the limit (within a margin:
what one token may open) a token may come only if there is room for the way behind it: text inside a
plain string, which costs nothing; and of the rest the few that could matter, each tried.
"""

from __future__ import annotations

import json
import random
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from heapq import nlargest
from itertools import takewhile
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyllm.api.constraints.call_forms import CallForm
from tinyllm.api.constraints.grammar import Grammar, Matcher, Vocabulary
from tinyllm.api.constraints.json_text import DIGITS, JsonText
from tinyllm.api.constraints.least import openings
from tinyllm.api.limits import (
    MAX_ANSWER,
    MAX_COUNTED,
    MAX_FAILED,
    MAX_SEARCH,
    MAX_STEPS,
    MAX_TRIED,
)

MAX_DIGITS = 15  # of a number: what a double holds exactly
MAX_EXPONENT = 2  # digits of it: 1e999 is infinity to most readers
ENOUGH = 2  # ways, of which the shorter is taken
TRIES = 8  # beyond the first, where a pattern leaves no obvious way

Mask = NDArray[np.bool_]

# What ends a string, and what ends or fills anything else, best first.
_IN_STRING = (b'"}', b'"]', b'"')
_ELSEWHERE = (b"}", b"]", b"0", b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"8", b"9", b"null",
              b"true", b"false", b'""', b"[]", b"{}", b'"', b"[", b"{", b",", b", ", b":", b": ",
              b"-", b".")  # fmt: skip
# What patterns and formats tend to ask for inside a string.
_HINTS = (b"@", b".", b"-", b":", b"/", b"T", b"Z", b"P", b"a", b"b", b"x", b"0", b"1", b"com")

_BRACKETS = frozenset(b"<>[]{}|")


class TokenForms:
    """What closing needs to know of a vocabulary: which tokens are digits, quotes, plain text.

    Args:
        known: each token's bytes.
        ends: the tokens of what ends a string that stands without JSON's quotes.
    """

    def __init__(
        self, known: Sequence[bytes], vocab_size: int, ends: Sequence[Sequence[int]] = ()
    ) -> None:
        self.ends = ends
        # Tables are often padded beyond the tokens that there are.
        self.tokens = tokens = [*known, *[b""] * (vocab_size - len(known))][:vocab_size]
        ids: dict[bytes, int] = {}
        for i, raw in enumerate(tokens):
            ids.setdefault(raw, i)
        self.in_string = [ids[raw] for raw in _IN_STRING if raw in ids]
        forms = (*_ELSEWHERE, *(b" " + raw for raw in _ELSEWHERE), b" ")  # behind a colon or comma
        self.elsewhere = [ids[raw] for raw in forms if raw in ids]
        self.digits_last = [t for t in self.elsewhere if not _leading_digits(tokens[t])]
        self.digits_last += [t for t in self.elsewhere if _leading_digits(tokens[t])]
        self.hints = [ids[raw] for raw in _HINTS if raw in ids]
        self._sorted = sorted(ids.items())  # bytes → id, in the order of the bytes
        self.leading_digits = np.array([_leading_digits(raw) for raw in tokens], np.int16)
        # Inside a string these leave everything as open as it was.
        self.plain = np.array([_is_plain(raw) for raw in tokens])
        # Outside of calls these begin none: a marker ends in a bracket.
        self.words = np.array([_is_plain(raw) and not set(raw) & _BRACKETS for raw in tokens])
        self.lengths = np.array([len(raw) for raw in tokens], np.int16)

    def is_free(self, mask: Mask) -> bool:
        """Whether nearly any text may come."""
        return 2 * int(mask[self.plain].sum()) > int(self.plain.sum())

    def extending(self, text: bytes) -> list[int]:
        """Tokens that are `text` and something behind it."""
        first = bisect_right(self._sorted, text, key=itemgetter(0))
        longer = takewhile(lambda pair: pair[0].startswith(text), self._sorted[first:])
        return [token for _, token in longer]


def token_forms(
    tokenizer: Vocabulary, known: Sequence[bytes], vocab_size: int, form: CallForm | None
) -> TokenForms:
    """Of a model that writes its calls in `form`; `known` are each token's bytes."""
    text = form.string_end if form is not None else ""
    control = tokenizer.special_tokens.get(text)
    end = tokenizer.encode(text) if control is None else [control]
    whole = control is not None or b"".join(known[t] for t in end) == text.encode()
    return TokenForms(known, vocab_size, [end] if text and whole else ())


def _leading_digits(raw: bytes) -> int:
    """Digits at a token's start, a point among them."""
    n = 0
    for byte in raw:
        if byte in DIGITS:
            n += 1
        elif byte != 0x2E:
            break
    return n


def _is_plain(raw: bytes) -> bool:
    return bool(raw) and raw.isascii() and raw.decode("ascii").isprintable() and not (
        set(raw) & set(b'"\\')
    )  # fmt: skip


def bounded(mask: Mask, text: JsonText, forms: TokenForms) -> Mask:
    """A grammar's mask without digits past the bound, unless only digits may follow."""
    if not text.in_number:
        return mask
    left = (MAX_EXPONENT if text.in_exponent else MAX_DIGITS) - text.n_digits
    less: Mask = mask & (forms.leading_digits <= max(left, 0))
    return less if less.any() else mask


def way_to_close(
    matcher: Matcher, text: JsonText, forms: TokenForms, most: int = MAX_STEPS
) -> list[int] | None:
    """Tokens after which the grammar is content; None if no way was found.

    `most` bounds the first try, which takes what ends most; the others are left to chance.
    """
    way, gone = _try(matcher, text, forms, None, most)
    gone = min(gone, MAX_STEPS)
    if way is not None:
        return way
    found: list[list[int]] = []
    for seed in range(TRIES):
        if len(found) == ENOUGH or gone >= MAX_SEARCH:
            break
        way, n = _try(matcher, text, forms, random.Random(seed))
        gone += n
        if way is not None:
            found.append(way)
    return min(found, key=len, default=None)


def _try(
    matcher: Matcher,
    text: JsonText,
    forms: TokenForms,
    rng: random.Random | None,
    most: int = MAX_STEPS,
) -> tuple[list[int] | None, int]:
    """A way of at most so many tokens, if there is one, and how many were gone."""
    matcher, text = matcher.copy(), text.copy()
    way: list[int] = []
    while not matcher.accepting:
        if len(way) >= most or matcher.error:
            return None, len(way)
        following: list[int | None] = [*matcher.forced()]
        following = following or [*_end_of_bare(matcher, forms)]
        following = following or [_choice(matcher, text, forms, rng)]
        for token in following:
            if token is None:
                return None, len(way)
            over = matcher.accept(token)
            text.push(forms.tokens[token])
            way.append(token)
            if over:  # complete, or given up: what stands behind it can't come
                break
    return way, len(way)


def _end_of_bare(matcher: Matcher, forms: TokenForms) -> Sequence[int]:
    """What ends a string without quotes, if one is open and may end here; else nothing."""
    if not forms.ends or not forms.is_free(matcher.allowed()):
        return ()
    for end in forms.ends:
        behind = matcher.copy()
        fits = all(behind.allowed()[token] and not behind.accept(token) for token in end[:-1])
        if fits and behind.allowed()[end[-1]]:
            behind.accept(end[-1])
            if not forms.is_free(behind.allowed()):  # else it is text itself
                return end
    return ()


def _choice(
    matcher: Matcher, text: JsonText, forms: TokenForms, rng: random.Random | None
) -> int | None:
    """The token that ends most; where none does, a long one, or any."""
    mask = bounded(matcher.allowed(), text, forms)
    # What ends a number comes before one more digit.
    elsewhere = forms.digits_last if text.in_number else forms.elsewhere
    for token in forms.in_string if text.in_string else elsewhere:
        if mask[token]:
            return token
    allowed = np.flatnonzero(mask)
    if not len(allowed):
        return None
    hints = [token for token in forms.hints if mask[token]]
    if rng is not None and hints and rng.random() < 0.7:
        return rng.choice(hints)
    if rng is None or rng.random() < 0.3:
        return int(allowed[np.argmax(forms.lengths[allowed])])
    return int(allowed[rng.randrange(len(allowed))])


class Closing:
    """Keeps one choice's way to close within the tokens that it has left.

    Args:
        matcher: of the choice.
        forms: of the vocabulary.
        margin: tokens by which the way may get longer with one token of the answer.
        more: the same of a token that ends all and begins anew: another call of a tool.
        free_strings: text inside a string never changes the way.
        stop_ids: tokens that end an answer.
        way: to close from the start, if it is known.
    """

    def __init__(
        self,
        matcher: Matcher,
        forms: TokenForms,
        margin: int,
        more: int,
        free_strings: bool,
        stop_ids: frozenset[int],
        way: list[int] | None = None,
    ) -> None:
        self._matcher, self._forms = matcher, forms
        self._margin, self._more, self._free_strings = margin, more, free_strings
        self._stop_ids = list(stop_ids)
        self._text = JsonText()
        self._n_failed = 0  # searches for a way
        self._known = 0  # an upper bound of the way's length; 0: nothing is known yet
        self._standing = way  # the way from here, while it is known
        self._free_now = False  # plain text leaves the way as it is
        self._way: list[int] = []  # that is being gone
        self.begun = False  # closing has been forced on the answer

    def allowed(self, mask: Mask, n_left: int) -> Mask:
        """What of `mask` may come when `n_left` tokens are left, this one among them."""
        mask = bounded(mask, self._text, self._forms)
        if n_left > self._known + self._margin + self._more and self._known:
            return mask
        way = self._standing
        if way is None and self._n_failed < MAX_FAILED:
            way = way_to_close(self._matcher, self._text, self._forms)
            self._n_failed += way is None
        if way is None:  # nothing to hold on to: the answer may be cut
            self._known = n_left
            return mask
        self._standing, self._known = way, max(1, len(way))
        # Where a quote ends all and nearly any text may come before it, such text costs nothing.
        self._free_now = (
            self._free_strings
            and self._text.in_string
            and bool(way)
            and self._forms.tokens[way[0]].startswith(b'"')
            and self._forms.is_free(mask)
        )
        if n_left > len(way) + self._margin + (
            self._more if self._may_begin_anew(mask, way) else 0
        ):
            return mask
        return self._with_room(mask, way, n_left)

    def _may_begin_anew(self, mask: Mask, way: Sequence[int]) -> bool:
        """Whether one token may be the whole of the way, and the beginning of more."""
        if not self._more:
            return False
        text = b"".join(self._forms.tokens[token] for token in way)
        return not text or bool(mask[self._forms.extending(text)].any())

    def _with_room(self, mask: Mask, way: list[int], n_left: int) -> Mask:
        """What of `mask` leaves room for a way to close; `way` is one from here."""
        only = np.zeros_like(mask)
        if way:
            only[way[0]] = True
        else:
            only[self._stop_ids] = mask[self._stop_ids]
            words = mask & self._forms.words
            if 2 * words.sum() > self._forms.words.sum():  # free text, which may end anywhere
                only |= words
        if n_left > len(way):
            if self._free_now:
                only |= mask & self._forms.plain
            for token in self._worth_trying(mask & ~only):
                only[token] = self._fits(token, n_left - 1)
        if not only.any():
            return mask
        if way and only.sum() == 1 < mask.sum():
            self._way, self.begun = way, True
        return only

    def _worth_trying(self, mask: Mask) -> list[int]:
        """Every token, if there are few; else those that end, begin and separate things."""
        if int(mask.sum()) <= MAX_TRIED:
            return [int(token) for token in np.flatnonzero(mask)]
        forms = self._forms
        likely = forms.in_string if self._text.in_string else forms.digits_last
        return [token for token in likely if mask[token]][:MAX_TRIED]

    def _fits(self, token: int, n_left: int) -> bool:
        """Whether there is a way to close behind `token` within `n_left` tokens."""
        matcher, text = self._matcher.copy(), self._text.copy()
        matcher.accept(token)
        text.push(self._forms.tokens[token])
        way, _ = _try(matcher, text, self._forms, None, n_left)
        return way is not None and len(way) <= n_left

    def forced(self) -> Sequence[int]:
        """What is left of the way that is being gone."""
        return self._way

    def accept(self, token: int) -> None:
        """Take note of a token of the answer."""
        self._way = self._way[1:] if self._way and self._way[0] == token else []
        same = self._free_now and self._forms.plain[token]
        self._free_now = False
        if self._standing and self._standing[0] == token:
            self._standing = self._standing[1:]
        elif not same:
            self._standing = None
            self._known += self._margin + self._more if self._known else 0
        self._text.push(self._forms.tokens[token])


@dataclass(frozen=True)
class Format:
    """What an answer must fit: a grammar, and what it takes to end an answer under it."""

    grammar: Grammar
    forms: TokenForms
    margin: int
    free_strings: bool
    more: int = 0
    has_patterns: bool = True

    def closing(self, matcher: Matcher, stop_ids: frozenset[int]) -> Closing:
        """Of one choice, at its start."""
        return Closing(
            matcher, self.forms, self.margin, self.more, self.free_strings, stop_ids, self._way
        )

    def shortest(self) -> int:
        """Tokens of a short answer that fits; 0 if none was found.

        Without patterns what ends most leads to the end: an answer that it doesn't end within
        MAX_ANSWER takes more.
        """
        if self._way is None and not self.has_patterns:
            return MAX_ANSWER + 1
        return len(self._way or ())

    @cached_property
    def _way(self) -> list[int] | None:
        """A short answer that fits: what a budget is promised by, and so what it is closed with."""
        most = MAX_STEPS if self.has_patterns else MAX_ANSWER
        return way_to_close(self.grammar.matcher(), JsonText(), self.forms, most)


BASE_MARGIN = 6  # tokens: braces, commas and quotes that one token may open
STRING_MARGIN = 48  # … and by which a pattern's way may get longer, which is found by chance


def margin_of(schemas: Iterable[Mapping[str, Any]], count: Callable[[str], int]) -> int:
    """Tokens that may be needed to end what one token has begun; `count` counts a text's."""
    schemas = list(schemas)
    texts = {text for schema in schemas for text in openings(schema, schema)}
    longest = nlargest(MAX_COUNTED, texts, key=len)  # in letters; of those the one of most tokens
    margin = BASE_MARGIN + max(map(count, longest), default=0)
    return margin if strings_are_free(schemas) else margin + STRING_MARGIN


def strings_are_free(schemas: Iterable[Mapping[str, Any]]) -> bool:
    """Whether a string may end wherever it is."""
    return not _mentions(schemas, "pattern", "format", "minLength")


def have_patterns(schemas: Iterable[Mapping[str, Any]]) -> bool:
    """Whether an answer's way to its end may have to be guessed."""
    return _mentions(schemas, "pattern", "patternProperties", "format", "not")


def _mentions(schemas: Iterable[Mapping[str, Any]], *keywords: str) -> bool:
    text = json.dumps(list(schemas))
    return any(f'"{keyword}"' in text for keyword in keywords)
