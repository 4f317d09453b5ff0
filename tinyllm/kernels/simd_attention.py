"""The KV cache and attention of `jit_attention.py` again, in vectors; same names and meaning.

A bundle is n queries times `width` vectors of keys (or of a head's elements): as many sums as the
registers hold. However a bundle is cut, each sum runs over the same numbers in the same order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyllm.kernels.build import kernel, part, uncached
from tinyllm.kernels.bundles import fma_each, load_each, load_run, mul_each, store_each, zeros
from tinyllm.kernels.layout import (
    BLOCK,
    KEYS,
    NOTHING_YET,
    PAGE,
    TILE,
    AttendScratch,
    Keys,
    Softmax,
)
from tinyllm.kernels.processor import KIND
from tinyllm.kernels.simd import WHOLE_TILES, exp, exp_one
from tinyllm.kernels.vectors import (
    add,
    at,
    div,
    fma,
    horizontal_max,
    horizontal_sum,
    keep_first,
    load,
    maximum,
    mul,
    prefetch,
    splat,
    store,
    sub,
)

Array = NDArray[Any]


@part
def head_begin(cells: Array, page: int, layer: int, head: int) -> int:
    """Where a head's keys of a page begin, in elements; its values lie `size` behind them."""
    _, n_layers, n_heads, _, size = cells.shape
    begin: int = ((page * n_layers + layer) * n_heads + head) * 2 * size
    return begin


@kernel
def append_key(
    cells: Array, page: int, layer: int, head: int, slot: int, k: Array, lane: int, half: Array
) -> None:
    """As `jit_attention.append_key`; `half`, (head_dim,) of the cache's dtype, takes the key."""
    head_dim = cells.shape[4] // PAGE
    for d in range(0, head_dim, BLOCK):
        store(half, d, load(k, lane * k.shape[1] + d))
    for d in range(head_dim):
        cells[page, layer, head, KEYS, d * PAGE + slot] = half[d]


@kernel
def append_value(
    cells: Array, page: int, layer: int, head: int, slot: int, v: Array, lane: int
) -> None:
    """As `jit_attention.append_value`."""
    size = cells.shape[4]
    head_dim = size // PAGE
    begin = head_begin(cells, page, layer, head) + size + slot * head_dim
    for d in range(0, head_dim, BLOCK):
        store(cells, begin + d, load(v, lane * v.shape[1] + d))


# One page of keys and values for a bundle of n queries, named by pointers: to the first query, to
# the page's keys and values, to the bundle's scores (n, 64) and mixed values (n, head_dim).
#
# Meanwhile the memory that comes next is asked for: the page's values while its keys are scored,
# the next page's keys (`ahead`) while the values are mixed. A page is too short for the processor
# to see the stream by itself.


def _make_score(n: int, width: int) -> Callable[..., None]:
    size = n * width

    @part
    def score(q: Any, keys: Any, values: Any, scores: Any, head_dim: int, n_keys: int) -> None:
        for t in range(0, n_keys, width * BLOCK):
            sums = zeros(size)
            for d in range(head_dim):
                for line in range(0, width * BLOCK, 2 * BLOCK):
                    prefetch(values, t * head_dim + d * width * BLOCK + line)
                sums = fma_each(sums, load_run(width, keys, d * PAGE + t), q, d, head_dim)
            store_each(sums, width, scores, t, PAGE)

    return score


def _make_mix(n: int, width: int) -> Callable[..., None]:
    @part
    def mix(
        scores: Any, shrink: Array, values: Any, ahead: Any, mixed: Any, head_dim: int, n_keys: int
    ) -> None:
        for d in range(0, head_dim, width * BLOCK):
            sums = mul_each(load_each(n, width, mixed, d, head_dim), width, shrink, 0, 1)
            for t in range(n_keys):
                v = t * head_dim + d
                for line in range(0, width * BLOCK, 2 * BLOCK):
                    prefetch(ahead, v + line)
                sums = fma_each(sums, load_run(width, values, v), scores, t, PAGE)
            store_each(sums, width, mixed, d, head_dim)

    return mix


