"""The whole forward pass as one compiled function: one call from Python a batch.

It runs every row (token) of a batch through all layers, whichever sequences they belong to; decode,
prefill and everything between are the same code with another number of rows. All threads of a team
walk through it together, region by region (`threads.py`):

    embed · [ norm · qkv + rotary + cache · attention · output + residual
              norm · gate, up, swiglu · down + residual ] × n_layers · norm · logits

Where a layer has experts, `experts.py` stands in for the second line.

The order of every float sum depends on the model's shape and a token's own position alone, never
on the batch, the chunking or the threads. So a token's logits are the same bits however they come
to be computed.
"""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from tinyllm.kernels.apart import apart
from tinyllm.kernels.arrays import (
    OUT_BLOCKS,
    SPREAD_ROWS,
    Batch,
    Call,
    ModelArrays,
    Own,
    Pages,
    Scratch,
)
from tinyllm.kernels.attention import (
    QueryRows,
    attend_all,
    attend_chunk,
    first_chunk,
    keep_chunk,
    merge_chunks,
)
from tinyllm.kernels.build import kernel, part
from tinyllm.kernels.dispatch import matmul, n_blocks, norm_row, put
from tinyllm.kernels.experts import add_experts
from tinyllm.kernels.heads import place_normed, take_head
from tinyllm.kernels.layout import BLOCK, CHUNK, GROUP, TILE, TILES, Softmax
from tinyllm.kernels.part_kernels import add_bias, add_position
from tinyllm.kernels.parts import FamilyParts
from tinyllm.kernels.products import add_product, put_product, rows_of
from tinyllm.kernels.regions import (
    ATTEND,
    ATTN_NORM,
    DOWN,
    GATE_UP,
    HEADS_NORM,
    LAYER_REGIONS,
    MERGE,
    MLP_NORM,
    OUT,
    QKV,
)
from tinyllm.kernels.rows import embed_row, finish_logits, hidden_row, norm_one, norm_tile
from tinyllm.kernels.threads import Worker, begin, chunks, finish, next_job

Array = NDArray[Any]

OWN_ROWS = 2  # up to this many rows every thread norms for itself: less work than a region's wait
HEAD_BLOCKS = 24  # blocks of 16 outputs in a chunk of the logits


