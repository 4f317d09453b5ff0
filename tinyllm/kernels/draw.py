"""sampler.py's arithmetic over one row of logits, compiled.

The definitions are in `tinyllm/sampler.py`; tests hold these functions to them. Here a row of
49,152 logits takes tens of microseconds where numpy's temporaries, sorts and sums take
milliseconds, which matters once a step of sixteen streams takes ten.

Each row is worked on by itself and in a fixed order, so the bits don't depend on what else is in
a batch, nor on the kind of processor. Exponentials are float32, their sums float64. What a kernel
writes down on its way goes to a `DrawRoom`, since kernels allocate nothing; `drawing.py` makes one,
and is how Python calls what is here.
"""

from __future__ import annotations

import math

import numpy as np

from tinyllm.kernels.build import kernel, part
from tinyllm.kernels.drawing import BUCKETS, STRETCH, DrawRoom, Ids, Row, Sums
from tinyllm.kernels.emit import LANES
from tinyllm.kernels.numbers import exp

PER_NAT = 32.0  # buckets a nat: the last one starts 64 nats down, at a share of 1e-28

# Philox 4x64, see `uniform`
M0, M1 = np.uint64(0xD2E7470EE14C6C93), np.uint64(0xCA5A826395121157)
W0, W1 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBB67AE8584CAA73B)
LOW_HALF, HALF_BITS = np.uint64(0xFFFFFFFF), np.uint64(32)


@kernel
def exp_row(row: Row, top: np.float32, room: DrawRoom) -> None:
    """room.exps = exp(row - top), and room.sums those of each stretch of 1,024."""
    out, lanes = room.exps, room.lanes  # sixteen sums, whatever a register holds
    for b in range(len(room.sums)):
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
        room.sums[b] = total


@kernel
def log(x: float) -> float:
    """The natural logarithm of a positive, normal number, to a unit or two in the last place.

    The C library's differs from one processor to the next. ln x = e · ln 2 + 2 · artanh(s) with
    s = (m - 1) / (m + 1), m in [√½, √2): Abramowitz & Stegun 1964, formula 4.1.27.
    """
    bits = np.float64(x).view(np.int64)  # x = m · 2^e with m in [½, 1)
    e = (bits >> 52) - 1022
    m = np.int64((bits & ((1 << 52) - 1)) | (1022 << 52)).view(np.float64)
    if m < 0.7071067811865476:
        m, e = m * 2.0, e - 1
    s = (m - 1.0) / (m + 1.0)
    z = s * s
    series = 0.0
    for k in range(23, 1, -2):  # 1 + z/3 + z²/5 + …; z < 0.0295
        series = (series + 1.0 / k) * z
    return e * 0.6931471805599453 + 2.0 * (s + s * series)


@kernel
def _near(row: Row, top: np.float32, nats: float, room: DrawRoom) -> tuple[int, float]:
    """Fill `room.ids` with the places of the logits within `nats` of the best; number and mass."""
    exps, sums, ids = room.exps, room.sums, room.ids
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


@kernel
def _total(sums: Sums, n: int) -> float:
    """The first n, one after the other."""
    total = 0.0
    for i in range(n):
        total += sums[i]
    return total


@kernel
def kept(row: Row, top: np.float32, top_k: int, top_p: float, room: DrawRoom) -> int:
    """Leave in `room.ids` the ids that top-k and then top-p leave, ascending; how many they are.

    `room` is as `exp_row` left it.

    Nothing as long as the vocabulary is sorted. First all tokens but those near the best are set
    aside, as far as the cut surely lies among the near ones; then these are thrown into buckets
    by their distance to the best. The cut falls into one bucket, and that one alone is sorted.
    """
    total = _total(room.sums, len(room.sums))
    n = 0
    for nats in (4.0, 8.0, 16.0, 64.0, np.inf):
        n, mass = _near(row, top, nats, room)
        if (n >= top_k) if top_k > 0 else (mass >= top_p * total):
            break

    weights = room.weights
    if 0 < top_k < n:  # counts tokens
        for j in range(n):
            weights[j] = 1.0
        n = _best_until(row, top, n, float(top_k), room)
    if top_p < 1.0:  # sums up their probability
        for j in range(n):
            weights[j] = np.float64(room.exps[room.ids[j]])
        n = _best_until(row, top, n, top_p * (_total(weights, n) if top_k > 0 else total), room)
    return n


