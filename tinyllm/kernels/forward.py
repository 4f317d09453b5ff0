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

from tinyllm.kernels.arrays import OUT_BLOCKS, SPREAD_ROWS, Batch, ModelArrays, Own, Pool, Scratch
from tinyllm.kernels.attention import Part, attend_all, attend_chunk, keep_chunk, merge_chunks
from tinyllm.kernels.build import kernel, part
from tinyllm.kernels.dispatch import (
    add_row,
    append_key,
    append_value,
    embed,
    matmul,
    norm_row,
    put,
    rope,
    swiglu,
)
from tinyllm.kernels.layout import BLOCK, CHUNK, GROUP, PAGE, TILE, Softmax
from tinyllm.kernels.threads import Turn, begin, chunks, finish, next_job

Array = NDArray[Any]

OWN_ROWS = 2  # up to this many rows every thread norms for itself: less work than a region's wait
TILES = 8  # tiles of 8 rows that a chunk of a matrix product goes through
HEAD_BLOCKS = 24  # blocks of 16 outputs in a chunk of the logits

# Regions by number: the embedding's, then these of each layer, then two for the logits. A call may
# leave some out.
ATTN_NORM, QKV, ATTEND, MERGE, OUT, MLP_NORM, GATE_UP, DOWN = range(8)
LAYER_REGIONS = 8


def n_regions(n_layers: int) -> int:
    """The most regions that a call of `run` goes through."""
    return 1 + LAYER_REGIONS * n_layers + 2


class Call(NamedTuple):
    """What one call computes, and what follows from it for every region."""

    n_rows: int
    n_parts: int
    n_logits: int
    n_tiles: int  # of 8 rows
    n_bands: int  # of 8 tiles: matrix products are cut into bands of rows, too
    alone: bool  # few rows: every thread norms them for itself, into a tile of its own
    normed: int  # the first tile of normed rows that this thread reads
    n_spans: int  # chunks of keys in the longest context, where they are spread over the threads
    n_heads: int
    n_kv_heads: int
    head_dim: int


@kernel
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
    n_threads = all_own.row.shape[0]
    own = take_own(thread, all_own)
    while True:
        job = next_job(control, thread, last)
        if job == 0:
            return last
        call = look_at(thread, n_threads, model, pool, batch, s)
        if not begin(control, thread, job):
            continue  # what was looked at may be the next job's already
        turn = Turn(control, thread, n_threads, job)

        embed_rows(turn, call, model, batch, s)
        for layer in range(model.attn_norm.shape[0]):
            # x += out · attention(norm(x))
            norm_rows(turn, region(layer, ATTN_NORM), call, model.attn_norm, layer, model.norm_eps,
                      s, own)  # fmt: skip
            queries_keys_values(turn, call, layer, model, pool, batch, s, own)
            if call.n_spans == 0:
                attend_parts(turn, call, layer, pool, batch, s, own)
            else:
                attend_spans(turn, call, layer, pool, batch, s, own)
            add_product(turn, region(layer, OUT), call, model.out, layer, s.mixed, s.x, own.out)
            # x += down · (silu(gate · norm(x)) * (up · norm(x)))
            norm_rows(turn, region(layer, MLP_NORM), call, model.mlp_norm, layer, model.norm_eps,
                      s, own)  # fmt: skip
            gate_and_up(turn, call, layer, model, s, own)
            add_product(turn, region(layer, DOWN), call, model.down, layer, s.hidden, s.x, own.out)
        if call.n_logits > 0:
            logits(turn, call, model, batch, s, own)

        if finish(control, thread):
            return job
        last = job


@part
def region(layer: int, part: int) -> int:
    """A region of a layer by its number."""
    return 1 + LAYER_REGIONS * layer + part


@part
def look_at(
    thread: int, n_threads: int, model: ModelArrays, pool: Pool, batch: Batch, s: Scratch
) -> Call:
    """Read a job's counts."""
    n_rows, n_parts, n_logits, longest = batch.counts
    n_tiles = (n_rows + TILE - 1) // TILE
    alone = n_rows <= OWN_ROWS
    spread = n_rows <= SPREAD_ROWS and longest > CHUNK
    return Call(
        n_rows, n_parts, n_logits, n_tiles, (n_tiles + TILES - 1) // TILES, alone,
        s.normed.values.shape[0] - n_threads + thread if alone else 0,
        (longest + CHUNK - 1) // CHUNK if spread else 0,
        model.n_heads, pool.cells.shape[2], s.q.shape[1],
    )  # fmt: skip


