"""The whole forward pass as one compiled function: one call from Python a batch.

It runs every row (token) of a batch through all layers, whichever sequences they belong to; decode,
prefill and everything between are the same code with another number of rows. All threads of a team
walk through it together, region by region (`threads.py`):

    embed · [ norm · qkv + rotary + cache · attention · output + residual
              norm · gate, up, swiglu · down + residual ] × n_layers · norm · logits

The order of every float sum depends on the model's shape and a token's own position alone, never
on the batch, the chunking or the threads. So a token's logits are the same bits however they come
to be computed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinyllm.kernels.build import inlined, lean, uncached
from tinyllm.kernels.dispatch import (
    add_row,
    append_key,
    append_value,
    attend,
    divide_row,
    embed,
    matmul,
    merge,
    norm_row,
    put,
    rope,
    swiglu,
)
from tinyllm.kernels.jit import CHUNK, NOTHING_YET, PAGE
from tinyllm.kernels.layout import BLOCK, GROUP, TILE, AttendScratch
from tinyllm.kernels.threads import JOB, WORD, Turn, atomic_add, atomic_load, chunks, next_job

Array = NDArray[Any]

OWN_ROWS = 2  # up to this many rows every thread norms for itself: less work than a region's wait
TILES = 8  # tiles of 8 rows that a chunk of a matrix product goes through
SPREAD_ROWS = 32  # up to this many rows a long context is spread over the threads
OUT_BLOCKS = 3  # blocks of 16 outputs in a chunk of the output and down projections
HEAD_BLOCKS = 24  # and of the logits


class ModelArrays(NamedTuple):
    """Weights in the kernels' layout; the first four in whichever format, see `layout.py`."""

    embed: Any  # one matrix, (vocab_size, dim)
    head: Any  # one matrix, (vocab_size, dim); the embedding again where they are tied
    qkv: Any  # a matrix a layer: the rows of Q, then of K, then of V
    out: Any  # a matrix a layer, (dim, n_heads · head_dim)
    gate_up: Any  # a matrix a layer: 16 rows of gate, the same 16 of up, and so on
    down: Any  # a matrix a layer, (dim, hidden_dim)
    attn_norm: Array  # (n_layers, dim) float32
    mlp_norm: Array  # (n_layers, dim)
    final_norm: Array  # (1, dim)
    cos: Array  # (max_seq_len, head_dim / 2) float32
    sin: Array
    n_heads: int
    norm_eps: float


class Pool(NamedTuple):
    """The KV cache's pages, float32 or float16 (as uint16).

    A head's keys and values of a page lie side by side: one long run of memory is read half as
    quick again as two short ones.
    """

    cells: Array  # (n_pages, n_layers, n_kv_heads, 2, 64 · head_dim), see `jit.py`


class Batch(NamedTuple):
    """What to compute. R rows (tokens) in order; those of one sequence lie together."""

    counts: Array  # (4,) int64: rows, parts, rows with logits, longest context
    tokens: Array  # (R,) int32; negative: row -1 - token of `images` instead
    images: Array  # (R, dim) float32
    position: Array  # (R,) int64
    sequence: Array  # (R,) int32, a row of `pages`
    part_first: Array  # (R,) int32: a part is up to 8 rows of one sequence, for attention
    part_rows: Array  # (R,) int32
    logit_rows: Array  # (R,) int32: rows whose logits are wanted
    pages: Array  # (sequences, pages) int32


class Scratch(NamedTuple):
    """What all threads write on the way."""

    x: Array  # (R, dim) float32, the residual stream
    normed: Any  # activations of width dim: shared tiles, then one private tile a thread
    mixed: Any  # of width n_heads · head_dim: what attention gives
    hidden: Any  # of width hidden_dim: the MLP between its matrices
    q: Array  # (n_kv_heads · R · group + 8, head_dim): the query heads of a key head lie together
    logits: Array  # (logit rows, padded vocab_size)
    # The attention of single chunks, where a long context is spread over the threads.
    spread_top: Array  # (SPREAD_ROWS · n_heads · chunks,)
    spread_total: Array
    spread_value: Array  # (…, head_dim)


