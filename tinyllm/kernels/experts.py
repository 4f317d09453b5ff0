"""A layer's MLP where it is a router and experts, of which each row (token) takes a few.

    norm · router · choice · gathering · gate, up, swiglu · down, weighted, + residual

Rows are gathered expert by expert, in tiles of 8 as for any matrix product. So a chosen expert's
weights are read once a call, for all of its rows, and those of an expert that nobody chose never. A
lone row has nothing to gather: every thread norms it and chooses for itself, and three regions fall
away.

A row's own scores choose its experts; of equal scores the lower number wins. What they give is
added to the row in the order of their numbers, whoever else goes to the same expert. So the bits
are those of the row alone.

A token costs what reading its experts' weights from memory costs. Eight of 64, 66 MB a token, were
decoded as quick as a dense model is read from memory, a byte for a byte (13 GB/s and 12). But eight
change from token to token, and all 530 MB don't stay in a last cache of 260 MB, where a dense model
of 66 MB does: that one takes less than half of the time. With the same eight each time, the same.

How many chunks a region has follows from how many rows there are, never from what they chose: a
thread that was held up may come upon the next layer's choice, and must see that all is done here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyllm.kernels.arrays import OUT_BLOCKS, Call, ModelArrays, Own, Scratch
from tinyllm.kernels.build import part
from tinyllm.kernels.dispatch import matmul, n_blocks, put
from tinyllm.kernels.expert_arrays import ExpertArrays, ExpertScratch, Groups
from tinyllm.kernels.layout import BLOCK, GROUP, TILE
from tinyllm.kernels.numbers import exp
from tinyllm.kernels.part_kernels import add_bias
from tinyllm.kernels.products import put_product, rows_of
from tinyllm.kernels.rows import hidden_row, norm_one
from tinyllm.kernels.threads import Worker, chunks

Array = NDArray[Any]

ROUTER_BLOCKS = 2  # blocks of 16 experts in a chunk of the router
# Regions by number, counted from the first.
NORM, ROUTE, CHOOSE, GATHER, GATE_UP, DOWN = range(6)


@part
def add_experts(
    worker: Worker, at: int, call: Call, layer: int, model: ModelArrays, e: ExpertArrays,
    s: Scratch, to: ExpertScratch, own: Own,
) -> None:  # fmt: skip
    """x += Σ weight · expert(norm(x)), over the experts that each row chose."""
    slot, lone = e.slot[layer], call.n_rows == 1
    private = to.gathered.values.shape[0] - worker.n_threads + worker.thread
    groups = take_groups(worker.thread, to.groups)
    norm_for_router(worker, at + NORM, call, layer, model, s, to, own)
    if lone:  # what its experts read
        put(to.gathered, private, 0, 0, own.row, 0, s.x.shape[1])
    put_product(worker, at + ROUTE, call, e.router, e.router_bias, slot, ROUTER_BLOCKS, to.normed,
                call.normed, to.scores, own.out)  # fmt: skip
    if lone:
        choose(to.scores, 0, e, groups.chosen, groups.weight)
        n_ranks, n_tiles = group(1, e, groups.chosen, groups.weight, groups)
    else:
        for r in rows_of(worker, at + CHOOSE, call):
            choose(to.scores, r, e, to.chosen, to.weight)
        n_ranks, n_tiles = group(call.n_rows, e, to.chosen, to.weight, groups)
        gather(worker, at + GATHER, call, layer, n_tiles, model, e, groups, s, to, own)
    hidden_of_experts(worker, at + GATE_UP, call, layer, n_ranks, private if lone else -1, model, e,
                      groups, to, own)  # fmt: skip
    add_weighted(worker, at + DOWN, slot, n_tiles, e, groups, s, to, own)


@part
def take_groups(thread: int, of_all: Groups) -> Groups:
    """One thread's own."""
    return Groups(
        of_all.chosen[thread],
        of_all.weight[thread],
        of_all.begin[thread],
        of_all.row[thread],
        of_all.share[thread],
        of_all.expert[thread],
        of_all.first[thread],
        of_all.size[thread],
        of_all.tiles[thread],
    )


