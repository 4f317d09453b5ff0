"""Attention over the paged cache: which queries read which keys, and in what order sums are merged.

A context is taken in chunks of 512 keys. Each chunk's softmax is computed from scratch and then
folded into that of the chunks before it, in order, so that the sums of a long context are the same
whether one thread walks through it (`attend_all`) or its chunks are spread over all (`keep_chunk`,
`merge_chunks`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from tinyllm.kernels.arrays import SPREAD_ROWS, Batch, Own, Pool, Scratch
from tinyllm.kernels.build import part
from tinyllm.kernels.dispatch import attend, divide_row, merge, put
from tinyllm.kernels.layout import CHUNK, NOTHING_YET, TILE, AttendScratch, Keys, Softmax


class Part(NamedTuple):
    """Up to 8 rows of one sequence, and a key head with the query heads that share it."""

    first: int  # row of the batch
    n_rows: int
    sequence: int
    layer: int
    head: int  # the key head
    group: int  # query heads a key head

    # Query i of a part is head i % group of row first + i // group.


@part
def attend_chunk(part: Part, start: int, pool: Pool, batch: Batch, s: Scratch, own: Own) -> None:
    """One chunk of keys for all queries of a part, 8 at a time; into own.chunk."""
    n = part.n_rows * part.group
    for i in range(n):
        own.visible[i] = batch.position[part.first + i // part.group] + 1
    scratch = AttendScratch(own.scores, own.sums, own.shrink)
    for i in range(0, n, TILE):
        count = min(TILE, n - i)
        stop = min(start + CHUNK, own.visible[i + count - 1])
        keys = Keys(pool.cells, batch.pages, part.sequence, part.layer, part.head, start, stop)
        q_row = (part.head * s.x.shape[0] + part.first) * part.group + i
        attend(s.q, q_row, count, own.visible, keys, scratch, own.chunk, i)


@part
def attend_all(part: Part, pool: Pool, batch: Batch, s: Scratch, own: Own) -> None:
    """Attention of a part's rows over all that they see; into s.mixed."""
    n = part.n_rows * part.group
    start_over(own.so_far, n)
    for start in range(0, batch.position[part.first + part.n_rows - 1] + 1, CHUNK):
        attend_chunk(part, start, pool, batch, s, own)
        for i in range(n):
            if own.visible[i] > start:
                merge(own.so_far, i, own.chunk, i)
    for i in range(part.n_rows):
        finish_row(part.first + i, part.head, part.group, i * part.group, own.so_far, own.row,
                   s.mixed)  # fmt: skip


@part
def spread_row(row: int, head: int, n_heads: int, chunk: int, spread: Softmax) -> int:
    """Where the state of a row's query head over one chunk is kept."""
    n_chunks = spread.top.shape[0] // (SPREAD_ROWS * n_heads)
    at: int = (row * n_heads + head) * n_chunks + chunk
    return at


@part
def keep_chunk(part: Part, chunk: int, n_heads: int, state: Softmax, spread: Softmax) -> None:
    """Note a part's state over one chunk of keys, for `merge_chunks`."""
    for i in range(part.n_rows * part.group):
        head = part.head * part.group + i % part.group
        to = spread_row(part.first + i // part.group, head, n_heads, chunk, spread)
        spread.top[to], spread.total[to] = state.top[i], state.total[i]
        for d in range(state.mixed.shape[1]):
            spread.mixed[to, d] = state.mixed[i, d]


@part
def merge_chunks(part: Part, n_chunks: int, n_heads: int, s: Scratch, own: Own) -> None:
    """Fold the chunks of a part of one row in order, as `attend_all` does; into s.mixed."""
    start_over(own.so_far, part.group)
    for h in range(part.group):
        for chunk in range(n_chunks):
            at = spread_row(part.first, part.head * part.group + h, n_heads, chunk, s.spread)
            merge(own.so_far, h, s.spread, at)
    finish_row(part.first, part.head, part.group, 0, own.so_far, own.row, s.mixed)


@part
def start_over(state: Softmax, n: int) -> None:
    """No keys seen yet."""
    for i in range(n):
        state.top[i], state.total[i] = NOTHING_YET, 0.0
        for d in range(state.mixed.shape[1]):
            state.mixed[i, d] = 0.0


@part
def finish_row(
    r: int, head: int, group: int, at: int, state: Softmax, row: Any, mixed: Any
) -> None:
    """Divide a row's sums by its weights and hand them on as activations."""
    head_dim = state.mixed.shape[1]
    for h in range(group):
        divide_row(state.mixed, at + h, state.total[at + h], row, h * head_dim)
    width = group * head_dim
    put(mixed, r // TILE, r % TILE, head * width, row, 0, width)