def width_of(n: int) -> int:
    """Vectors side by side, for each of n queries, whose sums the registers hold."""
    return max(1, min(4, KIND.sums // n))


@part
def cap_scores(cap: float, scores: Array, row: int) -> None:
    """cap · tanh(score / cap) of a page's scores; tanh(x) = 1 - 2 / (e²ˣ + 1)."""
    one, two = splat(np.float32(1.0)), splat(np.float32(2.0))
    slope, height = splat(np.float32(2.0 / cap)), splat(np.float32(cap))
    for t in range(0, PAGE, BLOCK):
        power = exp(mul(load(scores, row + t), slope))
        store(scores, row + t, mul(height, sub(one, div(two, add(power, one)))))


def _make_attend(n: int) -> Callable[..., None]:
    width = width_of(n)
    score, mix = _make_score(n, width), _make_mix(n, width)

    @part
    def attend_rows(
        q: Array, q_row: int, visible: Array, keys: Keys, s: AttendScratch, state: Softmax,
        first: int, hidden: Any, cap: Any,
    ) -> None:  # fmt: skip
        cells, mixed = keys.cells, state.mixed
        size = cells.shape[4]
        head_dim = size // PAGE
        nothing = splat(np.float32(-np.inf))
        store_each(zeros(n), 1, s.sums, 0, BLOCK)
        for d in range(0, head_dim, BLOCK):
            store_each(zeros(n), 1, mixed, first * head_dim + d, head_dim)
        for i in range(n):
            state.top[first + i] = NOTHING_YET

        for page_start in range(keys.start, keys.stop, PAGE):
            page = keys.pages[keys.sequence, page_start // PAGE]
            begin = head_begin(cells, page, keys.layer, keys.head)
            values = at(cells, begin + size)
            n_keys = min(PAGE, keys.stop - page_start)
            following = page
            if page_start + PAGE < keys.stop:
                following = keys.pages[keys.sequence, page_start // PAGE + 1]
            ahead = at(cells, head_begin(cells, following, keys.layer, keys.head))

            score(
                at(q, q_row * head_dim), at(cells, begin), values, at(s.scores, 0), head_dim,
                n_keys,
            )  # fmt: skip

            # Scores → weights, row by row; masked and never-written keys become exp(-inf) = 0.
            for i in range(n):
                seen = visible[first + i] - page_start
                row = i * PAGE
                if cap is not None:
                    cap_scores(cap, s.scores, row)
                s0 = keep_first(load(s.scores, row), seen, nothing)
                s1 = keep_first(load(s.scores, row + 16), seen - 16, nothing)
                s2 = keep_first(load(s.scores, row + 32), seen - 32, nothing)
                s3 = keep_first(load(s.scores, row + 48), seen - 48, nothing)
                if hidden is not None:
                    unseen = hidden[first + i] - page_start
                    s0 = keep_first(nothing, unseen, s0)
                    s1 = keep_first(nothing, unseen - 16, s1)
                    s2 = keep_first(nothing, unseen - 32, s2)
                    s3 = keep_first(nothing, unseen - 48, s3)
                best = horizontal_max(maximum(maximum(s0, s1), maximum(s2, s3)))
                shrink = np.float32(1.0)  # e⁰, exactly
                if best > state.top[first + i]:
                    shrink = exp_one(state.top[first + i] - best)
                else:
                    best = state.top[first + i]
                highest = splat(np.float32(best))
                p0, p1 = exp(sub(s0, highest)), exp(sub(s1, highest))
                p2, p3 = exp(sub(s2, highest)), exp(sub(s3, highest))
                store(s.scores, row, p0)
                store(s.scores, row + 16, p1)
                store(s.scores, row + 32, p2)
                store(s.scores, row + 48, p3)
                sums = add(add(p0, p1), add(p2, p3))
                store(s.sums, i * BLOCK, fma(load(s.sums, i * BLOCK), splat(shrink), sums))
                s.shrink[i] = shrink
                state.top[first + i] = best

            mix(
                at(s.scores, 0), s.shrink, values, ahead, at(mixed, first * head_dim), head_dim,
                n_keys,
            )  # fmt: skip

        for i in range(n):
            state.total[first + i] = horizontal_sum(load(s.sums, i * BLOCK))

    return attend_rows


WIDTH = width_of(4)  # vectors of a head's elements that few queries take at once
_attend_3, _attend_4, _attend_8 = (_make_attend(n) for n in (3, 4, TILE))


@uncached
def attend(
    q: Array, q_row: int, n: int, visible: Array, keys: Keys, s: AttendScratch, state: Softmax,
    first: int, hidden: Any = None, cap: Any = None,
) -> None:  # fmt: skip
    """As `jit_attention.attend`; it computes whole bundles, so all rows need room for 8 more."""
    few = state.mixed.shape[1] % (WIDTH * BLOCK) == 0
    if few and n <= 3:
        _attend_3(q, q_row, visible, keys, s, state, first, hidden, cap)
    elif few and n <= 4:
        _attend_4(q, q_row, visible, keys, s, state, first, hidden, cap)
    elif WHOLE_TILES:
        _attend_8(q, q_row, visible, keys, s, state, first, hidden, cap)
    else:
        _attend_4(q, q_row, visible, keys, s, state, first, hidden, cap)
        _attend_4(q, q_row + 4, visible, keys, s, state, first + 4, hidden, cap)


@kernel
def merge(state: Softmax, row: int, later: Softmax, later_row: int) -> None:
    """As `jit_attention.merge`."""
    mixed, head_dim = state.mixed, state.mixed.shape[1]
    best = max(state.top[row], later.top[later_row])
    old, new = exp_one(state.top[row] - best), exp_one(later.top[later_row] - best)
    state.total[row] = state.total[row] * old + later.total[later_row] * new
    for d in range(0, head_dim, BLOCK):
        before = mul(load(mixed, row * head_dim + d), splat(old))
        after = load(later.mixed, later_row * head_dim + d)
        store(mixed, row * head_dim + d, fma(after, splat(new), before))
    state.top[row] = best
