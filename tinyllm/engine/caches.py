"""Where requests get their KV caches from, and who keeps them afterwards.

A prompt starts from the longest prefix that some cache holds already, of a finished request or of
one that runs. What is kept of finished requests gives way whenever a page is wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from tinyllm.engine.job import Job
from tinyllm.engine.memory import CacheMemory
from tinyllm.engine.prefix import PrefixCache, common_prefix
from tinyllm.errors import CacheFull
from tinyllm.kv_cache import Cache

T = TypeVar("T")


class Caches:
    """The caches of all requests. The engine's thread alone uses it.

    Args:
        memory: the budget that they come from.
        keep: whether caches of finished requests are kept for their prefixes.
    """

    def __init__(self, memory: CacheMemory, keep: bool) -> None:
        self.memory = memory
        self.prefixes = PrefixCache(memory)
        self._keep = keep

    def open(self, job: Job, running: Iterable[Job]) -> tuple[Cache, int]:
        """A job's cache, and how many tokens of its prompt that holds already.

        Raises:
            CacheFull: pages are short, and nothing kept is left to give way.
        """
        capacity = len(job.ids) + max(job.max_tokens - 1, 0)

        def take() -> tuple[Cache, int]:
            source, length = self._longest_prefix(job, running)
            if source is None:
                return self.memory.new(capacity), 0
            return self.memory.fork(source, length, capacity), length

        return self._with_room(take)

    def fork(self, cache: Cache) -> Cache:
        """An independent continuation of all of it; raises CacheFull as `open`."""
        return self._with_room(lambda: self.memory.fork(cache, cache.length, cache.capacity))

    def reserve(self, cache: Cache, n_tokens: int) -> None:
        """Room for `n_tokens` more. Raises CacheFull, if others use the runner's pool as well."""
        self._with_room(lambda: self.memory.reserve(cache, n_tokens))

    def give_back(self, key: str, ids: NDArray[np.int64], cache: Cache, whole: bool) -> None:
        """Take a cache whose tokens are `ids`: to keep if it is `whole`, else to free."""
        if self._keep and whole:
            self.prefixes.put(key, ids, cache)
        else:
            self.memory.free(cache)

    def _with_room(self, take: Callable[[], T]) -> T:
        """What `take` returns, once enough of what is kept has given way."""
        while True:
            try:
                return take()
            except CacheFull:
                if not self.prefixes.evict():
                    raise

    def _longest_prefix(self, job: Job, running: Iterable[Job]) -> tuple[Cache | None, int]:
        """The cache, finished or running, that shares most with a job's prompt, and how much."""
        if not (self._keep and job.reuse):
            return None, 0
        # The last token is always computed: the answer starts from its logits. So are those whose
        # successors are to be scored.
        last = len(job.ids) if job.request.score_from is None else job.request.score_from
        ids = job.ids[: last - 1]
        source, length = self.prefixes.find(job.request.key, ids)
        for other in running:
            live = other.live
            cache = live[0].cache if live else other.prompt_cache
            if cache is not None and other.request.key == job.request.key:
                shared = common_prefix(other.ids[: cache.length], ids)
                if shared > length:
                    source, length = cache, shared
        return source, length
