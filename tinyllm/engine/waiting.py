"""Places in the queue. A full queue still has one for whoever waits with less than somebody else.

**Longest queue drop** (Suter, Lakshman, Stiliadis and Choudhury, IEEE JSAC 17, 1999). A single
share may use every place. When another one comes, the newest request of the share that waits with
most has to go: so a flood crowds out itself, and no place is set aside for nobody.
"""

from __future__ import annotations

from tinyllm.engine.job import Job


class NoPlace(Exception):
    """Every place is taken, and nobody waits with more."""


class Places:
    """Who waits, by share. The engine's lock guards it.

    Args:
        places: how many requests may wait.
    """

    def __init__(self, places: int) -> None:
        self._places = places
        self._waiting: dict[str, list[Job]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def check(self, share: str, about_to_run: int) -> list[Job]:
        """Those of whom one has to go for another of `share`, [] if none has to. Raises NoPlace.

        `about_to_run` of those who wait find a free row, and don't count.
        """
        if len(self) - about_to_run < self._places:
            return []
        longest = max(self._waiting.values(), key=len, default=[])
        if len(self._waiting.get(share, ())) + 1 >= len(longest):
            raise NoPlace
        return longest

    def take(self, job: Job, about_to_run: int) -> None:
        """A place for `job`; another that has to go for it is marked. Raises NoPlace."""
        if longest := self.check(job.share, about_to_run):
            longest.pop().crowded_out = True
        self._waiting.setdefault(job.share, []).append(job)

    def leave(self, job: Job) -> None:
        """It runs, or is over; nothing happens if it has no place (any more)."""
        queue = self._waiting.get(job.share, [])
        if job in queue:
            queue.remove(job)
            if not queue:
                del self._waiting[job.share]
