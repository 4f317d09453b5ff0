"""Prefix reuse: what earlier requests left in their caches saves later ones the same work.

The keys and values of a token depend on the tokens before it alone. So a prompt that starts like
an earlier one can take over that part of its cache: a fork shares the pages, the rest of the
prompt is prefilled behind it. Entries are found by longest common prefix, within one key only
(somebody else's prompts must not show, not even as a shorter time to first token). When pages are
short, the key that keeps most gives up the one that it used least recently: nobody's prompts are
pushed out by another's flood.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tinyllm.engine.memory import CacheMemory, pages_for
from tinyllm.kv_cache import Cache


def common_prefix(a: NDArray[np.int64], b: NDArray[np.int64]) -> int:
    """How many leading ids (T,) and (U,) share."""
    n = min(len(a), len(b))
    differs = a[:n] != b[:n]
    first = int(differs.argmax()) if n else 0
    return first if n and differs[first] else n


@dataclass(frozen=True, eq=False)
class Entry:
    """One finished sequence: whose it is, the ids that its cache holds, and the cache."""

    key: str
    ids: NDArray[np.int64]  # (cache.length,)
    cache: Cache


class PrefixCache:
    """Caches of finished sequences, least recently used first. It owns the caches it holds.

    Args:
        memory: whose pages they hold.
        share: of all pages that may be kept at most (pages of several entries count for each;
            the newest entry is kept whatever its size). What runs takes from it, down to its half:
            the rest of all pages is touched only when so much runs at once, and costs nothing until
            then.
    """

    def __init__(self, memory: CacheMemory, share: float = 0.5) -> None:
        self._memory = memory
        self._max_pages = int(share * memory.n_pages)
        self._pages: dict[str, int] = {}  # kept, by key
        self._entries: OrderedDict[int, Entry] = OrderedDict()  # in order of last use
        self._next = 0

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, key: str, ids: NDArray[np.int64]) -> tuple[Cache | None, int]:
        """The cache that starts most like `ids`, and how many tokens of it fit; (None, 0) if none.

        The cache stays the store's: fork it before the next `put` or `evict`.
        """
        best, length = None, 0
        for number, entry in self._entries.items():
            # To be longer than the best so far it must agree at that very place: a look at one
            # id spares most comparisons.
            if length == len(ids):
                break
            if entry.key != key or len(entry.ids) <= length or entry.ids[length] != ids[length]:
                continue
            if (n := common_prefix(entry.ids, ids)) > length:
                best, length = number, n
        if best is None:
            return None, 0
        self._entries.move_to_end(best)
        return self._entries[best].cache, length

    def put(self, key: str, ids: NDArray[np.int64], cache: Cache) -> None:
        """Take over a cache whose tokens are `ids`; entries that are a prefix of it go."""
        assert len(ids) == cache.length
        if not len(ids):
            self._memory.free(cache)
            return
        for number, entry in list(self._entries.items()):
            n = min(len(entry.ids), len(ids))
            if entry.key != key or entry.ids[n - 1] != ids[n - 1]:
                continue
            if common_prefix(entry.ids, ids) < n:
                continue
            if n == len(ids):  # nothing new: what is here already holds all of it
                self._entries.move_to_end(number)
                self._memory.free(cache)
                return
            self._drop(self._entries.pop(number))
        self._entries[self._next] = Entry(key, ids, self._memory.keep(cache))
        self._next += 1
        self._pages[key] = self._pages.get(key, 0) + self._n_pages(ids)
        while self._too_many() and len(self._entries) > 1:
            self.evict()

    def evict(self) -> bool:
        """Give up the least recently used entry of whoever keeps most; False if there is none."""
        if not self._entries:
            return False
        key = max(self._pages, key=self._pages.__getitem__)
        number = next(number for number, entry in self._entries.items() if entry.key == key)
        self._drop(self._entries.pop(number))
        return True

    def clear(self) -> None:
        """Give up every entry."""
        while self.evict():
            pass

    def _too_many(self) -> bool:
        """Whether so much is kept, or runs beside half of that, that fresh memory would be next."""
        kept, used = sum(self._pages.values()), self._memory.n_pages - self._memory.free_pages
        return max(kept, min(used, 2 * kept)) > self._max_pages

    def _drop(self, entry: Entry) -> None:
        self._pages[entry.key] -= self._n_pages(entry.ids)
        if not self._pages[entry.key]:
            del self._pages[entry.key]
        self._memory.free(entry.cache)

    def _n_pages(self, ids: NDArray[np.int64]) -> int:
        return pages_for(len(ids), self._memory.page_size)
