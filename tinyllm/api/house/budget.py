"""An amount that callers share: whoever takes a lot of it always leaves some for another.

**Dynamic thresholds** (Choudhury and Hahne, IEEE/ACM Transactions on Networking 6, 1998): a share
may hold as much as all shares together leave free. So one alone gets half of it, two a third each,
and a newcomer finds some however much the others want. Nothing that was given is taken away again.
"""

from __future__ import annotations

from collections import Counter


class Budget:
    """So much of something, by share. Used on the event loop's thread alone.

    Args:
        amount: all there is.
    """

    def __init__(self, amount: int) -> None:
        self._amount = amount
        self._held: Counter[str] = Counter()

    @property
    def free(self) -> int:
        return self._amount - self._held.total()

    def has(self, share: str, n: int) -> bool:
        """Whether a share may take `n` more."""
        return self._held[share] + n <= self.free - n

    def take(self, share: str, n: int) -> bool:
        """Give it `n` more, or refuse."""
        if not self.has(share, n):
            return False
        self._held[share] += n
        return True

    def give_back(self, share: str, n: int) -> None:
        """Of what was taken."""
        self._held[share] -= n
        if not self._held[share]:
            del self._held[share]
