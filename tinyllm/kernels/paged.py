"""The KV cache of the compiled path: sequences made of pages from one fixed pool.

A page holds 64 tokens of every layer. Sequences draw pages as they grow and give them back; a fork
shares its pages by count and copies the last, partly filled one only when either side writes on
(https://arxiv.org/abs/2309.06180). Memory is bounded by the pool, which never grows.
"""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyllm.config import ModelConfig
from tinyllm.errors import CacheFull
from tinyllm.kernels.arrays import Pages
from tinyllm.kernels.layout import KEYS, PAGE, VALUES
from tinyllm.kernels.memory import huge_zeros
from tinyllm.kernels.parts import head_order


class PagePool:
    """All pages, and how many sequences hold each. Safe to use from several threads.

    Args:
        config: the model's shape.
        kv_dtype: "f32" or "f16".
        n_pages: pages of 64 tokens; their memory is touched only as they are used.
    """

    page_size = PAGE

    def __init__(self, config: ModelConfig, kv_dtype: str, n_pages: int) -> None:
        if kv_dtype not in ("f32", "f16"):
            raise ValueError(f"kv_dtype must be f32 or f16, not {kv_dtype!r}")
        self.config = config
        self.kv_dtype = kv_dtype
        stored = np.float32 if kv_dtype == "f32" else np.uint16
        shape = (n_pages, config.n_layers, config.n_kv_heads, 2, PAGE * config.head_dim)
        self.arrays = Pages(huge_zeros(shape, stored))
        self.n_pages = n_pages
        self.page_nbytes = self.arrays.cells[:1].nbytes
        self._claimed = 0  # pages from the first on, brought into memory by claim_memory
        self._users = [0] * n_pages
        self._free = list(range(n_pages - 1, -1, -1))  # the lowest first, so memory stays compact
        self._lock = threading.RLock()

    @property
    def free_pages(self) -> int:
        """Pages that nobody holds."""
        return len(self._free)

    def take(self, n: int) -> list[int]:
        """`n` pages for the caller alone; raises CacheFull, and takes none, if they are too few."""
        with self._lock:
            if n > len(self._free):
                raise CacheFull(
                    f"{n} more pages of {PAGE} tokens are needed, but {len(self._free)} of "
                    f"{self.n_pages} are free: end other sequences or make a larger KV cache"
                )
            pages = [self._free.pop() for _ in range(n)]
            for page in pages:
                self._users[page] = 1
            if 0 < self._claimed <= max(pages, default=0):
                self._claim_in_background(2 * self._claimed)
            return pages

    def share(self, pages: list[int]) -> None:
        """Count one more user of each page."""
        with self._lock:
            for page in pages:
                self._users[page] += 1

    def drop(self, pages: list[int]) -> None:
        """Count one user less of each; pages without users are free again."""
        with self._lock:
            for page in reversed(pages):
                self._users[page] -= 1
                if self._users[page] == 0:
                    self._free.append(page)

    def claim_memory(self, n_tokens: int) -> None:
        """Have the system hand out the memory of pages for `n_tokens`, on a thread of its own.

        Else it does so at the first touch, in the middle of a step: it clears two megabytes then,
        and a virtual machine may have to get them from its host, which takes longer than a step.
        Whenever all that was claimed is in use, as much again is.
        """
        with self._lock:
            self._claim_in_background(-(-n_tokens // PAGE))

    def _claim_in_background(self, n_pages: int) -> None:
        first, self._claimed = self._claimed, min(n_pages, self.n_pages)
        pages = range(first, self._claimed)
        with contextlib.suppress(RuntimeError):  # no thread to be had: then at the first touch
            threading.Thread(target=self._touch, args=(pages,), name="tinyllm-claim").start()

    def _touch(self, pages: range) -> None:
        for page in pages:
            with self._lock:  # page by page, so that nobody waits for all of it
                if self._users[page] == 0:
                    self.arrays.cells[page] = 0

    def is_shared(self, page: int) -> bool:
        """Does more than one sequence hold this page?"""
        return self._users[page] > 1

    def copy(self, source: int, target: int) -> None:
        """Copy a page's contents."""
        self.arrays.cells[target] = self.arrays.cells[source]


class PagedCache:
    """One sequence's keys and values, in pages of a pool.

    Args:
        pool: where pages come from.
        capacity: the most tokens that this sequence may hold; pages are drawn only as it grows.
    """

    def __init__(self, pool: PagePool, capacity: int) -> None:
        if not 0 <= capacity <= pool.config.max_seq_len:
            raise ValueError(
                f"capacity must be 0 … {pool.config.max_seq_len} tokens, not {capacity}"
            )
        self.pool = pool
        self.capacity = capacity
        self.length = 0
        self.pages: list[int] = []

    def __repr__(self) -> str:
        return f"PagedCache({self.length}/{self.capacity} tokens in {len(self.pages)} pages)"

    def __del__(self) -> None:
        self.free()

    @property
    def nbytes(self) -> int:
        """Bytes of the pages held, shared ones included."""
        return len(self.pages) * self.pool.page_nbytes

    @property
    def token_nbytes(self) -> int:
        """Bytes that a token's keys and values take."""
        return self.pool.page_nbytes // PAGE

    def reserve(self, n_tokens: int) -> int:
        """Make room for `n_tokens` more and return where they would end.

        Raises:
            CacheFull: they don't fit the capacity, or the pool is short of pages; the sequence is
                as it was.
        """
        end = self.length + n_tokens
        if end > self.capacity:
            raise CacheFull(
                f"the KV cache holds {self.capacity} tokens; {self.length} are in use and "
                f"{n_tokens} more don't fit: shorten the prompt or make a larger cache"
            )
        first = self.length // PAGE  # the page that is written next, if there is one already
        copied = [
            i
            for i in range(first, min(len(self.pages), -(-end // PAGE)))
            if self.pool.is_shared(self.pages[i])
        ]
        new = self.pool.take(len(copied) + max(0, -(-end // PAGE) - len(self.pages)))
        for i in copied:
            page = new.pop()
            self.pool.copy(self.pages[i], page)
            self.pool.drop([self.pages[i]])
            self.pages[i] = page
        self.pages.extend(new)
        return end

    def advance(self, n_tokens: int) -> None:
        """Count tokens that have been written."""
        self.length += n_tokens

    def truncate(self, length: int) -> None:
        """Forget everything from position `length` on; whole pages go back to the pool."""
        if not 0 <= length <= self.length:
            raise ValueError(f"can't truncate {self.length} tokens to {length}")
        kept = -(-length // PAGE)
        self.pool.drop(self.pages[kept:])
        del self.pages[kept:]
        self.length = length

    def fork(self, length: int | None = None, capacity: int | None = None) -> PagedCache:
        """An independent continuation of the first `length` tokens (default: all).

        No memory is copied until either side writes into a page that both hold.
        """
        capacity = self.capacity if capacity is None else capacity
        length = self.length if length is None else length
        if not 0 <= length <= self.length:
            raise ValueError(f"can't fork {length} of {self.length} tokens")
        twin = PagedCache(self.pool, capacity)
        twin.pages = self.pages[: -(-length // PAGE)]
        self.pool.share(twin.pages)
        twin.length = length
        return twin

    def free(self) -> None:
        """Give all pages back; the sequence is empty afterwards. Twice does no harm."""
        pages = self.__dict__.get("pages", [])  # __init__ may have raised before there were any
        if pages:
            self.pool.drop(pages)
        self.pages, self.length = [], 0

    def keys(self, layer: int) -> NDArray[np.float32]:
        """A copy of one layer's keys, rotated: (length, n_kv_heads, head_dim) float32."""
        turned = self._stored(layer, KEYS)  # (pages, n_kv, head_dim · 64)
        keys = self._in_order(turned.reshape(*turned.shape[:2], -1, PAGE).transpose(0, 3, 1, 2))
        order = head_order(self.pool.config)
        return keys if order is None else keys[..., np.argsort(order)]

    def values(self, layer: int) -> NDArray[np.float32]:
        """A copy of one layer's values: (length, n_kv_heads, head_dim) float32."""
        stored = self._stored(layer, VALUES)  # (pages, n_kv, 64 · head_dim)
        return self._in_order(stored.reshape(*stored.shape[:2], PAGE, -1).transpose(0, 2, 1, 3))

    def _stored(self, layer: int, kind: int) -> NDArray[Any]:
        return self.pool.arrays.cells[self.pages, layer, :, kind]

    def _in_order(self, stored: NDArray[Any]) -> NDArray[np.float32]:
        shape = (-1, self.pool.config.n_kv_heads, self.pool.config.head_dim)
        rows = np.ascontiguousarray(stored).reshape(shape)[: self.length]
        if rows.dtype == np.uint16:
            rows = rows.view(np.float16)
        return rows.astype(np.float32)
