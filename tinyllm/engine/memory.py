"""The memory of the KV caches: a fixed budget of pages, promised before any is used.

A request is admitted when all the pages that it could ever need fit beside those promised to the
requests that run (`worst_case`). What the promises don't use at the moment holds the caches of
finished requests (prefix.py), which give way whenever a page is wanted. So a running request can
never be short of memory: nothing is killed, nothing is silently cut.

Two kinds of runner, one interface: the compiled model draws pages from a pool and shares them
between forks; the readable model has contiguous caches, which count here as pages of one token.
"""

from __future__ import annotations

from typing import Protocol

from tinyllm.errors import CacheFull
from tinyllm.kv_cache import Cache
from tinyllm.runner import Runner


class PageCounts(Protocol):
    """What the budget asks of a paged runner's pool."""

    @property
    def n_pages(self) -> int: ...
    @property
    def free_pages(self) -> int: ...
    @property
    def page_size(self) -> int: ...


class CacheMemory(Protocol):
    """What the engine asks of the budget. Sizes are in tokens or in pages, as named."""

    page_size: int  # tokens a page
    n_pages: int  # the whole budget

    @property
    def free_pages(self) -> int: ...

    def worst_case(self, n_prompt: int, max_tokens: int, n: int) -> int:
        """Pages that n choices of at most `max_tokens` after one prompt can need together."""

    def max_tokens(self, n_prompt: int, n: int) -> int:
        """The largest `max_tokens` whose worst case fits the whole budget; may be < 0."""

    def new(self, capacity: int) -> Cache: ...
    def fork(self, cache: Cache, length: int, capacity: int) -> Cache: ...

    def reserve(self, cache: Cache, n_tokens: int) -> None:
        """Get room for `n_tokens` more. Raises CacheFull when pages are short."""

    def keep(self, cache: Cache) -> Cache:
        """The same contents for later use, in the least memory; takes `cache` over."""

    def free(self, cache: Cache) -> None: ...


def pages_for(n_tokens: int, page_size: int) -> int:
    """Pages that hold `n_tokens`."""
    return -(-n_tokens // page_size)


class PagedMemory:
    """The budget of a runner with a page pool: forks share the whole pages of their prefix."""

    def __init__(self, runner: Runner, pool: PageCounts) -> None:
        self._runner = runner
        self._pool = pool
        self.page_size = pool.page_size
        self.n_pages = pool.n_pages

    @property
    def free_pages(self) -> int:
        return self._pool.free_pages

    def worst_case(self, n_prompt: int, max_tokens: int, n: int) -> int:
        # The last token of a choice is never fed back, so it needs no room.
        whole = pages_for(n_prompt + max(max_tokens - 1, 0), self.page_size)
        shared = n_prompt // self.page_size
        return whole + (n - 1) * (whole - shared)

    def max_tokens(self, n_prompt: int, n: int) -> int:
        shared = n_prompt // self.page_size
        whole = (self.n_pages + (n - 1) * shared) // n
        return whole * self.page_size - n_prompt + 1

    def new(self, capacity: int) -> Cache:
        # Pages are drawn one by one, so a large capacity costs nothing, and forks may outgrow
        # the sequence that they come from.
        return self._runner.new_cache(self._runner.config.max_seq_len)

    def fork(self, cache: Cache, length: int, capacity: int) -> Cache:
        return cache.fork(length)

    def reserve(self, cache: Cache, n_tokens: int) -> None:
        cache.reserve(n_tokens)

    def keep(self, cache: Cache) -> Cache:
        cache.truncate(cache.length)  # gives back pages that were drawn ahead
        return cache

    def free(self, cache: Cache) -> None:
        cache.free()


class ContiguousMemory:
    """The budget of a runner without a pool: each cache owns its whole capacity."""

    page_size = 1

    def __init__(self, runner: Runner, budget_bytes: int) -> None:
        self._runner = runner
        self._used = 0
        cfg = runner.config
        token_bytes = 2 * cfg.n_layers * cfg.n_kv_heads * cfg.head_dim * 4  # keys, values; float32
        self.n_pages = budget_bytes // token_bytes

    @property
    def free_pages(self) -> int:
        return self.n_pages - self._used

    def worst_case(self, n_prompt: int, max_tokens: int, n: int) -> int:
        return n * (n_prompt + max(max_tokens - 1, 0))

    def max_tokens(self, n_prompt: int, n: int) -> int:
        return self.n_pages // n - n_prompt + 1

    def new(self, capacity: int) -> Cache:
        self._take(capacity)
        return self._runner.new_cache(capacity)

    def fork(self, cache: Cache, length: int, capacity: int) -> Cache:
        self._take(capacity)
        return cache.fork(length, capacity)

    def reserve(self, cache: Cache, n_tokens: int) -> None:
        pass  # the whole capacity was taken when the cache was made

    def keep(self, cache: Cache) -> Cache:
        if cache.length == cache.capacity:
            return cache
        small = cache.fork(cache.length, cache.length)
        self._used -= cache.capacity - cache.length
        cache.free()
        return small

    def free(self, cache: Cache) -> None:
        self._used -= cache.capacity
        cache.free()

    def _take(self, capacity: int) -> None:
        if self._used + capacity > self.n_pages:
            raise CacheFull(
                f"{capacity} tokens asked of a cache budget with {self.free_pages} left"
            )
        self._used += capacity


def cache_memory(runner: Runner, kv_cache_mb: int) -> CacheMemory:
    """The budget that fits the runner; a pool has its own size, and `kv_cache_mb` is not used."""
    pool: PageCounts | None = getattr(runner, "pool", None)
    if pool is not None:
        return PagedMemory(runner, pool)
    return ContiguousMemory(runner, kv_cache_mb * 1024 * 1024)
