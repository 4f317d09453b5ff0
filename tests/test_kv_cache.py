"""kv_cache.py: append, count, truncate and fork, against plain lists."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.llama_folders import small_config
from tinyllm.config import ModelConfig
from tinyllm.errors import CacheFull
from tinyllm.kv_cache import KVCache

CONFIG = ModelConfig.from_hf(small_config())
SHAPE = (CONFIG.n_kv_heads, CONFIG.head_dim)


def fill(cache: KVCache, tokens: list[int]) -> None:
    """Append tokens whose keys hold their number and layer, values the negative of it."""
    for layer in range(CONFIG.n_layers):
        k = np.stack([np.full(SHAPE, 100 * token + layer) for token in tokens])
        cache.append(layer, k, -k)
    cache.advance(len(tokens))


def contents(cache: KVCache) -> list[int]:
    """The tokens back, with every layer, key and value checked to agree."""
    for layer in range(CONFIG.n_layers):
        keys, values = cache.keys(layer), cache.values(layer)
        assert keys.shape == values.shape == (cache.length, *SHAPE)
        np.testing.assert_array_equal(keys, -values)
        np.testing.assert_array_equal(keys - layer, cache.keys(0))
        assert (keys == keys[:, :1, :1]).all()
    return [int(k) // 100 for k in cache.keys(0)[:, 0, 0]]


def test_append_returns_old_and_new_before_they_count() -> None:
    cache = KVCache(CONFIG, 8)
    fill(cache, [1, 2])
    new = np.ones((3, *SHAPE), np.float32)
    keys, values = cache.append(1, new, 2 * new)
    assert keys.shape == values.shape == (5, *SHAPE)
    assert (keys[:2, 0, 0].tolist(), keys[2:, 0, 0].tolist()) == ([101, 201], [1, 1, 1])
    assert (values[2:] == 2).all()
    assert cache.length == 2
    assert contents(cache) == [1, 2]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nbytes_is_the_formula(dtype: Any) -> None:
    cache = KVCache(CONFIG, 8, dtype)
    assert cache.nbytes == 0
    fill(cache, [1, 2, 3])
    itemsize = np.dtype(dtype).itemsize
    per_token = 2 * CONFIG.n_layers * CONFIG.n_kv_heads * CONFIG.head_dim * itemsize
    assert cache.nbytes == 3 * per_token
    assert sum(cache.keys(i).nbytes + cache.values(i).nbytes for i in range(3)) == cache.nbytes


def test_capacity_is_at_most_the_context() -> None:
    assert KVCache(CONFIG).capacity == CONFIG.max_seq_len
    for bad in (-1, CONFIG.max_seq_len + 1):
        with pytest.raises(ValueError, match="capacity"):
            KVCache(CONFIG, bad)


def test_full_means_nothing_was_written() -> None:
    cache = KVCache(CONFIG, 3)
    fill(cache, [1, 2])
    with pytest.raises(CacheFull, match=r"holds 3 tokens.*2 are in use.*2 more"):
        cache.append(0, np.ones((2, *SHAPE)), np.ones((2, *SHAPE)))
    with pytest.raises(CacheFull):
        cache.advance(2)
    assert contents(cache) == [1, 2]
    fill(cache, [3])
    assert contents(cache) == [1, 2, 3]


def test_no_capacity_at_all() -> None:
    cache = KVCache(CONFIG, 0)
    assert (cache.length, cache.capacity, cache.nbytes, contents(cache)) == (0, 0, 0, [])
    with pytest.raises(CacheFull):
        cache.reserve(1)


def test_free_gives_everything_back() -> None:
    cache = KVCache(CONFIG, 8)
    fill(cache, [1, 2])
    cache.free()
    cache.free()
    assert (cache.length, cache.capacity, cache.nbytes) == (0, 0, 0)


@pytest.mark.parametrize("length", [-1, 3])
def test_truncate_and_fork_refuse_what_is_not_there(length: int) -> None:
    cache = KVCache(CONFIG, 8)
    fill(cache, [1, 2])
    with pytest.raises(ValueError, match="truncate"):
        cache.truncate(length)
    with pytest.raises(ValueError, match="fork"):
        cache.fork(length)
    with pytest.raises(ValueError, match="capacity 1"):
        cache.fork(2, capacity=1)


class CacheLife(RuleBasedStateMachine):
    """Caches beside the lists of tokens that they should hold; none can touch another."""

    @initialize(capacity=st.integers(0, 12))
    def start(self, capacity: int) -> None:
        self.pairs: list[tuple[KVCache, list[int]]] = [(KVCache(CONFIG, capacity), [])]
        self.next_token = 1

    @rule(which=st.integers(0, 99), n=st.integers(1, 4))
    def append(self, which: int, n: int) -> None:
        cache, expected = self.pairs[which % len(self.pairs)]
        tokens = list(range(self.next_token, self.next_token + n))
        self.next_token += n
        if len(expected) + n > cache.capacity:
            with pytest.raises(CacheFull):
                fill(cache, tokens)
        else:
            fill(cache, tokens)
            expected += tokens

    @rule(which=st.integers(0, 99), length=st.integers(0, 12))
    def truncate(self, which: int, length: int) -> None:
        cache, expected = self.pairs[which % len(self.pairs)]
        length %= len(expected) + 1
        cache.truncate(length)
        del expected[length:]

    @precondition(lambda self: len(self.pairs) < 5)
    @rule(which=st.integers(0, 99), length=st.none() | st.integers(0, 12), room=st.integers(0, 5))
    def fork(self, which: int, length: int | None, room: int) -> None:
        cache, expected = self.pairs[which % len(self.pairs)]
        if length is not None:
            length %= len(expected) + 1
        kept = expected[:length]
        self.pairs.append((cache.fork(length, capacity=len(kept) + room), list(kept)))

    @invariant()
    def each_holds_its_own(self) -> None:
        for cache, expected in self.pairs:
            assert contents(cache) == expected


TestCacheLife = CacheLife.TestCase
TestCacheLife.settings = settings(max_examples=50, stateful_step_count=25)


def test_a_lent_cache_comes_back_as_it_was() -> None:
    cache = KVCache(CONFIG, 8)
    fill(cache, [1, 2, 3, 4, 5])
    for length in (0, 3, 4):
        with cache.lent(length) as lent:
            assert lent is cache and contents(lent) == [1, 2, 3, 4][:length]
            fill(lent, [9])
            assert contents(lent) == [*[1, 2, 3, 4][:length], 9]
        with pytest.raises(RuntimeError), cache.lent(length) as lent:
            fill(lent, [9])
            raise RuntimeError
        assert contents(cache) == [1, 2, 3, 4, 5]
    for length in (-1, 5, 6):
        with pytest.raises(ValueError, match="can't lend"), cache.lent(length):
            pass
