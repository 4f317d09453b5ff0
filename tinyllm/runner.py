"""What a step of generation asks of a model, whichever path computes it.

`model.Model` (numpy) and `compiled.CompiledModel` are both a `Runner`; sessions and the engine know
no more of a model than this.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from tinyllm.config import ModelConfig
from tinyllm.kv_cache import Cache

Array = NDArray[np.floating[Any]]
Wanted = Literal["last", "all", "none"]


@dataclass(frozen=True)
class Segment:
    """One sequence's share of a batched forward: new tokens behind what its cache holds."""

    tokens: NDArray[np.int32]  # (T,), at positions cache.length … cache.length + T - 1
    cache: Cache
    logits: Wanted = "last"
    image_positions: NDArray[np.int64] | None = None  # (M,) indices into tokens
    image_rows: NDArray[np.float32] | None = None  # (M, dim), in place of the embeddings there


def images_between(
    positions: NDArray[np.int64] | None,
    rows: NDArray[np.float32] | None,
    start: int,
    stop: int,
) -> tuple[NDArray[np.int64] | None, NDArray[np.float32] | None]:
    """Which of an image's rows fall into the tokens from `start` to before `stop`.

    Args:
        positions: (M,) ascending, where rows stand in for tokens.
        rows: (M, dim).

    Returns:
        Their positions counted from `start`, and the rows; None twice where there are none.
    """
    if positions is None or rows is None:
        return None, None
    first, last = np.searchsorted(positions, [start, stop])
    if first == last:
        return None, None
    return positions[first:last] - start, rows[first:last]


def behind_image(positions: NDArray[np.int64] | None, cut: int) -> int:
    """Where a cut may be that parts no image: at `cut`, or behind the rows that it would part.

    Args:
        positions: (M,) ascending, where rows stand in for tokens; an image's follow one another.
        cut: the first position behind it.
    """
    if positions is None or not cut:
        return cut
    at = int(np.searchsorted(positions, cut))
    while 0 < at < len(positions) and positions[at] == cut and positions[at - 1] == cut - 1:
        at, cut = at + 1, cut + 1
    return cut


def call_end(config: ModelConfig, positions: NDArray[np.int64] | None, end: int) -> int:
    """Where a call's tokens may end: at `end`, or behind an image whose rows see each other."""
    return behind_image(positions, end) if config.images_see_ahead else end


def calls(
    config: ModelConfig, positions: NDArray[np.int64] | None, n_tokens: int, chunk: int
) -> Iterator[tuple[int, int]]:
    """The calls of a long prompt: where the tokens of each begin, and where they end."""
    start = 0
    while start < n_tokens:
        end = min(call_end(config, positions, start + chunk), n_tokens)
        yield start, end
        start = end


def seen_with_images(n_tokens: int, images: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many of these tokens each sees, (T,): those up to its own, and the whole of its image.

    images: (M,) where image rows stand; those that follow one another are one image.
    """
    seen = np.arange(1, n_tokens + 1)
    for image in np.split(images, np.flatnonzero(np.diff(images) != 1) + 1):
        seen[image] = image[-1] + 1
    return seen


def places(
    n_tokens: int,
    first: int,
    images: NDArray[np.int64] | None,
    rows: NDArray[np.float32] | None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where tokens stand by time, height and width, (3, T), and where a text goes on behind each.

    A text goes on by one in all three. An image stands at one time, its rows lie on a grid, and
    what follows goes on behind its longer side.

    Args:
        first: where a text would stand now.
        images: (M,) where image rows stand.
        rows: (M, …) whose last three numbers are a row's height, width, and the longer side.
    """
    where, after = np.zeros((3, n_tokens), np.int64), np.zeros(n_tokens, np.int64)
    of_row = {} if images is None or rows is None else dict(zip(images, rows[:, -3:], strict=True))
    for i in range(n_tokens):
        if i not in of_row:
            where[:, i] = first
            first += 1
        else:
            down, right, longer = (int(n) for n in of_row[i])
            start = first if down == right == 0 else first - longer
            where[:, i] = start, start + down, start + right
            first = start + longer
        after[i] = first
    return where, after


class Runner(Protocol):
    """What generation needs of a model, whichever path computes it."""

    config: ModelConfig
    dtype: str
    batch_invariant: bool  # whether a token's logits are the same bits whatever runs beside it

    @property
    def fingerprint(self) -> str:
        """Changes whenever the numbers could: a hash of weights, code version and dtype."""

    def new_cache(self, capacity: int) -> Cache:
        """An empty cache for one sequence of at most `capacity` tokens."""

    def forward_batch(self, segments: Sequence[Segment]) -> list[NDArray[np.float32]]:
        """Logits of each segment, (1 | T | 0, vocab_size) as it asked; its cache has grown by T."""


def weights_fingerprint(config: ModelConfig, weights: Mapping[str, Array], path: str) -> str:
    """12 hex digits that change with the weights, the shape or the computing path.

    4 kB from the middle of every tensor is hashed, not all of it: half a gigabyte would cost more
    than loading, and training moves every tensor.
    """
    digest = hashlib.sha256(f"{config}{path}".encode())
    for name in sorted(weights):
        flat = weights[name].reshape(-1)
        middle = max(0, flat.size // 2 - 512)
        digest.update(name.encode() + flat[middle : middle + 1024].tobytes())
    return digest.hexdigest()[:12]
