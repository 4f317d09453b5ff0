"""sampler.py's arithmetic over one row of logits, compiled.

The definitions are in `tinyllm/sampler.py`; tests hold these functions to them. Here a row of
49,152 logits takes tens of microseconds where numpy's temporaries, sorts and sums take
milliseconds, which matters once a step of sixteen streams takes ten.

Each row is worked on by itself and in a fixed order, so the bits don't depend on what else is in
a batch. Everything is summed in float64. The GIL is released.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

# A fixed set of liberties: sums may be split into lanes (always the same way, since the code is
# compiled once), but NaN and infinities mean what they say.
_LIBERTIES = {"reassoc", "contract", "nsz", "arcp"}

BLOCK = 1024  # logits worked on at a time: their float64 values stay in the nearest cache
BUCKETS = 2048  # of distance to the best logit, see `_best_until`
PER_NAT = 32.0  # buckets a nat: the last one starts 64 nats down, at a share of 1e-28


_compiled = njit(nogil=True, cache=True, fastmath=_LIBERTIES)
_compiled_to_the_letter = njit(nogil=True, cache=True, fastmath={"contract"})


@_compiled_to_the_letter
def _exp_block(
    d: NDArray[np.float64], out: NDArray[np.float64], power: NDArray[np.int64], n: int
) -> None:
    """out[:n] = exp(d[:n]) for d <= 0, within 1 ulp or two; 0 below -700.

    exp(d) = 2^k · exp(r) with |r| <= ln 2 / 2, where the Taylor series is short, and 2^k is made
    of its exponent bits (Cody and Waite 1980). Written so that LLVM turns each loop into vectors.
    `power` is scratch.
    """
    for i in range(n):
        x = -700.0 if d[i] < -700.0 else d[i]  # NaN passes
        k = np.floor(x * 1.4426950408889634 + 0.5)
        # ln 2 in two parts, so that k · (the first) is exact
        r = (x - k * 6.93147180369123816490e-01) - k * 1.90821492927058770002e-10
        p = 1.0 / 6227020800.0
        p = p * r + 1.0 / 479001600.0
        p = p * r + 1.0 / 39916800.0
        p = p * r + 1.0 / 3628800.0
        p = p * r + 1.0 / 362880.0
        p = p * r + 1.0 / 40320.0
        p = p * r + 1.0 / 5040.0
        p = p * r + 1.0 / 720.0
        p = p * r + 1.0 / 120.0
        p = p * r + 1.0 / 24.0
        p = p * r + 1.0 / 6.0
        p = p * r + 0.5
        p = p * r + 1.0
        p = p * r + 1.0
        out[i] = p
        power[i] = (np.int64(k) + 1023) << 52
    scale = power.view(np.float64)
    for i in range(n):
        out[i] = 0.0 if d[i] < -700.0 else out[i] * scale[i]


@_compiled
def exp_row(
    row: NDArray[np.float32], top: np.float32, out: NDArray[np.float64]
) -> NDArray[np.float64]:
    """out = exp(row - top); returns the sum of each block of `BLOCK`, (ceil(V / BLOCK),)."""
    n_blocks = -(-len(row) // BLOCK)
    sums = np.empty(n_blocks, np.float64)
    d = np.empty(BLOCK, np.float64)
    power = np.empty(BLOCK, np.int64)
    for b in range(n_blocks):
        start = b * BLOCK
        n = min(BLOCK, len(row) - start)
        for i in range(n):
            d[i] = np.float64(row[start + i]) - np.float64(top)
        block = out[start : start + n]
        _exp_block(d, block, power, n)
        total = 0.0
        for i in range(n):
            total += block[i]
        sums[b] = total
    return sums


@_compiled
def _near(row: NDArray[np.float32], edge: np.float32, ids: NDArray[np.int64]) -> int:
    """Fill `ids` with the places of the logits from `edge` up; returns how many there are."""
    n = 0
    for i in range(len(row)):
        if row[i] >= edge:
            ids[n] = i
            n += 1
    return n


@_compiled
def kept(
    row: NDArray[np.float32],
    top: np.float32,
    exps: NDArray[np.float64],
    total: float,
    top_k: int,
    top_p: float,
) -> NDArray[np.int64]:
    """The ids that top-k and then top-p leave, ascending. exps = exp(row - top), `total` their sum.

    Nothing as long as the vocabulary is sorted. First all tokens but those near the best are set
    aside, as far as the cut surely lies among the near ones; then these are thrown into buckets
    by their distance to the best. The cut falls into one bucket, and that one alone is sorted.
    """
    ids = np.empty(len(row), np.int64)
    n, mass = 0, 0.0
    for nats in (8.0, 16.0, 64.0, np.inf):
        n = _near(row, np.float32(top - np.float32(nats)), ids)
        mass = 0.0
        for i in ids[:n]:
            mass += exps[i]
        if (n >= top_k) if top_k > 0 else (mass >= top_p * total):
            break
    ids = ids[:n]

    for rule in range(2):  # top-k counts tokens, top-p their probability
        if rule == 0 and not 0 < top_k < len(ids):
            continue
        if rule == 1 and top_p >= 1.0:
            continue
        weights = np.ones(len(ids), np.float64) if rule == 0 else exps[ids]
        goal = np.float64(top_k) if rule == 0 else top_p * (weights.sum() if top_k > 0 else total)
        ids = _best_until(row, top, ids, weights, goal)
    return ids


@_compiled
def _best_until(
    row: NDArray[np.float32],
    top: np.float32,
    ids: NDArray[np.int64],
    weights: NDArray[np.float64],
    goal: float,
) -> NDArray[np.int64]:
    """The likeliest of `ids`, one at least, until their weights reach the goal; ascending."""
    bucket = np.empty(len(ids), np.int64)
    sums = np.zeros(BUCKETS, np.float64)
    for j in range(len(ids)):
        nats = min(np.float64(top) - np.float64(row[ids[j]]), 1e6)
        bucket[j] = min(int(nats * PER_NAT), BUCKETS - 1)
        sums[bucket[j]] += weights[j]
    cut, passed = 0, 0.0
    while cut < BUCKETS - 1 and passed + sums[cut] < goal:
        passed += sums[cut]
        cut += 1
    stays = bucket < cut
    edge = np.flatnonzero(bucket == cut)
    for j in edge[np.argsort(-row[ids[edge]], kind="mergesort")]:  # lower ids first on ties
        if passed >= goal and passed > 0.0:
            break
        stays[j] = True
        passed += weights[j]
    if passed == 0.0:  # a goal of nothing: the best token stays
        for j in range(len(ids)):
            if row[ids[j]] == top:
                stays[j] = True
                break
    return ids[stays]


@_compiled
def draw(
    row: NDArray[np.float32],
    top: np.float32,
    exps: NDArray[np.float64],
    sums: NDArray[np.float64],
    top_k: int,
    top_p: float,
    u: float,
) -> int:
    """The token that `u` in [0, 1) falls on, after top-k and top-p, laid out in id order.

    row: (V,) after mask, penalties, bias and temperature; `top` is its largest, and finite.
    exps, sums: what `exp_row` made of it.
    """
    total = sums.sum()
    passed, last = 0.0, 0
    if 0 < top_k < len(row) or top_p < 1.0:
        ids = kept(row, top, exps, total, top_k, top_p)
        total = exps[ids].sum()
        for i in ids:
            passed += exps[i]
            if exps[i] > 0.0:
                last = i
                if passed > u * total:
                    break
        return last
    # Walk over the blocks, then inside the one where the running sum passes the goal.
    block = 0
    while block < len(sums) - 1 and passed + sums[block] <= u * total:
        passed += sums[block]
        block += 1
    while True:
        for i in range(block * BLOCK, len(row)):
            passed += exps[i]
            if exps[i] > 0.0:
                last = i
                if passed > u * total:
                    return i
        if last > 0 or block == 0:
            return last  # rounding put the goal past all mass: the last token with any takes it
        block, passed = 0, 0.0


@_compiled
def largest(row: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Indices of the k largest logits, best first, lower ids first on ties; (min(k, V),)."""
    k = min(k, len(row))
    ids = np.empty(k, np.int64)
    n = 0
    for i in range(len(row)):
        x = row[i]
        if n == k and not x > row[ids[n - 1]]:
            continue
        place = n if n < k else k - 1
        while place > 0 and x > row[ids[place - 1]]:
            if place < k:
                ids[place] = ids[place - 1]
            place -= 1
        ids[place] = i
        n = min(n + 1, k)
    return ids


def scratch(vocab_size: int) -> NDArray[np.float64]:
    """A scratch row for the functions above; one for each thread that calls them."""
    return np.empty(vocab_size, np.float64)
