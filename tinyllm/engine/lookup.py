"""Lookup decoding: several tokens a pass, guessed from the text so far, with the same bits.

A pass over one token reads all weights; over a few tokens of one sequence it reads them once, too.
So what comes next is guessed, run together with the newest token, and drawn position by position
from the logits: as long as the draws are what was guessed, the next row of logits is that of the
text so far, and the first that differs is drawn as well. What was guessed beyond it is thrown away.
Nothing but time depends on the guesses, since a row's logits are the same bits whatever is beside
it (`Runner.batch_invariant`).

Guesses cost no second model. They come from what a guide forces, and from the text itself: the
longest suffix of it that occurred before, and what followed there (Saxena 2023, prompt lookup
decoding, https://github.com/apoorvumang/prompt-lookup-decoding; Yang et al. 2023, LLMA,
https://arxiv.org/abs/2304.04487; verification as Leviathan et al. 2023,
https://arxiv.org/abs/2211.17192, where the guess has all its probability on one token).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

LONGEST = 16  # tokens of a suffix that are compared; a longer match counts as one of so many
FULL = 8  # rows that decode from which on nothing is guessed: a pass is short of arithmetic then
MOST_ROWS = 32  # of a pass with guesses
# How likely a guess is right, by the length of the match before it, as long as an answer has not
# shown otherwise: of 1, 2, 3 … 4, 5 … 8, and more tokens.
FIRST_ODDS = (0.1, 0.25, 0.5, 0.7, 0.85)
LEARN = 0.15  # share of a new observation in the odds


def longest_match(ids: NDArray[np.int64]) -> tuple[int, int]:
    """Where the longest suffix of ids (T,) occurred before: (place behind it, its length).

    The latest such place; (0, 0) when even the last token is new. At most LONGEST are compared.
    """
    n, behind, length = len(ids), 0, 0
    places = np.flatnonzero(ids[:-1] == ids[-1]) + 1
    while len(places):
        behind, length = int(places[-1]), length + 1
        if length == LONGEST:
            break
        places = places[places > length]
        places = places[ids[places - 1 - length] == ids[n - 1 - length]]
    return behind, length


class Lookup:
    """What may come next in one answer, by its own text, and how often that was right so far.

    It learns from every token for which it had a guess, run or not, so it costs nothing to find out
    that an answer doesn't repeat anything.

    Args:
        ids: (T,) of the prompt; negative ones stand for images, and are never guessed.
        max_tokens: the longest answer.
    """

    def __init__(self, ids: NDArray[np.int64], max_tokens: int) -> None:
        self._ids = np.empty(len(ids) + max_tokens, np.int64)
        self._ids[: len(ids)] = ids
        self._n = len(ids)
        self._match: tuple[int, int] | None = None  # place of the next token's guess, match length
        self._odds = list(FIRST_ODDS)

    def push(self, token: int) -> None:
        """Take note of the answer's next token."""
        match, self._match = self._match, None
        if match and match[1]:
            place, length = match
            hit = bool(self._ids[place] == token)
            kind = _kind(length)
            self._odds[kind] += LEARN * (hit - self._odds[kind])
            if hit:  # the match goes on, and no other can have become longer
                self._match = place + 1, length + 1
        self._ids[self._n] = token
        self._n += 1

    def guesses(self, most: int) -> tuple[list[int], list[float]]:
        """At most so many next tokens, and each one's probability that it and all before are right.

        The probabilities fall.
        """
        if self._match is None:
            self._match = longest_match(self._ids[: self._n])
        place, length = self._match
        if not length:
            return [], []
        tokens = self._ids[place : min(place + most, self._n)].tolist()
        if any(token < 0 for token in tokens):
            tokens = tokens[: next(i for i, token in enumerate(tokens) if token < 0)]
        odds, odds_of_all = [], 1.0
        for i in range(len(tokens)):
            odds_of_all *= self._odds[_kind(length + i)]
            odds.append(odds_of_all)
        return tokens, odds


def _kind(length: int) -> int:
    """Which of the odds a match of this length has."""
    return (length - 1).bit_length() if length <= 8 else len(FIRST_ODDS) - 1


def share_rows(
    offers: Sequence[Sequence[float]], seconds: Callable[[int], float], most: int
) -> list[int]:
    """How many guesses of each sequence to run, for the most tokens a second.

    Each sequence has one row, and a token to come, without any guess. The guesses are taken from
    the likeliest down, as far as the expected tokens grow faster than the time of the pass.

    Args:
        offers: of each sequence, the falling probabilities of its guesses.
        seconds: of a pass, by its rows.
        most: rows of the pass.
    """
    n_rows = len(offers)
    ranked = sorted(
        ((odds, i) for i, offer in enumerate(offers) for odds in offer), key=lambda o: -o[0]
    )
    expected, best, taken = float(n_rows), n_rows / seconds(n_rows), 0
    for n, (odds, _) in enumerate(ranked[: most - n_rows], 1):
        expected += odds
        rate = expected / seconds(n_rows + n)
        if rate > best:
            best, taken = rate, n
    counts = Counter(i for _, i in ranked[:taken])
    return [counts[i] for i in range(n_rows)]


class PassTime:
    """Seconds of a pass by its rows, learnt from those that were run; sizes go by whole tiles.

    A size that was not run lately is thought to cost little more than the next smaller one that
    was: so it is tried, and then known.
    """

    PER_ROW = 0.06  # what another row is thought to add, in passes of one row
    FORGET = 256  # passes, after which a size has to be tried again: the machine may be free now

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}  # by size
        self._last: dict[int, int] = {}  # size → the pass in which it was seen
        self._passes = 0

    def observe(self, n_rows: int, seconds: float) -> None:
        """Learn from a pass: quickly when it took less than thought, else slowly."""
        self._passes += 1
        size = _size(n_rows)
        before = self._seconds.get(size, seconds)
        share = 0.1 if seconds > before else 0.5
        self._seconds[size] = before + share * (seconds - before)
        self._last[size] = self._passes

    def __call__(self, n_rows: int) -> float:
        """Of a pass with so many rows; at least what a smaller one takes."""
        size = _size(n_rows)
        recent = self._passes - self.FORGET
        known = [s for s, last in self._last.items() if last > recent]
        if not known:
            return 1.0 + self.PER_ROW * (size - 1)
        least = min(known)
        one = self._seconds[least] / (1.0 + self.PER_ROW * (least - 1))
        smaller = [s for s in known if s <= size]
        if not smaller:
            return one * (1.0 + self.PER_ROW * (size - 1))
        highest = max(self._seconds[s] for s in smaller)
        return highest + one * self.PER_ROW * (size - max(smaller))


def _size(n_rows: int) -> int:
    """Rows that the kernels work on for `n_rows`: a tile is of 1, 2, 4 or 8 (`kernels/simd.py`)."""
    return 1 << (n_rows - 1).bit_length() if n_rows <= 8 else -(-n_rows // 8) * 8
