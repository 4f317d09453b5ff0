"""Attention over the paged cache: which queries read which keys, and in what order sums are merged.

A context is taken in chunks of 512 keys. Each chunk's softmax is computed from scratch and then
folded into that of the chunks before it, in order, so that the sums of a long context are the same
whether one thread walks through it (`attend_all`) or its chunks are spread over all (`keep_chunk`,
`merge_chunks`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from tinyllm.kernels.arrays import SPREAD_ROWS, Batch, Own, Pages, Scratch
from tinyllm.kernels.build import part
from tinyllm.kernels.dispatch import attend, divide_row, merge, put
from tinyllm.kernels.layout import CHUNK, NOTHING_YET, PAGE, TILE, AttendScratch, Keys, Softmax
from tinyllm.kernels.numbers import exp
from tinyllm.kernels.parts import FamilyParts


class QueryRows(NamedTuple):
    """Up to 8 rows of one sequence, and a key head with the query heads that share it."""

    first: int  # row of the batch
    n_rows: int
    sequence: int
    layer: int
    head: int  # the key head
    group: int  # query heads a key head

    # Query i of a part is head i % group of row first + i // group.


@part
def attend_chunk(
    part: QueryRows, start: int, parts: FamilyParts, pool: Pages, batch: Batch, s: Scratch, own: Own
) -> None:
    """One chunk of keys for all queries of a part, 8 at a time; into own.chunk."""
    n = part.n_rows * part.group
    for i in range(n):
        own.visible[i] = batch.position[part.first + i // part.group] + 1
    look_back(parts.windows, part, batch, own)
    scratch = AttendScratch(own.scores, own.sums, own.shrink)
    for i in range(0, n, TILE):
        count = min(TILE, n - i)
        stop = min(start + CHUNK, own.visible[i + count - 1])
        # Pages that no query of the bundle sees any more are left out; masked, they'd add zeros.
        begin = first_page(parts.windows, start, own.hidden, i)
        keys = Keys(pool.cells, batch.pages, part.sequence, part.layer, part.head, begin, stop)
        q_row = (part.head * s.x.shape[0] + part.first) * part.group + i
        attend(s.q, q_row, count, own.visible, keys, scratch, own.chunk, i,
               masked(parts.windows, own.hidden), parts.score_cap)  # fmt: skip


@part
def attend_all(
    part: QueryRows, parts: FamilyParts, pool: Pages, batch: Batch, s: Scratch, own: Own
) -> None:
    """Attention of a part's rows over all that they see; into s.mixed."""
    n = part.n_rows * part.group
    start_over(own.so_far, n)
    first = first_chunk(parts.windows, part, batch) * CHUNK
    for start in range(first, batch.position[part.first + part.n_rows - 1] + 1, CHUNK):
        attend_chunk(part, start, parts, pool, batch, s, own)
        for i in range(n):
            if own.visible[i] > start and sees(parts.windows, own.hidden[i], start + CHUNK):
                merge(own.so_far, i, own.chunk, i)
    for i in range(part.n_rows):
        finish_row(part.first + i, part.head, part.group, i * part.group, parts.sinks, part.layer,
                   own.so_far, own.row, s.mixed)  # fmt: skip


@part
def spread_row(row: int, head: int, n_heads: int, chunk: int, spread: Softmax) -> int:
    """Where the state of a row's query head over one chunk is kept."""
    n_chunks = spread.top.shape[0] // (SPREAD_ROWS * n_heads)
    at: int = (row * n_heads + head) * n_chunks + chunk
    return at


@part
def keep_chunk(part: QueryRows, chunk: int, n_heads: int, state: Softmax, spread: Softmax) -> None:
    """Note a part's state over one chunk of keys, for `merge_chunks`."""
    for i in range(part.n_rows * part.group):
        head = part.head * part.group + i % part.group
        to = spread_row(part.first + i // part.group, head, n_heads, chunk, spread)
        spread.top[to], spread.total[to] = state.top[i], state.total[i]
        for d in range(state.mixed.shape[1]):
            spread.mixed[to, d] = state.mixed[i, d]


@part
def merge_chunks(
    part: QueryRows,
    n_chunks: int,
    n_heads: int,
    parts: FamilyParts,
    batch: Batch,
    s: Scratch,
    own: Own,
) -> None:
    """Fold the chunks of a part of one row in order, as `attend_all` does; into s.mixed."""
    start_over(own.so_far, part.group)
    for h in range(part.group):
        for chunk in range(first_chunk(parts.windows, part, batch), n_chunks):
            at = spread_row(part.first, part.head * part.group + h, n_heads, chunk, s.spread)
            merge(own.so_far, h, s.spread, at)
    finish_row(part.first, part.head, part.group, 0, parts.sinks, part.layer, own.so_far, own.row,
               s.mixed)  # fmt: skip


@part
def start_over(state: Softmax, n: int) -> None:
    """No keys seen yet."""
    for i in range(n):
        state.top[i], state.total[i] = NOTHING_YET, 0.0
        for d in range(state.mixed.shape[1]):
            state.mixed[i, d] = 0.0


@part
def finish_row(
    r: int, head: int, group: int, at: int, sinks: Any, layer: int, state: Softmax, row: Any,
    mixed: Any,
) -> None:  # fmt: skip
    """Divide a row's sums by its weights and hand them on as activations."""
    head_dim = state.mixed.shape[1]
    for h in range(group):
        total = state.total[at + h]
        if sinks is not None:  # a score that takes weight and gives nothing
            total += exp(np.float32(sinks[layer, head * group + h] - state.top[at + h]))
        divide_row(state.mixed, at + h, total, row, h * head_dim)
    width = group * head_dim
    put(mixed, r // TILE, r % TILE, head * width, row, 0, width)


# --- windows: a query sees its own and the keys shortly before ------------------------------------


@part
def look_back(windows: Any, part: QueryRows, batch: Batch, own: Own) -> None:
    """own.hidden = how many of the first keys each query of a part no longer sees."""
    if windows is not None:
        for i in range(part.n_rows * part.group):
            position = batch.position[part.first + i // part.group]
            own.hidden[i] = max(0, position + 1 - windows[part.layer])


@part
def first_chunk(windows: Any, part: QueryRows, batch: Batch) -> int:
    """The first chunk of keys that a part's first row sees anything of."""
    if windows is None:
        return 0
    chunk: int = max(0, batch.position[part.first] + 1 - windows[part.layer]) // CHUNK
    return chunk


@part
def first_page(windows: Any, start: int, hidden: Any, i: int) -> int:
    """Where a bundle begins to read a chunk: at a page that its first query sees."""
    if windows is None:
        return start
    begin: int = max(start, hidden[i] // PAGE * PAGE)
    return begin


@part
def sees(windows: Any, hidden: int, stop: int) -> bool:
    """Whether a query sees any key before `stop`."""
    return windows is None or hidden < stop


@part
def masked(windows: Any, hidden: Any) -> Any:
    """The hidden keys, or None where no key is hidden by a window."""
    if windows is None:
        return None
    return hidden
