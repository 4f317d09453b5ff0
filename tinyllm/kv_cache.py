"""The KV cache: what attention needs of every token seen, so that none is computed twice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tinyllm.config import ModelConfig
from tinyllm.errors import CacheFull


class Cache(Protocol):
    """What a model's `forward` and its callers need of a cache, contiguous or paged."""

    @property
    def length(self) -> int:
        """Tokens held; the next one has this position."""

    @property
    def capacity(self) -> int:
        """Tokens that fit."""

    @property
    def nbytes(self) -> int:
        """Bytes held for this sequence."""

    @property
    def token_nbytes(self) -> int:
        """Bytes that a token's keys and values take."""

    def keys(self, layer: int) -> NDArray[np.floating[Any]]:
        """(length, n_kv_heads, head_dim), rotated."""

    def values(self, layer: int) -> NDArray[np.floating[Any]]:
        """(length, n_kv_heads, head_dim)."""

    def truncate(self, length: int) -> None:
        """Forget everything from position `length` on."""

    def reserve(self, n_tokens: int) -> object:
        """Make sure that `n_tokens` more fit; raises CacheFull, with nothing changed."""

    def fork(self, length: int | None = None, capacity: int | None = None) -> Cache:
        """An independent continuation of the first `length` tokens (default: all)."""

    def free(self) -> None:
        """Give the memory back; the cache is empty afterwards."""


class KVCache:
    """One sequence's keys and values, preallocated and append-only.

    A token costs 2 · n_layers · n_kv_heads · head_dim · itemsize bytes: 46 kB for
    SmolLM2-135M in float32.

    Args:
        config: the model's shape.
        capacity: tokens to make room for, at most `config.max_seq_len`.
        dtype: float32, or float64 for checks.
        context: how long the sequence may become, which some families' rotary angles hang on
            (longrope); default: the capacity. A copy of a part keeps it: its keys are turned so.
    """

    def __init__(
        self,
        config: ModelConfig,
        capacity: int | None = None,
        dtype: Any = np.float32,
        context: int | None = None,
    ) -> None:
        capacity = config.max_seq_len if capacity is None else capacity
        if not 0 <= capacity <= config.max_seq_len:
            raise ValueError(f"capacity must be 0 … {config.max_seq_len} tokens, not {capacity}")
        self.config = config
        self.context = capacity if context is None else context
        shape = (config.n_layers, capacity, config.n_kv_heads, config.head_dim)
        self._k: NDArray[np.floating[Any]] = np.zeros(shape, dtype)
        self._v: NDArray[np.floating[Any]] = np.zeros(shape, dtype)
        # By which position a text would go on behind each token: images take fewer than they are.
        self._after = np.arange(1, capacity + 1)
        self._length = 0

    def __repr__(self) -> str:
        return f"KVCache({self.length}/{self.capacity} tokens, {self.nbytes / 1e6:.1f} MB in use)"

    @property
    def length(self) -> int:
        """Tokens held; the next one has this position."""
        return self._length

    @property
    def capacity(self) -> int:
        """Tokens that fit."""
        return int(self._k.shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values held."""
        return self.token_nbytes * self._length

    @property
    def token_nbytes(self) -> int:
        """Bytes that a token's keys and values take."""
        n_layers, _, n_kv_heads, head_dim = self._k.shape
        return 2 * int(n_layers * n_kv_heads * head_dim) * self._k.itemsize

    @property
    def capacity_nbytes(self) -> int:
        """Bytes of its room, filled or not."""
        return self.token_nbytes * self.capacity

    @property
    def next_place(self) -> int:
        """The rotary position of a text that goes on here: the length, unless images stand before.

        Qwen3-VL's images take as many positions as their longer side has rows.
        """
        return int(self._after[self._length - 1]) if self._length else 0

    @property
    def after(self) -> NDArray[np.int64]:
        """The same behind each token that is held, (length,)."""
        return self._after[: self._length]

    def place(self, after: NDArray[np.int64], start: int | None = None) -> None:
        """Note where a text would go on behind each of the next tokens, (T,)."""
        start = self._length if start is None else start
        self._after[start : start + len(after)] = after

    def keys(self, layer: int) -> NDArray[np.floating[Any]]:
        """View of one layer's keys, rotated: (length, n_kv_heads, head_dim)."""
        return self._k[layer, : self._length]

    def values(self, layer: int) -> NDArray[np.floating[Any]]:
        """View of one layer's values: (length, n_kv_heads, head_dim)."""
        return self._v[layer, : self._length]

    def append(
        self, layer: int, k: NDArray[np.floating[Any]], v: NDArray[np.floating[Any]]
    ) -> tuple[NDArray[np.floating[Any]], NDArray[np.floating[Any]]]:
        """Write T new positions of one layer behind `length`; k, v (T, n_kv_heads, head_dim).

        Returns that layer's keys and values with the new ones, (length + T, …). `length` itself
        moves by `advance`, once every layer has written.

        Raises:
            CacheFull: they don't fit; nothing was written.
        """
        end = self.reserve(len(k))
        self._k[layer, self._length : end] = k
        self._v[layer, self._length : end] = v
        return self._k[layer, :end], self._v[layer, :end]

    def reserve(self, n_tokens: int) -> int:
        """Check that `n_tokens` more fit and return where they would end; raises CacheFull."""
        end = self._length + n_tokens
        if end > self.capacity:
            raise CacheFull(
                f"the KV cache holds {self.capacity} tokens; {self._length} are in use and "
                f"{n_tokens} more don't fit: shorten the prompt or make a larger cache"
            )
        return end

    def advance(self, n_tokens: int) -> None:
        """Count the positions that every layer has just written."""
        self._length = self.reserve(n_tokens)

    def truncate(self, length: int) -> None:
        """Forget everything from position `length` on."""
        if not 0 <= length <= self._length:
            raise ValueError(f"can't truncate {self._length} tokens to {length}")
        self._length = length

    @contextmanager
    def lent(self, length: int) -> Iterator[KVCache]:
        """Itself as it was at `length` tokens, for running one token again behind them.

        Nothing is copied but that token's own row, which is put back with everything after it when
        the block ends.
        """
        before = self._length
        if not 0 <= length < before:
            raise ValueError(f"can't lend {length} tokens and a place of {before}")
        k, v = self._k[:, length].copy(), self._v[:, length].copy()
        self._length = length
        try:
            yield self
        finally:
            self._k[:, length], self._v[:, length] = k, v
            self._length = before

    def fork(self, length: int | None = None, capacity: int | None = None) -> KVCache:
        """A copy of the first `length` tokens (default: all), independent of this cache.

        It holds `capacity` tokens (default: as many as this one).
        """
        length = self._length if length is None else length
        if not 0 <= length <= self._length:
            raise ValueError(f"can't fork {length} of {self._length} tokens")
        capacity = self.capacity if capacity is None else capacity
        if capacity < length:
            raise ValueError(f"capacity {capacity} can't hold the {length} tokens of a fork")
        twin = KVCache(self.config, capacity, self._k.dtype, self.context)
        twin._k[:, :length] = self._k[:, :length]
        twin._v[:, :length] = self._v[:, :length]
        twin._length = length
        twin.place(self._after[:length], 0)
        return twin

    def free(self) -> None:
        """Give the memory back; the cache holds nothing, and nothing fits, afterwards."""
        self._k, self._v = self._k[:, :0].copy(), self._v[:, :0].copy()
        self._length = 0
