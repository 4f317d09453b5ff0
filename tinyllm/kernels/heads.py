"""One head of queries, keys or values of some rows: normed, turned, scaled, put in its place."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyllm.kernels.arrays import Batch, Call, ModelArrays, Own, Pages, Scratch
from tinyllm.kernels.build import part
from tinyllm.kernels.dispatch import append_key, append_value, rope
from tinyllm.kernels.layout import PAGE
from tinyllm.kernels.part_kernels import clipped, head_normed
from tinyllm.kernels.threads import Worker, chunks

Array = NDArray[Any]


@part
def place_head(
    unit: int, call: Call, layer: int, first: int, n: int, model: ModelArrays, pool: Pages,
    batch: Batch, s: Scratch, own: Own,
) -> None:  # fmt: skip
    """Head `unit` of rows first … first + n, own.out[:n], to where it belongs.

    Heads come in the order of `qkv`: all queries, all keys, all values. Queries go to q, turned and
    scaled for the dot product; keys, turned, and values go to the cache.
    """
    group, parts = call.n_heads // call.n_kv_heads, model.parts
    for lane in range(n):
        r = first + lane
        position = batch.position[r]
        page, slot = batch.pages[batch.sequence[r], position // PAGE], position % PAGE
        angles = table_row(parts.turns, layer, position)
        if unit < call.n_heads:
            to = (unit // group * s.x.shape[0] + r) * group + unit % group
            scale = query_scale(parts.temperature, position, model.score_scale)
            place_query(unit, layer, lane, angles, scale, to, model, parts.norm_last, s, own)
        elif unit < call.n_heads + call.n_kv_heads:
            head = unit - call.n_heads
            turn_key(head, layer, lane, angles, model, parts.norm_last, own)
            append_key(pool.cells, page, layer, head, slot, own.out, lane, own.half)
        else:
            head = unit - call.n_heads - call.n_kv_heads
            clipped(parts.clip, own.out, lane, call.head_dim)
            append_value(pool.cells, page, layer, head, slot, own.out, lane)


@part
def take_head(
    unit: int, call: Call, layer: int, first: int, n: int, model: ModelArrays, pool: Pages,
    batch: Batch, s: Scratch, own: Own, whole: Any,
) -> None:  # fmt: skip
    """Place a head; or keep it, if it waits for the others of its row to be normed with them."""
    if whole is None:
        place_head(unit, call, layer, first, n, model, pool, batch, s, own)
    elif unit < call.n_heads + call.n_kv_heads:
        for lane in range(n):
            for d in range(call.head_dim):
                s.whole[first + lane, unit * call.head_dim + d] = own.out[lane, d]
    else:
        place_head(unit, call, layer, first, n, model, pool, batch, s, own)


@part
def place_normed(
    worker: Worker, at: int, call: Call, layer: int, model: ModelArrays, pool: Pages,
    batch: Batch, s: Scratch, own: Own, whole: Any,
) -> None:  # fmt: skip
    """Norm all queries of a row together, and all keys; then place them."""
    if whole is not None:
        for r in chunks(worker, at, call.n_rows):
            norm_run(model.parts.q_whole, layer, s.whole, r, 0, model.norm_eps)
            norm_run(model.parts.k_whole, layer, s.whole, r, call.n_heads, model.norm_eps)
            for unit in range(call.n_heads + call.n_kv_heads):
                for d in range(call.head_dim):
                    own.out[0, d] = s.whole[r, unit * call.head_dim + d]
                place_head(unit, call, layer, r, 1, model, pool, batch, s, own)


@part
def norm_run(weight: Any, layer: int, x: Array, r: int, first: int, eps: float) -> None:
    """RMS norm of neighbouring heads of x[r], from `first` on; weight (layers, heads, head_dim)."""
    n_heads, width = weight.shape[1], weight.shape[2]
    total = np.float32(0.0)
    for head in range(n_heads):
        of_head = np.float32(0.0)  # short sums keep float32's rounding small
        for d in range(width):
            value = x[r, (first + head) * width + d]
            of_head += value * value
        total += of_head
    scale = np.float32(1.0 / math.sqrt(total / (n_heads * width) + eps))
    for head in range(n_heads):
        for d in range(width):
            at = (first + head) * width + d
            x[r, at] = x[r, at] * scale * weight[layer, head, d]


@part
def table_row(turns: Any, layer: int, position: int) -> int:
    """The row of cos and sin for a position: layers may have tables of their own, or not turn."""
    if turns is None:
        return position
    at: int = turns[layer, 0] + turns[layer, 1] * position
    return at


@part
def query_scale(temperature: Any, position: int, scale: float) -> float:
    """What a query's scores are multiplied by."""
    if temperature is None:
        return scale
    grown: float = scale * temperature[position]
    return grown


@part
def place_query(
    head: int, layer: int, lane: int, angles: int, scale: float, to: int, model: ModelArrays,
    norm_last: Any, s: Scratch, own: Own,
) -> None:  # fmt: skip
    """s.q[to] = a query, normed where the family does that, turned and scaled."""
    parts, eps = model.parts, model.norm_eps
    if norm_last is None:
        head_normed(parts.q_norm, parts.q_norm_bias, layer, head, eps, own.out, lane)
        clipped(parts.clip, own.out, lane, s.q.shape[1])
        rope(own.out, lane, model.cos, model.sin, angles, scale, s.q, to)
    else:
        rope(own.out, lane, model.cos, model.sin, angles, 1.0, own.out, lane)
        head_normed(parts.q_norm, parts.q_norm_bias, layer, head, eps, own.out, lane)
        for d in range(s.q.shape[1]):
            s.q[to, d] = own.out[lane, d] * np.float32(scale)


@part
def turn_key(
    head: int, layer: int, lane: int, angles: int, model: ModelArrays, norm_last: Any, own: Own
) -> None:
    """own.out[lane] = a key, normed where the family does that, and turned."""
    parts, eps = model.parts, model.norm_eps
    if norm_last is None:
        head_normed(parts.k_norm, parts.k_norm_bias, layer, head, eps, own.out, lane)
        clipped(parts.clip, own.out, lane, own.half.shape[0])
    rope(own.out, lane, model.cos, model.sin, angles, 1.0, own.out, lane)
    if norm_last is not None:
        head_normed(parts.k_norm, parts.k_norm_bias, layer, head, eps, own.out, lane)
