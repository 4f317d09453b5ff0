"""Stop strings: found across token boundaries, and never shown, not even the start of one."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Text goes in piece by piece; what can't be the beginning of a stop string comes out.

    The stop string that is complete first ends the text, and of those that end with the same
    letter the longest: so it doesn't matter how the text is cut into pieces.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._matches = [_Match(stop) for stop in stops]
        self._held = ""
        self.hit = False

    def push(self, text: str) -> str:
        """The text that is safe to show. After a hit nothing is."""
        if self.hit:
            return ""
        if not self._matches:
            return text
        before = len(self._held)
        self._held += text
        for i, letter in enumerate(text):
            found = [len(match.stop) for match in self._matches if match.push(letter)]
            if found:
                self.hit = True
                shown, self._held = self._held[: before + i + 1 - max(found)], ""
                return shown
        keep = max(match.length for match in self._matches)
        shown = self._held[: len(self._held) - keep]
        self._held = self._held[len(shown) :]
        return shown

    def flush(self) -> str:
        """The text that was held back, once no more can come."""
        shown, self._held = self._held, ""
        return shown


class _Match:
    """How much of one stop string the text so far ends with.

    A letter costs the same however long the string is (Knuth, Morris and Pratt, SIAM J. Comput. 6,
    1977): when it doesn't fit, the next candidate is the longest border of what had matched, which
    is a beginning of the string that is also its end. Borders are worked out as far as the text has
    come, so that a long string that never occurs costs nothing.
    """

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.length = 0  # letters of `stop` that have matched
        self._borders = [0]  # of stop[: i + 1]

    def push(self, letter: str) -> bool:
        """Take the next letter; True when `stop` is complete, and then no more may follow."""
        n = self.length
        while n and self.stop[n] != letter:
            n = self._border(n)
        self.length = n + (self.stop[n] == letter)
        return self.length == len(self.stop)

    def _border(self, n: int) -> int:
        """The length of the longest border of stop[:n]."""
        stop, borders = self.stop, self._borders
        while len(borders) < n:
            last, k = stop[len(borders)], borders[-1]
            while k and stop[k] != last:
                k = borders[k - 1]
            borders.append(k + (stop[k] == last))
        return borders[n - 1]
