"""sampler.py's arithmetic over one row of logits, compiled.

The definitions are in `tinyllm/sampler.py`; tests hold these functions to them. Here a row of
49,152 logits takes tens of microseconds where numpy's temporaries, sorts and sums take
milliseconds, which matters once a step of sixteen streams takes ten.

Each row is worked on by itself and in a fixed order, so the bits don't depend on what else is in
a batch, nor on the kind of processor. Exponentials are float32, their sums float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyllm.kernels.build import allocating_kernel, compile_beside, compile_together, kernel
from tinyllm.kernels.emit import LANES
from tinyllm.kernels.numbers import exp

STRETCH = 1024  # logits whose exponentials have a sum of their own
BUCKETS = 2048  # of distance to the best logit, see `_best_until`
PER_NAT = 32.0  # buckets a nat: the last one starts 64 nats down, at a share of 1e-28

# Philox 4x64, see `uniform`
M0, M1 = np.uint64(0xD2E7470EE14C6C93), np.uint64(0xCA5A826395121157)
W0, W1 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBB67AE8584CAA73B)
LOW_HALF, HALF_BITS = np.uint64(0xFFFFFFFF), np.uint64(32)

Row = NDArray[np.float32]  # (V,)
Ids = NDArray[np.int64]


@allocating_kernel
def exp_row(row: Row, top: np.float32, out: Row) -> NDArray[np.float64]:
    """out = exp(row - top); returns the sum of each stretch of 1,024, (ceil(V / 1024),)."""
    n_stretches = -(-len(row) // STRETCH)
    sums = np.empty(n_stretches, np.float64)
    lanes = np.empty(LANES, np.float64)  # sixteen sums, whatever a register holds
    for b in range(n_stretches):
        start, stop = b * STRETCH, min((b + 1) * STRETCH, len(row))
        whole = stop - (stop - start) % LANES
        for i in range(start, stop):
            out[i] = exp(np.float32(row[i] - top))
        for k in range(LANES):
            lanes[k] = 0.0
        for i in range(start, whole, LANES):
            for k in range(LANES):
                lanes[k] += np.float64(out[i + k])
        total = 0.0
        for k in range(LANES):
            total += lanes[k]
        for i in range(whole, stop):
            total += np.float64(out[i])
        sums[b] = total
    return sums


@kernel
def log(x: float) -> float:
    """The natural logarithm of a positive, finite number, to a unit or two in the last place.

    The C library's differs from one processor to the next. ln x = e · ln 2 + 2 · artanh(s) with
    s = (m - 1) / (m + 1), m in [√½, √2): Abramowitz & Stegun 1964, formula 4.1.27.
    """
    m, e = math.frexp(x)
    if m < 0.7071067811865476:
        m, e = m * 2.0, e - 1
    s = (m - 1.0) / (m + 1.0)
    z = s * s
    series = 0.0
    for k in range(23, 1, -2):  # 1 + z/3 + z²/5 + …; z < 0.0295
        series = (series + 1.0 / k) * z
    return e * 0.6931471805599453 + 2.0 * (s + s * series)


@kernel
def _near(
    row: Row, top: np.float32, exps: Row, sums: NDArray[np.float64], nats: float, ids: Ids
) -> tuple[int, float]:
    """Fill `ids` with the places of the logits within `nats` of the best; their number and mass."""
    edge = np.float32(top - np.float32(nats))
    least = math.exp(-nats) * 0.99  # a stretch with less holds none (the rest is for rounding)
    n, mass = 0, 0.0
    for b in range(len(sums)):
        if sums[b] < least:
            continue
        for i in range(b * STRETCH, min((b + 1) * STRETCH, len(row))):
            if row[i] >= edge:
                ids[n] = i
                n += 1
                mass += np.float64(exps[i])
    return n, mass


@allocating_kernel
def kept(
    row: Row,
    top: np.float32,
    exps: Row,
    sums: NDArray[np.float64],
    top_k: int,
    top_p: float,
) -> Ids:
    """The ids that top-k and then top-p leave, ascending; `exps`, `sums` as `exp_row` left them.

    Nothing as long as the vocabulary is sorted. First all tokens but those near the best are set
    aside, as far as the cut surely lies among the near ones; then these are thrown into buckets
    by their distance to the best. The cut falls into one bucket, and that one alone is sorted.
    """
    ids = np.empty(len(row), np.int64)
    total = sums.sum()
    n = 0
    for nats in (4.0, 8.0, 16.0, 64.0, np.inf):
        n, mass = _near(row, top, exps, sums, nats, ids)
        if (n >= top_k) if top_k > 0 else (mass >= top_p * total):
            break
    ids = ids[:n]

    for rule in range(2):  # top-k counts tokens, top-p their probability
        if rule == 0 and not 0 < top_k < len(ids):
            continue
        if rule == 1 and top_p >= 1.0:
            continue
        weights = np.ones(len(ids), np.float64) if rule == 0 else exps[ids].astype(np.float64)
        goal = np.float64(top_k) if rule == 0 else top_p * (weights.sum() if top_k > 0 else total)
        ids = _best_until(row, top, ids, weights, goal)
    return ids


@allocating_kernel
def _best_until(
    row: Row,
    top: np.float32,
    ids: Ids,
    weights: NDArray[np.float64],
    goal: float,
) -> Ids:
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


@allocating_kernel
def draw(
    row: Row,
    top: np.float32,
    exps: Row,
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
        ids = kept(row, top, exps, sums, top_k, top_p)
        total = 0.0
        for i in ids:
            total += np.float64(exps[i])
        for i in ids:
            passed += np.float64(exps[i])
            if exps[i] > 0.0:
                last = i
                if passed > u * total:
                    break
        return last
    # Walk over the stretches, then inside the one where the running sum passes the goal.
    block = 0
    while block < len(sums) - 1 and passed + sums[block] <= u * total:
        passed += sums[block]
        block += 1
    while True:
        for i in range(block * STRETCH, len(row)):
            passed += np.float64(exps[i])
            if exps[i] > 0.0:
                last = i
                if passed > u * total:
                    return i
        if last > 0 or block == 0:
            return last  # rounding put the goal past all mass: the last token with any takes it
        block, passed = 0, 0.0


@kernel
def _high_product(a: np.uint64, b: np.uint64) -> np.uint64:
    """The upper 64 bits of the product, by halves."""
    a_low, a_high = a & LOW_HALF, a >> HALF_BITS
    b_low, b_high = b & LOW_HALF, b >> HALF_BITS
    middle = a_high * b_low + ((a_low * b_low) >> HALF_BITS)
    carried = a_low * b_high + (middle & LOW_HALF)
    return a_high * b_high + (middle >> HALF_BITS) + (carried >> HALF_BITS)


@kernel
def uniform(seed: np.uint64, stream: np.uint64, step: np.uint64) -> float:
    """`sampler.uniform`: numpy takes some 30 microseconds to set its generator up for one draw."""
    # numpy counts up before it draws, so its counter (0, 0, 0, step) is this one.
    c0, c1, c2, c3 = np.uint64(1), np.uint64(0), np.uint64(0), step
    k0, k1 = seed, stream
    for _ in range(10):
        high0, low0 = _high_product(M0, c0), M0 * c0
        high1, low1 = _high_product(M1, c2), M1 * c2
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = k0 + W0, k1 + W1
    return np.float64(c0 >> np.uint64(11)) * (1.0 / 9007199254740992.0)


@allocating_kernel
def largest(row: Row, k: int) -> Ids:
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


def prepare() -> None:
    """Compile all of it (or load it from disk), so that no request has to wait for that."""
    while _beside:
        _beside.pop()()
    compile_together("sampling", _calls())


def prepare_beside() -> None:
    """Start to compile it in another process, beside the forward pass; `prepare` waits for that."""
    code = f"from {__name__} import prepare; prepare()"
    _beside.append(compile_beside(_calls(), code))


_beside: list[Callable[[], None]] = []  # what waits for processes that compile


def _calls() -> dict[Any, tuple[Any, ...]]:
    row, sums = np.zeros(1, np.float32), np.zeros(1, np.float64)
    return {
        exp_row: (row, np.float32(0), row),
        log: (0.0,),
        draw: (row, np.float32(0), row, sums, 0, 1.0, 0.5),
        uniform: (np.uint64(0), np.uint64(0), np.uint64(0)),
        largest: (row, 1),
    }