@part
def take_own(thread: int, all_own: Own) -> Own:
    """One thread's share of the private arrays."""
    chunk, so_far = all_own.chunk, all_own.so_far
    return Own(
        all_own.row[thread],
        all_own.out[thread],
        all_own.half[thread],
        all_own.visible[thread],
        all_own.scores[thread],
        all_own.sums[thread],
        all_own.shrink[thread],
        Softmax(chunk.top[thread], chunk.total[thread], chunk.mixed[thread]),
        Softmax(so_far.top[thread], so_far.total[thread], so_far.mixed[thread]),
    )


# --- the regions, in the order in which a row passes through them --------------------------------


@part
def embed_rows(turn: Turn, call: Call, model: ModelArrays, batch: Batch, s: Scratch) -> None:
    """x = the tokens' embeddings, or rows of images."""
    for tile in chunks(turn, 0, call.n_tiles):
        for r in range(tile * TILE, min(call.n_rows, (tile + 1) * TILE)):
            embed_row(model.embed, batch.tokens[r], batch.images, s.x, r)


@part
def norm_rows(
    turn: Turn, at: int, call: Call, weight: Array, layer: int, eps: float, s: Scratch, own: Own
) -> None:
    """RMS norm of all rows, as activations; few rows are no region, but each thread's own work."""
    if call.alone:
        norm_tile(s.x, weight, layer, eps, 0, call.n_rows, call.normed, own.row, s.normed)
    else:
        for tile in chunks(turn, at, call.n_tiles):
            first = tile * TILE
            n = min(TILE, call.n_rows - first)
            norm_tile(s.x, weight, layer, eps, first, n, tile, own.row, s.normed)


@part
def queries_keys_values(
    turn: Turn, call: Call, layer: int, model: ModelArrays, pool: Pool, batch: Batch, s: Scratch,
    own: Own,
) -> None:  # fmt: skip
    """Project the normed rows head by head; queries go to s.q, keys and values to the cache."""
    n_units = call.n_heads + 2 * call.n_kv_heads
    n_blocks = call.head_dim // BLOCK
    for chunk in chunks(turn, region(layer, QKV), n_units * call.n_bands):
        unit, band = chunk % n_units, chunk // n_units
        for tile in range(band * TILES, min(call.n_tiles, (band + 1) * TILES)):
            n = min(TILE, call.n_rows - tile * TILE)
            matmul(model.qkv, layer, unit * n_blocks, n_blocks, s.normed, call.normed + tile, n,
                   own.out, 0, 0)  # fmt: skip
            place_head(unit, call, layer, tile * TILE, n, model, pool, batch, s, own)