class Own(NamedTuple):
    """What one thread writes for itself. In `run`'s argument each has a first axis of threads."""

    row: Array  # (max(dim, …),)
    out: Array  # (8, outputs of a chunk)
    half: Array  # (head_dim,) of the pool's dtype
    visible: Array  # (8 · group + 8,) int64: how many keys each query sees
    scores: Array  # these three: see AttendScratch
    sums: Array
    shrink: Array
    top: Array  # (8 · group + 8,): attention over one chunk of keys …
    total: Array
    value: Array  # (8 · group + 8, head_dim)
    all_top: Array  # … and over all chunks so far
    all_total: Array
    all_value: Array


@lean
def run(
    thread: int,
    last: int,
    control: Array,
    model: ModelArrays,
    pool: Pool,
    batch: Batch,
    s: Scratch,
    all_own: Own,
) -> int:
    """One thread's part of the work, as `threads.Work` has it: all regions of a job, in order."""
    n_layers, dim = model.attn_norm.shape
    n_heads, n_kv_heads, head_dim = model.n_heads, pool.cells.shape[2], s.q.shape[1]
    group = n_heads // n_kv_heads
    own = take_own(thread, all_own)
    row, out = own.row, own.out
    n_threads = all_own.row.shape[0]
    own_tile = s.normed.values.shape[0] - n_threads + thread

    job = last
    while True:
        if thread > 0:
            job = next_job(control, last)
            if job == 0:
                return last
        n_rows, n_parts, n_logits, longest = batch.counts
        if thread == 0:
            atomic_add(control, JOB * WORD, 1)  # even: the others may join
        elif atomic_load(control, JOB * WORD) != job:
            continue  # the counts may be the next job's already
        last = job
        turn = Turn(control, thread, n_threads, job)

        n_tiles = (n_rows + TILE - 1) // TILE
        n_bands = (n_tiles + TILES - 1) // TILES  # matrix products are cut into bands of rows, too
        alone = n_rows <= OWN_ROWS
        normed_tile = own_tile if alone else 0
        spread = n_rows <= SPREAD_ROWS and longest > CHUNK
        n_spans = (longest + CHUNK - 1) // CHUNK
        region = 0

        for tile in chunks(turn, region, n_tiles):
            for r in range(tile * TILE, min(n_rows, (tile + 1) * TILE)):
                embed_row(model.embed, batch.tokens[r], batch.images, s.x, r)
        region += 1

        for layer in range(n_layers):
            # Attention: x += out · attention(norm(x)).
            if alone:
                norm_own(s.x, model.attn_norm, layer, model.norm_eps, n_rows, row, s.normed,
                         own_tile)  # fmt: skip
            else:
                for tile in chunks(turn, region, n_tiles):
                    norm_tile(s.x, model.attn_norm, layer, model.norm_eps, n_rows, tile, row,
                              s.normed)  # fmt: skip
                region += 1

            n_units = n_heads + 2 * n_kv_heads  # a unit is one head
            n_blocks = head_dim // BLOCK
            for chunk in chunks(turn, region, n_units * n_bands):
                unit, band = chunk % n_units, chunk // n_units
                for tile in range(band * TILES, min(n_tiles, (band + 1) * TILES)):
                    n = min(TILE, n_rows - tile * TILE)
                    matmul(model.qkv, layer, unit * n_blocks, n_blocks, s.normed,
                           normed_tile + tile, n, out, 0, 0)  # fmt: skip
                    place_head(unit, n_heads, layer, tile * TILE, n, out, own.half, model.cos,
                               model.sin, pool, batch.position, batch.sequence, batch.pages,
                               s.q, s.x.shape[0])  # fmt: skip
            region += 1

            if not spread:
                for chunk in chunks(turn, region, n_parts * n_kv_heads):
                    part = n_parts - 1 - chunk // n_kv_heads  # the longest first
                    first, n = batch.part_first[part], batch.part_rows[part]
                    attend_all(first, n, chunk % n_kv_heads, layer, group, s.q, s.x.shape[0],
                               pool, batch.position, batch.sequence[first], batch.pages, own,
                               s.mixed)  # fmt: skip
                region += 1
            else:
                for chunk in chunks(turn, region, n_parts * n_kv_heads * n_spans):
                    span, unit = chunk // (n_parts * n_kv_heads), chunk % (n_parts * n_kv_heads)
                    part, head = unit // n_kv_heads, unit % n_kv_heads
                    first, n = batch.part_first[part], batch.part_rows[part]
                    if batch.position[first + n - 1] >= span * CHUNK:
                        attend_rows(first, n, head, span * CHUNK, layer, group, s.q, s.x.shape[0],
                                    pool, batch.position, batch.sequence[first], batch.pages,
                                    own)  # fmt: skip
                        keep_span(first, n, head, span, group, n_heads, own, s.spread_top,
                                  s.spread_total, s.spread_value)  # fmt: skip
                region += 1
                for chunk in chunks(turn, region, n_rows * n_kv_heads):
                    r, head = chunk // n_kv_heads, chunk % n_kv_heads
                    merge_spans(r, head, group, n_heads, batch.position[r] // CHUNK + 1, own,
                                s.spread_top, s.spread_total, s.spread_value,
                                s.mixed)  # fmt: skip
                region += 1

            n_units = (model.out.values.shape[1] + OUT_BLOCKS - 1) // OUT_BLOCKS
            for chunk in chunks(turn, region, n_units * n_bands):
                add_product(model.out, layer, s.mixed, chunk % n_units, chunk // n_units, out, s.x,
                            n_rows)  # fmt: skip
            region += 1

            # MLP: x += down · (silu(gate · norm(x)) * (up · norm(x))).
            if alone:
                norm_own(s.x, model.mlp_norm, layer, model.norm_eps, n_rows, row, s.normed,
                         own_tile)  # fmt: skip
            else:
                for tile in chunks(turn, region, n_tiles):
                    norm_tile(s.x, model.mlp_norm, layer, model.norm_eps, n_rows, tile, row,
                              s.normed)  # fmt: skip
                region += 1

            n_units = model.gate_up.values.shape[1] // 4  # 32 gates with their 32 ups
            for chunk in chunks(turn, region, n_units * n_bands):
                unit, band = chunk % n_units, chunk // n_units
                for tile in range(band * TILES, min(n_tiles, (band + 1) * TILES)):
                    n = min(TILE, n_rows - tile * TILE)
                    matmul(model.gate_up, layer, 4 * unit, 4, s.normed, normed_tile + tile, n,
                           out, 0, 0)  # fmt: skip
                    for lane in range(n):
                        swiglu(out, lane, row)
                        put(s.hidden, tile, lane, GROUP * unit, row, 0, GROUP)
            region += 1

            n_units = (model.down.values.shape[1] + OUT_BLOCKS - 1) // OUT_BLOCKS
            for chunk in chunks(turn, region, n_units * n_bands):
                add_product(model.down, layer, s.hidden, chunk % n_units, chunk // n_units, out,
                            s.x, n_rows)  # fmt: skip
            region += 1

        # Logits of the rows that want them; those rows are gathered into tiles of their own.
        if n_logits > 0:
            n_tiles = (n_logits + TILE - 1) // TILE
            for tile in chunks(turn, region, n_tiles):
                for i in range(tile * TILE, min(n_logits, (tile + 1) * TILE)):
                    norm_row(s.x, batch.logit_rows[i], model.final_norm, 0, model.norm_eps, row)
                    put(s.normed, tile, i % TILE, 0, row, 0, dim)
            region += 1
            n_blocks = s.logits.shape[1] // BLOCK
            for chunk in chunks(turn, region, (n_blocks + HEAD_BLOCKS - 1) // HEAD_BLOCKS):
                first = chunk * HEAD_BLOCKS
                count = min(HEAD_BLOCKS, n_blocks - first)
                for tile in range(n_tiles):
                    n = min(TILE, n_logits - tile * TILE)
                    matmul(model.head, 0, first, count, s.normed, tile, n, s.logits, tile * TILE,
                           first * BLOCK)  # fmt: skip

        if thread == 0:
            atomic_add(control, JOB * WORD, 1)  # odd: it is over
            return job


# --- the parts of a region ----------------------------------------------------------------------


@uncached
def take_own(thread: int, all_own: Own) -> Own:
    """One thread's share of the private arrays."""
    return Own(
        all_own.row[thread],
        all_own.out[thread],
        all_own.half[thread],
        all_own.visible[thread],
        all_own.scores[thread],
        all_own.sums[thread],
        all_own.shrink[thread],
        all_own.top[thread],
        all_own.total[thread],
        all_own.value[thread],
        all_own.all_top[thread],
        all_own.all_total[thread],
        all_own.all_value[thread],
    )


@lean
def embed_row(table: Any, token: int, images: Array, x: Array, r: int) -> None:
    """x[r] = the embedding of a token, or row -1 - token of `images`."""
    if token >= 0:
        embed(table, token, x, r)
    else:
        for d in range(x.shape[1]):
            x[r, d] = images[-1 - token, d]


@lean
def norm_tile(
    x: Array, weight: Array, layer: int, eps: float, n_rows: int, tile: int, row: Array, rows: Any
) -> None:
    """RMS norm of the rows of one tile, as activations."""
    for r in range(tile * TILE, min(n_rows, (tile + 1) * TILE)):
        norm_row(x, r, weight, layer, eps, row)
        put(rows, tile, r % TILE, 0, row, 0, x.shape[1])


@lean
def norm_own(
    x: Array, weight: Array, layer: int, eps: float, n_rows: int, row: Array, rows: Any, tile: int
) -> None:
    """RMS norm of all rows into a thread's private tile."""
    for r in range(n_rows):
        norm_row(x, r, weight, layer, eps, row)
        put(rows, tile, r, 0, row, 0, x.shape[1])


@lean
def place_head(
    unit: int,
    n_heads: int,
    layer: int,
    first: int,
    n: int,
    out: Array,
    half: Array,
    cos: Array,
    sin: Array,
    pool: Pool,
    positions: Array,
    sequences: Array,
    pages: Array,
    q: Array,
    max_rows: int,
) -> None:
    """Head `unit` of rows first … first + n, out[:n], to where it belongs.

    Heads come in the order of `qkv`: all queries, all keys, all values. Queries go to q, turned and
    scaled for the dot product; keys, turned, and values go to the cache.
    """
    n_kv_heads, head_dim = pool.cells.shape[2], q.shape[1]
    group = n_heads // n_kv_heads
    for lane in range(n):
        r = first + lane
        position = positions[r]
        page, slot = pages[sequences[r], position // PAGE], position % PAGE
        if unit < n_heads:
            to = (unit // group * max_rows + r) * group + unit % group
            rope(out, lane, cos, sin, position, 1.0 / np.sqrt(head_dim), q, to)
        elif unit < n_heads + n_kv_heads:
            rope(out, lane, cos, sin, position, 1.0, out, lane)
            append_key(pool.cells, page, layer, unit - n_heads, slot, out, lane, half)
        else:
            head = unit - n_heads - n_kv_heads
            append_value(pool.cells, page, layer, head, slot, out, lane)


@lean
def attend_rows(
    first: int,
    n_rows: int,
    head: int,
    start: int,
    layer: int,
    group: int,
    q: Array,
    max_rows: int,
    pool: Pool,
    positions: Array,
    sequence: int,
    pages: Array,
    own: Own,
) -> None:
    """One chunk of keys for n_rows · group queries, 8 at a time; into own.top, total, value."""
    n = n_rows * group
    for i in range(n):
        own.visible[i] = positions[first + i // group] + 1
    scratch = AttendScratch(own.scores, own.sums, own.shrink)
    for i in range(0, n, 8):
        count = min(8, n - i)
        stop = min(start + CHUNK, own.visible[i + count - 1])
        q_row = (head * max_rows + first) * group + i
        attend(q, q_row, count, own.visible, pool.cells, pages, sequence, layer, head, start, stop,
               scratch, own.top, own.total, own.value, i)  # fmt: skip


@lean
def attend_all(
    first: int,
    n_rows: int,
    head: int,
    layer: int,
    group: int,
    q: Array,
    max_rows: int,
    pool: Pool,
    positions: Array,
    sequence: int,
    pages: Array,
    own: Own,
    mixed: Any,
) -> None:
    """Attention of a part's rows through one key head, over all that they see."""
    start_over(own, n_rows * group)
    for start in range(0, positions[first + n_rows - 1] + 1, CHUNK):
        attend_rows(first, n_rows, head, start, layer, group, q, max_rows, pool, positions,
                    sequence, pages, own)  # fmt: skip
        for i in range(n_rows * group):
            if own.visible[i] > start:
                merge(own.all_top, own.all_total, own.all_value, i, own.top, own.total, own.value,
                      i)  # fmt: skip
    for i in range(n_rows):
        finish_row(first + i, head, group, i * group, own.all_total, own.all_value, own.row, mixed)


@lean
def start_over(own: Own, n: int) -> None:
    """No keys seen yet."""
    for i in range(n):
        own.all_top[i], own.all_total[i] = NOTHING_YET, 0.0
        for d in range(own.all_value.shape[1]):
            own.all_value[i, d] = 0.0


@lean
def keep_span(
    first: int,
    n_rows: int,
    head: int,
    span: int,
    group: int,
    n_heads: int,
    own: Own,
    spread_top: Array,
    spread_total: Array,
    spread_value: Array,
) -> None:
    """Note the state over one chunk of keys, for `merge_spans`."""
    n_spans = spread_top.shape[0] // (SPREAD_ROWS * n_heads)
    for i in range(n_rows * group):
        to = ((first + i // group) * n_heads + head * group + i % group) * n_spans + span
        spread_top[to], spread_total[to] = own.top[i], own.total[i]
        for d in range(own.value.shape[1]):
            spread_value[to, d] = own.value[i, d]


@lean
def merge_spans(
    r: int,
    head: int,
    group: int,
    n_heads: int,
    n: int,
    own: Own,
    spread_top: Array,
    spread_total: Array,
    spread_value: Array,
    mixed: Any,
) -> None:
    """Fold a row's n chunks in order, as `attend_all` does."""
    n_spans = spread_top.shape[0] // (SPREAD_ROWS * n_heads)
    start_over(own, group)
    for h in range(group):
        for span in range(n):
            at = (r * n_heads + head * group + h) * n_spans + span
            merge(own.all_top, own.all_total, own.all_value, h, spread_top, spread_total,
                  spread_value, at)  # fmt: skip
    finish_row(r, head, group, 0, own.all_total, own.all_value, own.row, mixed)


@lean
def finish_row(
    r: int, head: int, group: int, at: int, total: Array, value: Array, row: Array, mixed: Any
) -> None:
    """Divide a row's sums by its weights and hand them on as activations."""
    head_dim = value.shape[1]
    for h in range(group):
        divide_row(value, at + h, total[at + h], row, h * head_dim)
    width = group * head_dim
    put(mixed, r // TILE, r % TILE, head * width, row, 0, width)


@inlined
def add_product(
    w: Any, layer: int, rows: Any, unit: int, band: int, out: Array, x: Array, n_rows: int
) -> None:
    """x += W · rows, for one unit of outputs and one band of rows."""
    first = unit * OUT_BLOCKS
    count = min(OUT_BLOCKS, w.values.shape[1] - first)
    for tile in range(band * TILES, min((n_rows + TILE - 1) // TILE, (band + 1) * TILES)):
        n = min(TILE, n_rows - tile * TILE)
        matmul(w, layer, first, count, rows, tile, n, out, 0, 0)
        for lane in range(n):
            add_row(x, tile * TILE + lane, first * BLOCK, out, lane, count * BLOCK)