@kernel
def run(
    thread: int,
    last: int,
    control: Array,
    model: ModelArrays,
    pool: Pages,
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
        worker = Worker(control, thread, n_threads, job)

        embed_rows(worker, call, model, batch, s)
        for layer in range(model.n_layers):
            # x += out · attention(norm(x))
            norm_rows(worker, region(layer, ATTN_NORM), call, model.attn_norm,
                      model.parts.attn_bias, layer, model.norm_eps, s, own)  # fmt: skip
            queries_keys_values(worker, call, layer, model, pool, batch, s, own)
            place_normed(worker, region(layer, HEADS_NORM), call, layer, model, pool, batch, s,
                         own, model.parts.q_whole)  # fmt: skip
            attention(worker, call, layer, model.parts, pool, batch, s, own)
            out_and_mlp(worker, call, layer, model, s, own, model.parts.one_norm,
                        model.parts.side_by_side, model.experts, model.gate_up)  # fmt: skip
        if call.n_logits > 0:
            logits(worker, call, model, batch, s, own)

        if finish(control, thread):
            return job
        last = job


@part
def out_and_mlp(
    worker: Worker, call: Call, layer: int, model: ModelArrays, s: Scratch, own: Own, one_norm: Any,
    side_by_side: Any, experts: Any, gate_up: Any,
) -> None:  # fmt: skip
    """The rest of a layer, behind attention; where the MLP stands beside it, before it is added."""
    parts = model.parts
    if side_by_side is not None:
        # Both read the stream as it entered the layer.
        norm_rows(worker, region(layer, MLP_NORM), call, model.mlp_norm, parts.mlp_bias, layer,
                  model.norm_eps, s, own)  # fmt: skip
        gate_and_up(worker, region(layer, GATE_UP), call, layer, model, s, own, parts.act,
                    parts.plain)  # fmt: skip
    add_sublayer(worker, region(layer, OUT), call, model.out, parts.out_bias, parts.after_attn,
                 layer, model.norm_eps, s.mixed, s, own)  # fmt: skip
    if experts is not None:
        mix(worker, call, layer, model, experts, s, own, gate_up)
    elif gate_up is not None:
        if side_by_side is None:
            # x += down · (silu(gate · norm(x)) * (up · norm(x)))
            if one_norm is None:
                norm_rows(worker, region(layer, MLP_NORM), call, model.mlp_norm, parts.mlp_bias,
                          layer, model.norm_eps, s, own)  # fmt: skip
            gate_and_up(worker, region(layer, GATE_UP), call, layer, model, s, own, parts.act,
                        parts.plain)  # fmt: skip
        add_sublayer(worker, region(layer, DOWN), call, model.down, parts.down_bias,
                     parts.after_mlp, layer, model.norm_eps, s.hidden, s, own)  # fmt: skip


@part
def mix(
    worker: Worker, call: Call, layer: int, model: ModelArrays, experts: Any, s: Scratch, own: Own,
    gate_up: Any,
) -> None:  # fmt: skip
    """x += what the layer's experts give; or its MLP, if it is one of those that have none."""
    if experts.slot[layer] >= 0:
        add_experts(worker, region(layer, MLP_NORM), call, layer, model, experts, s, s.experts, own)
    elif gate_up is not None:
        matrix = -1 - experts.slot[layer]
        norm_rows(worker, region(layer, MLP_NORM), call, model.mlp_norm, model.parts.mlp_bias,
                  layer, model.norm_eps, s, own)  # fmt: skip
        gate_and_up(worker, region(layer, GATE_UP), call, matrix, model, s, own, model.parts.act,
                    model.parts.plain)  # fmt: skip
        add_product(worker, region(layer, DOWN), call, model.down, model.parts.down_bias, matrix,
                    s.hidden, s.x, own.out)  # fmt: skip


@part
def region(layer: int, part: int) -> int:
    """A region of a layer by its number."""
    return 1 + LAYER_REGIONS * layer + part


@part
def look_at(
    thread: int, n_threads: int, model: ModelArrays, pool: Pages, batch: Batch, s: Scratch
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
        all_own.hidden[thread],
        all_own.scores[thread],
        all_own.sums[thread],
        all_own.shrink[thread],
        Softmax(chunk.top[thread], chunk.total[thread], chunk.mixed[thread]),
        Softmax(so_far.top[thread], so_far.total[thread], so_far.mixed[thread]),
    )


# --- the regions, in the order in which a row passes through them --------------------------------


@part
def embed_rows(worker: Worker, call: Call, model: ModelArrays, batch: Batch, s: Scratch) -> None:
    """x = the tokens' embeddings, or rows of images."""
    for r in rows_of(worker, 0, call):
        embed_row(model.embed, batch.tokens[r], batch.images, s.x, r, model.parts.embedding_scale)
        add_position(model.parts.positions, batch.position[r], s.x, r)


@part
def norm_rows(
    worker: Worker, at: int, call: Call, weight: Any, bias: Any, layer: int, eps: float, s: Scratch,
    own: Own,
) -> None:  # fmt: skip
    """The norm of all rows, as activations; few rows are no region, but each thread's own work."""
    if call.alone:
        norm_tile(s.x, weight, bias, layer, eps, 0, call.n_rows, call.normed, own.row, s.normed)
    else:
        for tile in chunks(worker, at, call.n_tiles):
            first = tile * TILE
            n = min(TILE, call.n_rows - first)
            norm_tile(s.x, weight, bias, layer, eps, first, n, tile, own.row, s.normed)


@part
def queries_keys_values(
    worker: Worker, call: Call, layer: int, model: ModelArrays, pool: Pages, batch: Batch,
    s: Scratch, own: Own,
) -> None:  # fmt: skip
    """Project the normed rows head by head; queries go to s.q, keys and values to the cache."""
    n_units = call.n_heads + 2 * call.n_kv_heads
    n_blocks = call.head_dim // BLOCK
    for chunk in chunks(worker, region(layer, QKV), n_units * call.n_bands):
        unit, band = chunk % n_units, chunk // n_units
        for tile in range(band * TILES, min(call.n_tiles, (band + 1) * TILES)):
            n = min(TILE, call.n_rows - tile * TILE)
            matmul(model.qkv, layer, unit * n_blocks, n_blocks, s.normed, call.normed + tile, n,
                   own.out, 0, 0)  # fmt: skip
            add_bias(model.parts.qkv_bias, layer, unit * call.head_dim, own.out, n, call.head_dim)
            take_head(unit, call, layer, tile * TILE, n, model, pool, batch, s, own,
                      model.parts.q_whole)  # fmt: skip


@apart
def attention(
    worker: Worker, call: Call, layer: int, parts: FamilyParts, pool: Pages, batch: Batch,
    s: Scratch, own: Own,
) -> None:  # fmt: skip
    """Attention of all rows."""
    if call.n_spans == 0:
        attend_parts(worker, call, layer, parts, pool, batch, s, own)
    else:
        attend_spans(worker, call, layer, parts, pool, batch, s, own)


@part
def attend_parts(
    worker: Worker,
    call: Call,
    layer: int,
    parts: FamilyParts,
    pool: Pages,
    batch: Batch,
    s: Scratch,
    own: Own,
) -> None:
    """Attention, a part and key head at a time."""
    n_heads = call.n_kv_heads
    for chunk in chunks(worker, region(layer, ATTEND), call.n_parts * n_heads):
        part = part_of(call.n_parts - 1 - chunk // n_heads, chunk % n_heads, layer, call, batch)
        attend_all(part, parts, pool, batch, s, own)  # the longest come first


@part
def attend_spans(
    worker: Worker,
    call: Call,
    layer: int,
    parts: FamilyParts,
    pool: Pages,
    batch: Batch,
    s: Scratch,
    own: Own,
) -> None:
    """Attention where a few rows see many keys: 512 keys at a time, then the chunks together."""
    n_heads = call.n_kv_heads
    n_units = call.n_parts * n_heads
    for chunk in chunks(worker, region(layer, ATTEND), n_units * call.n_spans):
        span, unit = chunk // n_units, chunk % n_units
        part = part_of(unit // n_heads, unit % n_heads, layer, call, batch)
        last = batch.position[part.first + part.n_rows - 1]
        if last >= span * CHUNK and span >= first_chunk(parts.windows, part, batch):
            attend_chunk(part, span * CHUNK, parts, pool, batch, s, own)
            keep_chunk(part, span, call.n_heads, own.chunk, s.spread)
    for chunk in chunks(worker, region(layer, MERGE), call.n_rows * n_heads):
        row = chunk // n_heads
        part = QueryRows(
            row, 1, batch.sequence[row], layer, chunk % n_heads, call.n_heads // n_heads
        )
        merge_chunks(part, batch.position[row] // CHUNK + 1, call.n_heads, parts, batch, s, own)


@part
def add_sublayer(
    worker: Worker, at: int, call: Call, w: Any, bias: Any, after: Any, layer: int, eps: float,
    rows: Any, s: Scratch, own: Own,
) -> None:  # fmt: skip
    """x += w · rows, or the norm of that."""
    if after is None:
        add_product(worker, at, call, w, bias, layer, rows, s.x, own.out)
    else:
        put_product(worker, at, call, w, bias, layer, OUT_BLOCKS, rows, 0, s.added, own.out)
        add_normed(worker, at + 1, call, after, layer, eps, s.added, s.x, own.row)


@part
def add_normed(
    worker: Worker, at: int, call: Call, weight: Array, layer: int, eps: float, y: Array, x: Array,
    row: Array,
) -> None:  # fmt: skip
    """x += norm(y)."""
    for r in rows_of(worker, at, call):
        norm_row(y, r, weight, layer, eps, row)
        for k in range(x.shape[1]):
            x[r, k] += row[k]


@part
def gate_and_up(
    worker: Worker, at: int, call: Call, layer: int, model: ModelArrays, s: Scratch, own: Own,
    act: Any, plain: Any,
) -> None:  # fmt: skip
    """The MLP's hidden activations: silu(gate) · up or what the family has there, 32 at a time."""
    count = 4 if plain is None else 2  # 32 gates with their 32 ups, or these alone
    n_units = n_blocks(model.gate_up) // count
    for chunk in chunks(worker, at, n_units * call.n_bands):
        unit, band = chunk % n_units, chunk // n_units
        for tile in range(band * TILES, min(call.n_tiles, (band + 1) * TILES)):
            n = min(TILE, call.n_rows - tile * TILE)
            matmul(model.gate_up, layer, count * unit, count, s.normed, call.normed + tile,
                   n, own.out, 0, 0)  # fmt: skip
            add_bias(model.parts.up_bias, layer, count * BLOCK * unit, own.out, n,
                     count * BLOCK)  # fmt: skip
            for lane in range(n):
                hidden_row(act, plain, model.parts.kind, layer, own.out, lane, own.row)
                put(s.hidden, tile, lane, GROUP * unit, own.row, 0, GROUP)


@apart
def logits(
    worker: Worker, call: Call, model: ModelArrays, batch: Batch, s: Scratch, own: Own
) -> None:
    """Logits of the rows that want them; those rows are gathered into tiles of their own."""
    at = region(model.n_layers, 0)
    n_tiles = (call.n_logits + TILE - 1) // TILE
    for tile in chunks(worker, at, n_tiles):
        for i in range(tile * TILE, min(call.n_logits, (tile + 1) * TILE)):
            norm_one(s.x, batch.logit_rows[i], model.final_norm, model.parts.final_bias, 0,
                     model.norm_eps, own.row)  # fmt: skip
            put(s.normed, tile, i % TILE, 0, own.row, 0, s.x.shape[1])
    n_blocks = s.logits.shape[1] // BLOCK
    for chunk in chunks(worker, at + 1, (n_blocks + HEAD_BLOCKS - 1) // HEAD_BLOCKS):
        first = chunk * HEAD_BLOCKS
        count = min(HEAD_BLOCKS, n_blocks - first)
        for tile in range(n_tiles):
            n = min(TILE, call.n_logits - tile * TILE)
            matmul(model.head, 0, first, count, s.normed, tile, n, s.logits, tile * TILE,
                   first * BLOCK)  # fmt: skip
            for row in range(tile * TILE, tile * TILE + n):
                finish_logits(model.parts.head_bias, model.parts.logit_cap, s.logits, row,
                              first * BLOCK, count * BLOCK)  # fmt: skip


@part
def part_of(part: int, head: int, layer: int, call: Call, batch: Batch) -> QueryRows:
    """A part of the batch, with one of the key heads."""
    first = batch.part_first[part]
    return QueryRows(
        first, batch.part_rows[part], batch.sequence[first], layer, head,
        call.n_heads // call.n_kv_heads,
    )  # fmt: skip
