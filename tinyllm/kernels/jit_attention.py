"""The KV cache and attention as plain loops: what `simd_attention.py` does, readable line by line.

Shapes in `layout.py`: a page of the cache, the `Keys` that a query reads, the `Softmax` it fills.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyllm.kernels.build import kernel
from tinyllm.kernels.layout import KEYS, NOTHING_YET, PAGE, VALUES, AttendScratch, Keys, Softmax
from tinyllm.kernels.numbers import exp, float_to_half, half_to_float

Array = NDArray[Any]


@kernel
def _stored(cells: Array, page: int, layer: int, head: int, kind: int, i: int) -> np.float32:
    """A cached number as float32."""
    value = cells[page, layer, head, kind, i]
    if cells.itemsize == 2:
        return half_to_float(int(value))
    return np.float32(value)


@kernel
def _keep(
    cells: Array, page: int, layer: int, head: int, kind: int, i: int, value: np.float32
) -> None:
    if cells.itemsize == 2:
        cells[page, layer, head, kind, i] = float_to_half(value)
    else:
        cells[page, layer, head, kind, i] = value


@kernel
def append_key(
    cells: Array, page: int, layer: int, head: int, slot: int, k: Array, lane: int, half: Array
) -> None:
    """Token `slot` of a page: its (rotated) key, k[lane, :head_dim]. `half` is scratch."""
    for d in range(cells.shape[4] // PAGE):
        _keep(cells, page, layer, head, KEYS, d * PAGE + slot, k[lane, d])


@kernel
def append_value(
    cells: Array, page: int, layer: int, head: int, slot: int, v: Array, lane: int
) -> None:
    """Token `slot` of a page: its value, v[lane, :head_dim]."""
    head_dim = cells.shape[4] // PAGE
    for d in range(head_dim):
        _keep(cells, page, layer, head, VALUES, slot * head_dim + d, v[lane, d])


@kernel
def attend(
    q: Array, q_row: int, n: int, visible: Array, keys: Keys, s: AttendScratch, state: Softmax,
    first: int, hidden: Any = None, cap: Any = None,
) -> None:  # fmt: skip
    """Softmax-weighted values of one chunk of keys, for n queries that share a key head.

    Online softmax (https://arxiv.org/abs/1805.02867), page by page. Nothing of size T × T is ever
    made.

    Args:
        q: (rows, head_dim); rows q_row … q_row + n, already scaled by 1 / sqrt(head_dim).
        visible: query i sees the keys below visible[first + i].
        s: scratch.
        state: out, in rows first … first + n.
        hidden: query i doesn't see the first hidden[first + i] keys, or None.
        cap: scores become cap · tanh(score / cap), or None.
    """
    head_dim = q.shape[1]
    for i in range(n):
        best, weight_sum = NOTHING_YET, np.float32(0.0)
        for d in range(head_dim):
            state.mixed[first + i, d] = 0.0
        for page_start in range(keys.start, keys.stop, PAGE):
            page = keys.pages[keys.sequence, page_start // PAGE]
            seen = min(PAGE, visible[first + i] - page_start)
            new_best = best
            unseen = 0
            if hidden is not None:
                unseen = max(0, hidden[first + i] - page_start)
            for t in range(unseen, seen):
                score = np.float32(0.0)
                for d in range(head_dim):
                    key = d * PAGE + t
                    score += q[q_row + i, d] * _stored(
                        keys.cells, page, keys.layer, keys.head, KEYS, key
                    )
                if cap is not None:
                    score = np.float32(cap * math.tanh(score / cap))
                s.scores[i, t] = score
                if score > new_best:
                    new_best = score
            shrink = exp(best - new_best)
            weight_sum *= shrink
            for d in range(head_dim):
                state.mixed[first + i, d] *= shrink
            for t in range(unseen, seen):
                weight = exp(s.scores[i, t] - new_best)
                weight_sum += weight
                for d in range(head_dim):
                    value = t * head_dim + d
                    state.mixed[first + i, d] += weight * _stored(
                        keys.cells, page, keys.layer, keys.head, VALUES, value
                    )
            best = new_best
        state.top[first + i] = best
        state.total[first + i] = weight_sum


@kernel
def merge(state: Softmax, row: int, later: Softmax, later_row: int) -> None:
    """Fold a query's softmax over a later chunk into that over the earlier ones."""
    top, top2 = state.top[row], later.top[later_row]
    best = top if top > top2 else top2
    old, new = exp(top - best), exp(top2 - best)
    state.total[row] = state.total[row] * old + later.total[later_row] * new
    for d in range(state.mixed.shape[1]):
        state.mixed[row, d] = state.mixed[row, d] * old + later.mixed[later_row, d] * new
    state.top[row] = best
