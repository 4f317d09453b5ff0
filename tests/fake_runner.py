"""A deterministic little "model" with a paged cache, for tests of the engine.

Its logits are a hash of the tokens that it reads back out of its cache's pages. So a page that is
shared wrongly, freed too early, or written by somebody else changes the answer, or raises.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tinyllm.config import ModelConfig
from tinyllm.errors import CacheFull
from tinyllm.runner import Segment

VOCAB = 61
GONE = -(2**40)  # what a free page holds


@dataclass
class FakePool:
    n_pages: int
    page_size: int
    pages: NDArray[np.int64] = field(init=False)  # (n_pages, page_size)
    refs: NDArray[np.int64] = field(init=False)  # (n_pages,)

    def __post_init__(self) -> None:
        self.pages = np.full((self.n_pages, self.page_size), GONE, np.int64)
        self.refs = np.zeros(self.n_pages, np.int64)

    @property
    def free_pages(self) -> int:
        return int((self.refs == 0).sum())

    def take(self) -> int:
        (free,) = np.nonzero(self.refs == 0)
        assert len(free), "a page was taken without a reservation"
        self.refs[free[0]] = 1
        return int(free[0])

    def drop(self, page: int) -> None:
        assert self.refs[page] > 0, "a page was freed twice"
        self.refs[page] -= 1
        if not self.refs[page]:
            self.pages[page] = GONE


class FakeCache:
    def __init__(self, pool: FakePool, capacity: int) -> None:
        self.pool, self.capacity, self.length = pool, capacity, 0
        self.table: list[int] = []
        self.freed = False

    @property
    def nbytes(self) -> int:
        return 8 * self.length

    def keys(self, layer: int) -> NDArray[np.int64]:
        flat = self.pool.pages[self.table].reshape(-1)[: self.length]
        assert (flat != GONE).all(), "a cache reads a page that isn't its own any more"
        return flat

    values = keys

    def reserve(self, n_tokens: int) -> None:
        assert not self.freed
        size = self.pool.page_size
        last = self.length // size
        partial = self.length % size and self.pool.refs[self.table[last]] > 1
        missing = -(-(self.length + n_tokens) // size) - len(self.table)
        if missing + bool(partial) > self.pool.free_pages:
            raise CacheFull("no page is free")
        if partial and n_tokens:
            twin = self.pool.take()
            self.pool.pages[twin] = self.pool.pages[self.table[last]]
            self.pool.drop(self.table[last])
            self.table[last] = twin
        self.table += [self.pool.take() for _ in range(missing)]

    def append(self, ids: NDArray[np.int64]) -> None:
        self.reserve(len(ids))
        for token in ids:
            page, place = divmod(self.length, self.pool.page_size)
            assert self.pool.refs[self.table[page]] == 1, "a shared page is written to"
            self.pool.pages[self.table[page], place] = token
            self.length += 1

    def truncate(self, length: int) -> None:
        assert 0 <= length <= self.length
        self.length = length
        keep = -(-length // self.pool.page_size)
        for page in self.table[keep:]:
            self.pool.drop(page)
        del self.table[keep:]

    def fork(self, length: int | None = None, capacity: int | None = None) -> FakeCache:
        assert not self.freed
        length = self.length if length is None else length
        assert length <= self.length
        twin = FakeCache(self.pool, capacity or self.capacity)
        twin.length = length
        twin.table = self.table[: -(-length // self.pool.page_size)]
        self.pool.refs[twin.table] += 1
        return twin

    def free(self) -> None:
        assert not self.freed, "a cache was freed twice"
        self.truncate(0)
        self.freed = True


def fake_logits(ids: NDArray[np.int64], vocab: int = VOCAB) -> NDArray[np.float32]:
    """(vocab,) logits that depend on every id before."""
    seed = zlib.crc32(np.ascontiguousarray(ids, np.int64).tobytes())
    return np.random.default_rng(seed).normal(0, 2, vocab).astype(np.float32)


class FakeRunner:
    """Implements `Runner`. `before` is called with the segments of each forward, and may raise."""

    dtype = "f32"
    fingerprint = "fake"
    batch_invariant = True

    def __init__(self, n_pages: int = 256, page_size: int = 4, max_seq_len: int = 512) -> None:
        self.pool = FakePool(n_pages, page_size)
        self.config = ModelConfig(
            dim=8, hidden_dim=8, n_layers=1, n_heads=1, n_kv_heads=1, head_dim=8,
            vocab_size=VOCAB, max_seq_len=max_seq_len, rope_theta=1e4, norm_eps=1e-5,
            tie_embeddings=True, bos_id=None, eos_ids=(0,),
        )  # fmt: skip
        self.before: Callable[[Sequence[Segment]], None] | None = None
        self.steps: list[list[int]] = []  # tokens of each segment, forward by forward

    def new_cache(self, capacity: int) -> FakeCache:
        return FakeCache(self.pool, capacity)

    def forward_batch(self, segments: Sequence[Segment]) -> list[NDArray[np.float32]]:
        self.steps.append([len(s.tokens) for s in segments])
        if self.before:
            self.before(segments)
        results = []
        for segment in segments:
            cache = segment.cache
            assert isinstance(cache, FakeCache)
            ids = segment.tokens.astype(np.int64)
            if segment.image_positions is not None and segment.image_rows is not None:
                ids[segment.image_positions] = -1 - np.abs(segment.image_rows[:, 0]).astype(int)
            cache.append(ids)
            n_rows = {"last": 1, "none": 0, "all": len(segment.tokens)}[segment.logits]
            ids = cache.keys(0)
            rows = [fake_logits(ids[: len(ids) - i]) for i in reversed(range(n_rows))]
            results.append(np.array(rows, np.float32).reshape(-1, VOCAB))
        return results