@part
def attend_parts(
    turn: Turn, call: Call, layer: int, pool: Pool, batch: Batch, s: Scratch, own: Own
) -> None:
    """Attention, a part and key head at a time."""
    n_heads = call.n_kv_heads
    for chunk in chunks(turn, region(layer, ATTEND), call.n_parts * n_heads):
        part = part_of(call.n_parts - 1 - chunk // n_heads, chunk % n_heads, layer, call, batch)
        attend_all(part, pool, batch, s, own)  # the longest come first


@part
def attend_spans(
    turn: Turn, call: Call, layer: int, pool: Pool, batch: Batch, s: Scratch, own: Own
) -> None:
    """Attention where a few rows see many keys: 512 keys at a time, then the chunks together."""
    n_heads = call.n_kv_heads
    n_units = call.n_parts * n_heads
    for chunk in chunks(turn, region(layer, ATTEND), n_units * call.n_spans):
        span, unit = chunk // n_units, chunk % n_units
        part = part_of(unit // n_heads, unit % n_heads, layer, call, batch)
        if batch.position[part.first + part.n_rows - 1] >= span * CHUNK:
            attend_chunk(part, span * CHUNK, pool, batch, s, own)
            keep_chunk(part, span, call.n_heads, own.chunk, s.spread)
    for chunk in chunks(turn, region(layer, MERGE), call.n_rows * n_heads):
        row = chunk // n_heads
        part = Part(row, 1, batch.sequence[row], layer, chunk % n_heads, call.n_heads // n_heads)
        merge_chunks(part, batch.position[row] // CHUNK + 1, call.n_heads, s, own)


@part
def add_product(
    turn: Turn, at: int, call: Call, w: Any, layer: int, rows: Any, x: Array, out: Array
) -> None:
    """x += w · rows."""
    n_units = (w.values.shape[1] + OUT_BLOCKS - 1) // OUT_BLOCKS
    for chunk in chunks(turn, at, n_units * call.n_bands):
        first, band = chunk % n_units * OUT_BLOCKS, chunk // n_units
        count = min(OUT_BLOCKS, w.values.shape[1] - first)
        for tile in range(band * TILES, min(call.n_tiles, (band + 1) * TILES)):
            n = min(TILE, call.n_rows - tile * TILE)
            matmul(w, layer, first, count, rows, tile, n, out, 0, 0)
            for lane in range(n):
                add_row(x, tile * TILE + lane, first * BLOCK, out, lane, count * BLOCK)


@part
def gate_and_up(
    turn: Turn, call: Call, layer: int, model: ModelArrays, s: Scratch, own: Own
) -> None:
    """The MLP's hidden activations: silu(gate) · up, 32 at a time."""
    n_units = model.gate_up.values.shape[1] // 4  # 32 gates with their 32 ups
    for chunk in chunks(turn, region(layer, GATE_UP), n_units * call.n_bands):
        unit, band = chunk % n_units, chunk // n_units
        for tile in range(band * TILES, min(call.n_tiles, (band + 1) * TILES)):
            n = min(TILE, call.n_rows - tile * TILE)
            matmul(model.gate_up, layer, 4 * unit, 4, s.normed, call.normed + tile, n, own.out, 0,
                   0)  # fmt: skip
            for lane in range(n):
                swiglu(own.out, lane, own.row)
                put(s.hidden, tile, lane, GROUP * unit, own.row, 0, GROUP)


@part
def logits(turn: Turn, call: Call, model: ModelArrays, batch: Batch, s: Scratch, own: Own) -> None:
    """Logits of the rows that want them; those rows are gathered into tiles of their own."""
    at = region(model.attn_norm.shape[0], 0)
    n_tiles = (call.n_logits + TILE - 1) // TILE
    for tile in chunks(turn, at, n_tiles):
        for i in range(tile * TILE, min(call.n_logits, (tile + 1) * TILE)):
            norm_row(s.x, batch.logit_rows[i], model.final_norm, 0, model.norm_eps, own.row)
            put(s.normed, tile, i % TILE, 0, own.row, 0, s.x.shape[1])
    n_blocks = s.logits.shape[1] // BLOCK
    for chunk in chunks(turn, at + 1, (n_blocks + HEAD_BLOCKS - 1) // HEAD_BLOCKS):
        first = chunk * HEAD_BLOCKS
        count = min(HEAD_BLOCKS, n_blocks - first)
        for tile in range(n_tiles):
            n = min(TILE, call.n_logits - tile * TILE)
            matmul(model.head, 0, first, count, s.normed, tile, n, s.logits, tile * TILE,
                   first * BLOCK)  # fmt: skip


# --- the parts of a region ----------------------------------------------------------------------


@part
def part_of(part: int, head: int, layer: int, call: Call, batch: Batch) -> Part:
    """A part of the batch, with one of the key heads."""
    first = batch.part_first[part]
    return Part(
        first, batch.part_rows[part], batch.sequence[first], layer, head,
        call.n_heads // call.n_kv_heads,
    )  # fmt: skip


@part
def embed_row(table: Any, token: int, images: Array, x: Array, r: int) -> None:
    """x[r] = the embedding of a token, or row -1 - token of `images`."""
    if token >= 0:
        embed(table, token, x, r)
    else:
        for d in range(x.shape[1]):
            x[r, d] = images[-1 - token, d]


@part
def norm_tile(
    x: Array, weight: Array, layer: int, eps: float, first: int, n: int, tile: int, row: Array,
    rows: Any,
) -> None:  # fmt: skip
    """RMS norm of n ≤ 8 rows, as the activations of one tile."""
    for lane in range(n):
        norm_row(x, first + lane, weight, layer, eps, row)
        put(rows, tile, lane, 0, row, 0, x.shape[1])


@part
def place_head(
    unit: int, call: Call, layer: int, first: int, n: int, model: ModelArrays, pool: Pool,
    batch: Batch, s: Scratch, own: Own,
) -> None:  # fmt: skip
    """Head `unit` of rows first … first + n, own.out[:n], to where it belongs.

    Heads come in the order of `qkv`: all queries, all keys, all values. Queries go to q, turned and
    scaled for the dot product; keys, turned, and values go to the cache.
    """
    group = call.n_heads // call.n_kv_heads
    for lane in range(n):
        r = first + lane
        position = batch.position[r]
        page, slot = batch.pages[batch.sequence[r], position // PAGE], position % PAGE
        if unit < call.n_heads:
            to = (unit // group * s.x.shape[0] + r) * group + unit % group
            rope(own.out, lane, model.cos, model.sin, position, 1.0 / np.sqrt(call.head_dim), s.q,
                 to)  # fmt: skip
        elif unit < call.n_heads + call.n_kv_heads:
            rope(own.out, lane, model.cos, model.sin, position, 1.0, own.out, lane)
            head = unit - call.n_heads
            append_key(pool.cells, page, layer, head, slot, own.out, lane, own.half)
        else:
            head = unit - call.n_heads - call.n_kv_heads
            append_value(pool.cells, page, layer, head, slot, own.out, lane)