@kernel
def _best_until(row: Row, top: np.float32, n: int, goal: float, room: DrawRoom) -> int:
    """Leave the likeliest of n ids, one at least, until their weights reach the goal; how many."""
    ids, weights, bucket, sums = room.ids, room.weights, room.bucket, room.masses
    for b in range(BUCKETS):
        sums[b] = 0.0
    for j in range(n):
        nats = min(np.float64(top) - np.float64(row[ids[j]]), 1e6)
        bucket[j] = min(int(nats * PER_NAT), BUCKETS - 1)
        sums[bucket[j]] += weights[j]
    cut, passed = 0, 0.0
    while cut < BUCKETS - 1 and passed + sums[cut] < goal:
        passed += sums[cut]
        cut += 1
    n_edge = 0
    for j in range(n):
        if bucket[j] == cut:
            room.edge[n_edge] = j
            n_edge += 1
    _sort_best_first(row, ids, n_edge, room.edge, room.spare)
    for i in range(n_edge):
        j = room.edge[i]
        if passed >= goal and passed > 0.0:
            break
        bucket[j] = -1
        passed += weights[j]
    if passed == 0.0:  # a goal of nothing: the best token stays
        for j in range(n):
            if row[ids[j]] == top:
                bucket[j] = -1
                break
    left = 0
    for j in range(n):
        if bucket[j] < cut:
            ids[left] = ids[j]
            left += 1
    return left


@kernel
def _sort_best_first(row: Row, ids: Ids, n: int, places: Ids, spare: Ids) -> None:
    """Sort the first n places in `ids` by their logits, lower places first on ties: merging."""
    width = 1
    while width < n:
        for first in range(0, n, 2 * width):
            middle, last = min(first + width, n), min(first + 2 * width, n)
            i, j = first, middle
            for k in range(first, last):
                if i < middle and (j >= last or row[ids[places[i]]] >= row[ids[places[j]]]):
                    spare[k] = places[i]
                    i += 1
                else:
                    spare[k] = places[j]
                    j += 1
        for k in range(n):
            places[k] = spare[k]
        width *= 2


@kernel
def draw(row: Row, top: np.float32, top_k: int, top_p: float, u: float, room: DrawRoom) -> int:
    """The token that `u` in [0, 1) falls on, after top-k and top-p, laid out in id order.

    row: (V,) after mask, penalties, bias and temperature; `top` is its largest, and finite.
    room: as `exp_row` left it.
    """
    exps, sums = room.exps, room.sums
    total = _total(sums, len(sums))
    passed, last = 0.0, 0
    if 0 < top_k < len(row) or top_p < 1.0:
        n = kept(row, top, top_k, top_p, room)
        total = 0.0
        for j in range(n):
            total += np.float64(exps[room.ids[j]])
        for j in range(n):
            i = room.ids[j]
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


# Where it isn't compiled, numpy warns of integers that grow past 64 bits: these two keep within.


@part
def _low_product(a: np.uint64, b: np.uint64) -> np.uint64:
    """The lower 64 bits of the product."""
    a_low, b_low = a & LOW_HALF, b & LOW_HALF
    lowest = a_low * b_low
    crossed = (a_low * (b >> HALF_BITS) & LOW_HALF) + ((a >> HALF_BITS) * b_low & LOW_HALF)
    upper = (crossed + (lowest >> HALF_BITS)) << HALF_BITS
    return upper | (lowest & LOW_HALF)


@part
def _low_sum(a: np.uint64, b: np.uint64) -> np.uint64:
    """The lower 64 bits of the sum."""
    low = (a & LOW_HALF) + (b & LOW_HALF)
    upper = ((a >> HALF_BITS) + (b >> HALF_BITS) + (low >> HALF_BITS)) << HALF_BITS
    return upper | (low & LOW_HALF)


@kernel
def uniform(seed: np.uint64, stream: np.uint64, step: np.uint64) -> float:
    """`sampler.uniform`: numpy takes some 30 microseconds to set its generator up for one draw."""
    # numpy counts up before it draws, so its counter (0, 0, 0, step) is this one.
    c0, c1, c2, c3 = np.uint64(1), np.uint64(0), np.uint64(0), step
    k0, k1 = seed, stream
    for _ in range(10):
        high0, low0 = _high_product(M0, c0), _low_product(M0, c0)
        high1, low1 = _high_product(M1, c2), _low_product(M1, c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = _low_sum(k0, W0), _low_sum(k1, W1)
    return np.float64(c0 >> np.uint64(11)) * (1.0 / 9007199254740992.0)


@kernel
def largest(row: Row, ids: Ids) -> None:
    """Fill `ids` with the places of as many largest logits, best first, lower ones first on ties.

    ids: at most as many as the row has.
    """
    k, n = len(ids), 0
    for i in range(len(row)):
        x = row[i]
        if n == k and (k == 0 or not x > row[ids[n - 1]]):
            continue
        place = n if n < k else k - 1
        while place > 0 and x > row[ids[place - 1]]:
            if place < k:
                ids[place] = ids[place - 1]
            place -= 1
        ids[place] = i
        n = min(n + 1, k)