@part
def norm_for_router(
    worker: Worker, at: int, call: Call, layer: int, model: ModelArrays, s: Scratch,
    to: ExpertScratch, own: Own,
) -> None:  # fmt: skip
    """The norm of all rows in float32; few rows are no region, but each thread's own work."""
    if call.alone:
        for r in range(call.n_rows):
            norm_one(s.x, r, model.mlp_norm, model.parts.mlp_bias, layer, model.norm_eps, own.row)
            put(to.normed, call.normed, r, 0, own.row, 0, s.x.shape[1])
    else:
        for r in rows_of(worker, at, call):
            norm_one(s.x, r, model.mlp_norm, model.parts.mlp_bias, layer, model.norm_eps, own.row)
            put(to.normed, r // TILE, r % TILE, 0, own.row, 0, s.x.shape[1])


@part
def choose(scores: Array, r: int, e: ExpertArrays, chosen: Array, weight: Array) -> None:
    """Row r's k best experts, the best first, and their weights.

    The softmax over all scores, or over the chosen ones'. Of equal scores the lower number is
    first; scores that are no numbers choose some expert, too.
    """
    for i in range(e.n):
        at = min(i, e.k)  # so many are listed
        while at > 0 and scores[r, i] > scores[r, chosen[r, at - 1]]:
            if at < e.k:
                chosen[r, at] = chosen[r, at - 1]
            at -= 1
        if at < e.k:
            chosen[r, at] = i
    top = scores[r, chosen[r, 0]]
    total = np.float32(0.0)
    for j in range(e.k):
        weight[r, j] = exp(scores[r, chosen[r, j]] - top)
        total += weight[r, j]
    if not e.normalised:
        total = np.float32(0.0)
        for i in range(e.n):
            total += exp(scores[r, i] - top)
    for j in range(e.k):
        weight[r, j] /= total


@part
def group(
    n_rows: int, e: ExpertArrays, chosen: Array, weight: Array, groups: Groups
) -> tuple[int, int]:
    """Sort pairs by expert, and cut each expert's into tiles: how many experts, and tiles.

    `chosen` may be changing under a thread that was held up: it then makes groups that nobody
    reads, but must not write beyond them.
    """
    for i in range(e.n):
        groups.begin[i] = 0
    for r in range(n_rows):
        for j in range(e.k):
            groups.begin[chosen[r, j]] += 1
    n_ranks = n_tiles = start = 0
    for i in range(e.n):
        count = groups.begin[i]
        groups.begin[i] = start
        if count > 0:
            groups.tiles[n_ranks] = n_tiles
            n_ranks += 1
        for first in range(0, count, TILE):
            groups.expert[n_tiles] = i
            groups.first[n_tiles] = start + first
            groups.size[n_tiles] = min(TILE, count - first)
            n_tiles += 1
        start += count
    groups.tiles[n_ranks] = n_tiles
    for r in range(n_rows):
        for j in range(e.k):
            expert = chosen[r, j]
            pair = groups.begin[expert]
            if pair < start:
                groups.row[pair] = r
                groups.share[pair] = weight[r, j]
                groups.begin[expert] += 1
    return n_ranks, n_tiles


@part
def gather(
    worker: Worker, at: int, call: Call, layer: int, n_tiles: int, model: ModelArrays,
    e: ExpertArrays, groups: Groups, s: Scratch, to: ExpertScratch, own: Own,
) -> None:  # fmt: skip
    """The norm of each pair's row, as activations, expert by expert."""
    n_pairs = call.n_rows * e.k
    for tile in chunks(worker, at, n_pairs // TILE + min(e.n, n_pairs)):
        if tile < n_tiles:
            for lane in range(groups.size[tile]):
                row = groups.row[groups.first[tile] + lane]
                norm_one(s.x, row, model.mlp_norm, model.parts.mlp_bias, layer, model.norm_eps,
                         own.row)  # fmt: skip
                put(to.gathered, tile, lane, 0, own.row, 0, s.x.shape[1])


@part
def hidden_of_experts(
    worker: Worker, at: int, call: Call, layer: int, n_ranks: int, lone_tile: int,
    model: ModelArrays, e: ExpertArrays, groups: Groups, to: ExpertScratch, own: Own,
) -> None:  # fmt: skip
    """act(gate) · up of each pair; a lone row's experts all read the same tile, if there is one."""
    parts = model.parts
    n_units = n_blocks(e.gate_up) // 4  # 32 gates with their 32 ups
    for chunk in chunks(worker, at, min(e.n, call.n_rows * e.k) * n_units):
        rank, unit = chunk // n_units, chunk % n_units
        if rank < n_ranks:
            for tile in range(groups.tiles[rank], groups.tiles[rank + 1]):
                matrix = e.slot[layer] * e.n + groups.expert[tile]
                n = groups.size[tile]
                matmul(e.gate_up, matrix, 4 * unit, 4, to.gathered,
                       tile if lone_tile < 0 else lone_tile, n, own.out, 0, 0)  # fmt: skip
                add_bias(e.up_bias, matrix, 4 * BLOCK * unit, own.out, n, 4 * BLOCK)
                for lane in range(n):
                    hidden_row(parts.act, parts.plain, parts.kind, layer, own.out, lane, own.row)
                    put(to.hidden, tile, lane, GROUP * unit, own.row, 0, GROUP)


@part
def add_weighted(
    worker: Worker, at: int, slot: int, n_tiles: int, e: ExpertArrays, groups: Groups, s: Scratch,
    to: ExpertScratch, own: Own,
) -> None:  # fmt: skip
    """x[row] += weight · down · hidden of each pair, by expert; a chunk is some of the outputs."""
    of_matrix = n_blocks(e.down)
    for chunk in chunks(worker, at, (of_matrix + OUT_BLOCKS - 1) // OUT_BLOCKS):
        first = chunk * OUT_BLOCKS
        count = min(OUT_BLOCKS, of_matrix - first)
        for tile in range(n_tiles):
            matrix, n = slot * e.n + groups.expert[tile], groups.size[tile]
            matmul(e.down, matrix, first, count, to.hidden, tile, n, own.out, 0, 0)
            add_bias(e.down_bias, matrix, first * BLOCK, own.out, n, count * BLOCK)
            for lane in range(n):
                pair = groups.first[tile] + lane
                row, share = groups.row[pair], groups.share[pair]
                for k in range(count * BLOCK):
                    s.x[row, first * BLOCK + k] += share * own.out[lane, k]
