"""sampler.py: filters against figures worked out by hand, draws against the exact distribution."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from tinyllm.sampler import (
    VOCABULARY_BLOCK,
    Sampler,
    SamplingParams,
    apply_logit_bias,
    apply_mask,
    apply_min_p,
    apply_penalties,
    apply_repetition_penalty,
    apply_temperature,
    apply_top_k,
    apply_top_p,
    draw,
    log_normalizer,
    probabilities,
    top_logprobs,
    uniform,
)

CUT = -np.inf


def f32(*values: float) -> NDArray[np.float32]:
    return np.array(values, np.float32)


def of(*p: float) -> NDArray[np.float32]:
    """Logits whose softmax is `p`."""
    return np.log(np.array(p)).astype(np.float32)


def kept(logits: NDArray[np.float32]) -> list[int]:
    return [int(i) for i in np.flatnonzero(logits > CUT)]


# What SamplingParams takes and refuses.


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1), ("temperature", 2.1), ("temperature", math.nan),
        ("temperature", math.inf), ("temperature", "hot"), ("temperature", None),
        ("temperature", True),
        ("top_p", -0.1), ("top_p", 1.1), ("top_p", math.nan), ("top_p", [0.5]),
        ("top_k", -2), ("top_k", 1.5), ("top_k", "3"), ("top_k", True), ("top_k", math.nan),
        ("seed", 1.5), ("seed", "1"), ("seed", True),
        ("presence_penalty", 2.01), ("presence_penalty", -2.01), ("presence_penalty", math.nan),
        ("frequency_penalty", 2.01), ("frequency_penalty", -2.01), ("frequency_penalty", "1"),
        ("logit_bias", {0: 101}), ("logit_bias", {0: -101.0}), ("logit_bias", {0: math.nan}),
        ("logit_bias", {-1: 1.0}), ("logit_bias", {"0": 1.0}), ("logit_bias", {1.0: 1.0}),
    ],
)  # fmt: skip
def test_params_refuse_and_name_the_field(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field):
        SamplingParams(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", 0), ("temperature", 2), ("temperature", np.float32(0.5)),
        ("top_p", 0), ("top_p", 1), ("top_k", 0), ("top_k", -1), ("top_k", 10**9),
        ("top_k", np.int64(4)), ("seed", 0), ("seed", -1), ("seed", 2**64 - 1), ("seed", None),
        ("presence_penalty", -2), ("frequency_penalty", 2), ("logit_bias", {7: -100, 9: 100}),
    ],
)  # fmt: skip
def test_params_take_the_edges(field: str, value: Any) -> None:
    assert getattr(SamplingParams(**{field: value}), field) == value


def test_params_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        SamplingParams().temperature = 0.0  # type: ignore[misc]


# Filters on four logits.


def test_mask() -> None:
    logits = f32(1, 2, 3, 4)
    allowed = np.array([True, False, True, False])
    np.testing.assert_array_equal(apply_mask(logits, allowed), f32(1, CUT, 3, CUT))
    assert apply_mask(logits, None) is logits


def test_penalties() -> None:
    logits, counts = f32(1, 2, 3, 4), {1: 1, 3: 2}
    np.testing.assert_array_equal(apply_penalties(logits, counts, 0.5, 0.0), f32(1, 1.5, 3, 3.5))
    np.testing.assert_array_equal(apply_penalties(logits, counts, 0.0, 0.5), f32(1, 1.5, 3, 3.0))
    np.testing.assert_array_equal(apply_penalties(logits, counts, 1.0, 0.5), f32(1, 0.5, 3, 2.0))
    np.testing.assert_array_equal(apply_penalties(logits, counts, -1.0, 0.0), f32(1, 3, 3, 5))
    np.testing.assert_array_equal(apply_penalties(logits, {}, 1.0, 1.0), logits)


def test_logit_bias() -> None:
    np.testing.assert_array_equal(
        apply_logit_bias(f32(1, 2, 3, 4), {0: 100, 2: -1.5}), f32(101, 2, 1.5, 4)
    )
    with pytest.raises(ValueError, match=r"logit_bias.*4.*vocabulary of 4"):
        apply_logit_bias(f32(1, 2, 3, 4), {4: 1.0})


@pytest.mark.parametrize("temperature", [0.5, 0.7, 1.0, 2.0])
def test_temperature_is_a_power_of_the_probabilities(temperature: float) -> None:
    p = np.array([0.5, 0.25, 0.15, 0.1])
    expected = p ** (1 / temperature) / (p ** (1 / temperature)).sum()
    ours = probabilities(apply_temperature(of(*p), temperature))
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_temperature_zero_keeps_the_first_best() -> None:
    assert kept(apply_temperature(f32(1, 3, 3, 2), 0.0)) == [1]


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-44, 1e-50, 5e-324])
def test_tiny_temperature_is_almost_greedy(temperature: float) -> None:
    """… and not a division by what float32 rounds to zero."""
    p = probabilities(apply_temperature(f32(1, 3, 3, CUT), temperature))
    np.testing.assert_array_equal(p, [0, 0.5, 0.5, 0])
    assert Sampler(SamplingParams(temperature=temperature)).pick(f32(1, 4, 3, 2)).token == 1


def test_temperature_of_huge_logits() -> None:
    p = probabilities(apply_temperature(f32(3e38, -3e38, CUT, 3e38), 2.0))
    np.testing.assert_array_equal(p, [0.5, 0, 0, 0.5])


@pytest.mark.parametrize(
    ("k", "expected"),
    [(-1, [0, 1, 2, 3]), (0, [0, 1, 2, 3]), (1, [1]), (2, [1, 3]), (3, [0, 1, 3]),
     (4, [0, 1, 2, 3]), (5, [0, 1, 2, 3])],
)  # fmt: skip
def test_top_k(k: int, expected: list[int]) -> None:
    assert kept(apply_top_k(f32(2, 4, 1, 3), k)) == expected


def test_top_k_keeps_the_lower_ids_among_equals() -> None:
    assert kept(apply_top_k(f32(1, 2, 2, 2), 2)) == [1, 2]
    assert kept(apply_top_k(f32(5, 5, 5, 5), 3)) == [0, 1, 2]


def test_top_k_beyond_what_is_left_keeps_what_is_left() -> None:
    assert kept(apply_top_k(f32(CUT, 2, CUT, 1), 3)) == [1, 3]


@pytest.mark.parametrize(
    ("top_p", "expected"),
    [(0.0, [2]), (0.3, [2]), (0.39, [2]), (0.41, [0, 2]), (0.69, [0, 2]), (0.71, [0, 2, 3]),
     (0.89, [0, 2, 3]), (0.91, [0, 1, 2, 3]), (1.0, [0, 1, 2, 3])],
)  # fmt: skip
def test_top_p_keeps_the_token_that_crosses(top_p: float, expected: list[int]) -> None:
    assert kept(apply_top_p(of(0.3, 0.1, 0.4, 0.2), top_p)) == expected


def test_top_p_reached_exactly_needs_no_more() -> None:
    equal = f32(0, 0, 0, 0)  # four quarters, exactly
    assert kept(apply_top_p(equal, 0.25)) == [0]
    assert kept(apply_top_p(equal, 0.5)) == [0, 1]
    assert kept(apply_top_p(equal, 0.500001)) == [0, 1, 2]


def test_top_p_counts_only_what_is_left() -> None:
    """After top-k, the probabilities are those of the survivors."""
    logits = apply_top_k(of(0.4, 0.3, 0.2, 0.1), 2)  # 4/7 and 3/7
    assert kept(apply_top_p(logits, 0.5)) == [0]
    assert kept(apply_top_p(logits, 0.6)) == [0, 1]


@pytest.mark.parametrize(
    "filtered",
    [
        lambda x: apply_mask(x, np.array([True, True, False, True])),
        lambda x: apply_penalties(x, {0: 1}, 1.0, 1.0),
        lambda x: apply_logit_bias(x, {0: 1.0}),
        lambda x: apply_temperature(x, 0.5),
        lambda x: apply_temperature(x, 0.0),
        lambda x: apply_top_k(x, 2),
        lambda x: apply_top_p(x, 0.5),
    ],
)
def test_filters_leave_their_input_alone(filtered: Any) -> None:
    logits = f32(1, 2, 3, 4)
    logits.flags.writeable = False
    out = filtered(logits)
    assert out.dtype == np.float32
    np.testing.assert_array_equal(logits, f32(1, 2, 3, 4))


# The same filters on long vectors, where they take short cuts by blocks.


@st.composite
def long_logits(draw: Any) -> NDArray[np.float32]:
    """Up to five blocks; often with ties, cuts, and few distinct values."""
    size = draw(st.integers(1, 5 * VOCABULARY_BLOCK))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    logits = rng.normal(0, draw(st.sampled_from([0.1, 2.0, 20.0])), size)
    if draw(st.booleans()):
        logits = np.round(logits)
    logits[rng.random(size) < draw(st.sampled_from([0.0, 0.3, 0.99]))] = CUT
    if not (logits > CUT).any():
        logits[rng.integers(size)] = 0.0
    return logits.astype(np.float32)


def by_rank(logits: NDArray[np.float32]) -> list[int]:
    """Ids, best first, lower ids first among equals."""
    return sorted(range(len(logits)), key=lambda i: (-float(logits[i]), i))


@given(long_logits(), st.integers(1, 3 * VOCABULARY_BLOCK))
def test_top_k_of_many(logits: NDArray[np.float32], k: int) -> None:
    expected = {i for i in by_rank(logits)[:k] if logits[i] > CUT}
    assert set(kept(apply_top_k(logits, k))) == expected


@given(long_logits(), st.floats(0, 1, exclude_max=True))
def test_top_p_of_many(logits: NDArray[np.float32], top_p: float) -> None:
    p = probabilities(logits)
    ranked = [i for i in by_rank(logits) if logits[i] > CUT]
    nucleus = kept(apply_top_p(logits, top_p))
    assert set(nucleus) == set(ranked[: len(nucleus)])  # the best ones, and only they
    # It reaches top_p, and without its last token it would not (but for float32's rounding).
    assert math.fsum(p[i] for i in nucleus) >= top_p - 1e-5
    assert math.fsum(p[i] for i in ranked[: len(nucleus) - 1]) < top_p + 1e-5


@given(long_logits(), st.floats(0, 1, exclude_max=True))
def test_draw_finds_the_slice_of_the_unit_interval(logits: NDArray[np.float32], u: float) -> None:
    p = probabilities(logits)
    token = draw(logits, u)
    assert p[token] > 0 or logits[token] > CUT
    below = math.fsum(p[:token])
    assert below - 1e-5 <= u <= below + p[token] + 1e-5


def test_draw_by_hand() -> None:
    logits = of(0.1, 0.2, 0.3, 0.4)
    for u, token in [
        (0.0, 0),
        (0.09, 0),
        (0.11, 1),
        (0.29, 1),
        (0.31, 2),
        (0.61, 3),
        (1 - 1e-16, 3),
    ]:
        assert draw(logits, u) == token


def test_draw_never_lands_on_a_cut_token() -> None:
    logits = np.full(3 * VOCABULARY_BLOCK, CUT, np.float32)
    logits[[5, 700]] = 0.0
    for u in (0.0, 0.49, 0.51, np.nextafter(1.0, 0.0)):
        assert draw(logits, u) == (5 if u < 0.5 else 700)


# Figures about a distribution.


@given(long_logits())
def test_probabilities_sum_to_one(logits: NDArray[np.float32]) -> None:
    p = probabilities(logits)
    assert p.dtype == np.float64
    assert abs(math.fsum(p) - 1) < 1e-12
    np.testing.assert_array_equal(p == 0, logits - logits.max() < -745)


@given(long_logits(), st.integers(0, 40))
def test_top_logprobs(logits: NDArray[np.float32], k: int) -> None:
    found = top_logprobs(logits, k)
    assert [token for token, _ in found] == by_rank(logits)[:k]
    log_p = logits - math.log(math.fsum(np.exp(logits.astype(np.float64))))
    for token, logprob in found:
        assert logprob == pytest.approx(log_p[token], abs=1e-4)


@given(hnp.arrays(np.float32, st.integers(1, 9), elements=st.floats(-30, 30, width=32)))
def test_log_normalizer(logits: NDArray[np.float32]) -> None:
    exact = math.log(math.fsum(math.exp(float(v)) for v in logits))
    assert log_normalizer(logits) == pytest.approx(exact, abs=1e-5)


# The sampler: order of the filters, and its edges.


def test_greedy_takes_the_first_of_equals_and_draws_nothing() -> None:
    pick = Sampler(SamplingParams(temperature=0.0)).pick(f32(1, 3, 3, 2))
    assert (pick.token, pick.chosen_by) == (1, "argmax")


def test_greedy_ignores_top_k_and_top_p_but_not_penalties_and_bias() -> None:
    params = SamplingParams(temperature=0.0, top_k=1, top_p=0.1, presence_penalty=1.5)
    sampler = Sampler(params)
    assert [sampler.pick(f32(1, 2, 3, 2.5)).token for _ in range(4)] == [2, 3, 1, 2]
    biased = Sampler(SamplingParams(temperature=0.0, logit_bias={0: 5}))
    assert biased.pick(f32(1, 2, 3, 4)).token == 0


def test_logprob_is_of_the_raw_softmax() -> None:
    """Whatever mask, bias, temperature or top-k made of it."""
    raw = of(0.1, 0.2, 0.3, 0.4)
    params = SamplingParams(temperature=0.3, top_k=1, logit_bias={0: 100}, seed=0)
    pick = Sampler(params).pick(raw, allowed=np.array([True, True, True, False]))
    assert pick.token == 0
    assert pick.logprob == pytest.approx(math.log(0.1), abs=1e-6)


def test_mask_comes_before_everything() -> None:
    """A bias can't bring back what a grammar forbids."""
    sampler = Sampler(SamplingParams(temperature=1.0, top_k=1, logit_bias={3: 100}, seed=0))
    assert sampler.pick(f32(1, 2, 3, 4), allowed=np.array([1, 1, 0, 0], bool)).token == 1


def test_temperature_comes_before_top_p() -> None:
    """At temperature 2 the shares are 2:1:1 (of 4:1:1), so 0.55 needs two; at 1, one."""
    raw = of(4 / 6, 1 / 6, 1 / 6)
    sampler = Sampler(SamplingParams(temperature=2.0, top_p=0.55))
    assert kept(sampler.stages(raw)[-1][1]) == [0, 1]
    assert kept(Sampler(SamplingParams(top_p=0.55)).stages(raw)[-1][1]) == [0]


def test_top_k_comes_before_top_p() -> None:
    """Of the survivors of top-k the first holds 4/7 > 0.5; of all tokens it holds 0.4."""
    sampler = Sampler(SamplingParams(top_k=2, top_p=0.5))
    assert kept(sampler.stages(of(0.4, 0.3, 0.2, 0.1))[-1][1]) == [0]


def test_penalties_come_before_temperature() -> None:
    sampler = Sampler(SamplingParams(temperature=0.5, presence_penalty=1.0))
    sampler.pick(f32(0, 0), forced=0)
    p = probabilities(sampler.stages(f32(0, 0))[-1][1])
    assert p[1] / p[0] == pytest.approx(math.exp(1.0 / 0.5), rel=1e-5)


def test_penalties_count_what_was_generated_forced_tokens_too() -> None:
    sampler = Sampler(SamplingParams(presence_penalty=0.5, frequency_penalty=0.25))
    for token in (1, 1, 3):
        sampler.pick(f32(0, 0, 0, 0), forced=token)
    stages = dict(sampler.stages(f32(0, 0, 0, 0)))
    np.testing.assert_array_equal(stages["penalties"], f32(0, -1.0, 0, -0.75))


def test_stages_are_named_in_order() -> None:
    names = [name for name, _ in Sampler(SamplingParams()).stages(f32(1, 2))]
    assert names == ["raw", "mask", "penalties", "temperature", "top_k", "top_p"]


def test_forced_tokens() -> None:
    sampler = Sampler(SamplingParams(seed=1))
    pick = sampler.pick(of(0.5, 0.25, 0.25), forced=2)
    assert (pick.token, pick.chosen_by) == (2, "forced")
    assert pick.logprob == pytest.approx(math.log(0.25), abs=1e-6)
    for bad in (-1, 3):
        with pytest.raises(ValueError, match="vocabulary of 3"):
            sampler.pick(of(0.5, 0.25, 0.25), forced=bad)
    assert sampler.picked == [2]  # a refused token isn't counted


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nothing_to_choose_from(temperature: float) -> None:
    sampler = Sampler(SamplingParams(temperature=temperature, seed=1))
    with pytest.raises(ValueError, match="no token"):
        sampler.pick(f32(1, 2), allowed=np.zeros(2, bool))
    with pytest.raises(ValueError, match="no token"):
        sampler.pick(f32(CUT, CUT))
    with pytest.raises(ValueError, match="NaN"):
        sampler.pick(f32(1, math.nan))
    assert sampler.picked == []


def test_one_token_vocabulary() -> None:
    assert Sampler(SamplingParams(top_k=1, top_p=0.0)).pick(f32(-3.0)).token == 0


# Randomness: a function of seed, stream and step alone.


def picks(sampler: Sampler, n: int, logits: NDArray[np.float32] | None = None) -> list[int]:
    logits = f32(*range(40)) / 20 if logits is None else logits
    return [sampler.pick(logits).token for _ in range(n)]


def test_same_seed_same_draws() -> None:
    params = SamplingParams(seed=5)
    assert picks(Sampler(params), 50) == picks(Sampler(params), 50)


def test_seeds_streams_and_steps_give_different_draws() -> None:
    assert picks(Sampler(SamplingParams(seed=5)), 50) != picks(Sampler(SamplingParams(seed=6)), 50)
    params = SamplingParams(seed=5)
    assert picks(Sampler(params, stream=0), 50) != picks(Sampler(params, stream=1), 50)
    assert len(set(picks(Sampler(params), 50))) > 10


def test_no_seed_draws_one_and_keeps_it() -> None:
    first, second = Sampler(SamplingParams()), Sampler(SamplingParams())
    assert first.seed != second.seed
    assert picks(first, 30) == picks(Sampler(SamplingParams(seed=first.seed)), 30)


@pytest.mark.parametrize("seed", [0, -1, 2**53 + 1, 2**63, 2**64 - 1])
def test_all_64_bits_of_a_seed_count(seed: int) -> None:
    values = {uniform(s & (2**64 - 1), 0, 0) for s in (seed, seed + 1, seed - 1, seed ^ 2**40)}
    assert len(values) == 4
    assert all(0 <= u < 1 for u in values)


def test_streams_are_uniform_and_independent() -> None:
    """Means, and correlations between seeds, streams and neighbouring steps, within 4.5 sigma."""
    n = 4_000
    base = np.array([uniform(7, 0, t) for t in range(n)])
    other_stream = np.array([uniform(7, 1, t) for t in range(n)])
    other_seed = np.array([uniform(8, 0, t) for t in range(n)])
    assert abs(base.mean() - 0.5) < 4.5 * math.sqrt(1 / 12 / n)
    counts = np.histogram(base, 20, (0, 1))[0]
    assert ((counts - n / 20) ** 2 / (n / 20)).sum() < chi_square_limit(19)
    pairs = [(base, other_stream), (base, other_seed), (base[:-1], base[1:])]
    for a, b in pairs:
        assert abs(np.corrcoef(a, b)[0, 1]) < 4.5 / math.sqrt(n)


def test_rewind_brings_the_same_draws_back() -> None:
    sampler = Sampler(SamplingParams(seed=3, presence_penalty=1.0, frequency_penalty=0.3))
    first = picks(sampler, 20)
    sampler.rewind(12)
    assert sampler.picked == first[:8]
    assert picks(sampler, 12) == first[8:]
    sampler.rewind(20)
    assert picks(sampler, 20) == first
    for bad in (-1, 21):
        with pytest.raises(ValueError, match="rewind"):
            sampler.rewind(bad)


@given(st.lists(st.integers(0, 5), max_size=12), st.integers(0, 12))
def test_rewind_forgets_counts(forced: list[int], n: int) -> None:
    """Penalties after a rewind are those of a sampler that never drew what was taken back."""
    assume(n <= len(forced))
    params = SamplingParams(presence_penalty=0.5, frequency_penalty=0.25)
    rewound, fresh = Sampler(params), Sampler(params)
    logits = np.zeros(6, np.float32)
    for token in forced:
        rewound.pick(logits, forced=token)
    rewound.rewind(n)
    for token in forced[: len(forced) - n]:
        fresh.pick(logits, forced=token)
    for (_, ours), (_, expected) in zip(rewound.stages(logits), fresh.stages(logits), strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_forks_go_on_alike_and_apart() -> None:
    sampler = Sampler(SamplingParams(seed=3, frequency_penalty=0.3))
    picks(sampler, 5)
    twin = sampler.fork()
    ahead = picks(twin, 10)
    assert len(sampler.picked) == 5  # the fork's picks are its own
    assert picks(sampler, 10) == ahead
    twin.rewind(15)
    assert len(sampler.picked) == 15


# Draws against the exact distribution.


def chi_square_limit(df: int, z: float = 4.5) -> float:
    """What a chi-square of `df` degrees passes with the probability that a normal passes z sigma.

    Wilson & Hilferty 1931. z = 4.5 is one in 300,000; the seeds are fixed, so it can't flicker.
    """
    return df * (1 - 2 / (9 * df) + z * math.sqrt(2 / (9 * df))) ** 3


def exact_distribution(
    raw: list[float], params: SamplingParams, counts: dict[int, int], allowed: list[bool]
) -> list[float]:
    """Section 4.1 of the contract in plain Python, token by token."""
    x = [v if ok else CUT for v, ok in zip(raw, allowed, strict=True)]
    for token, n in counts.items():
        x[token] -= params.presence_penalty + params.frequency_penalty * n
    for token, bias in params.logit_bias.items():
        x[token] += bias
    x = [v / params.temperature for v in x]
    order = sorted(range(len(x)), key=lambda i: (-x[i], i))
    if params.top_k > 0:
        order = order[: params.top_k]
    weights = {i: math.exp(x[i] - x[order[0]]) for i in order}
    total, running, nucleus = sum(weights.values()), 0.0, []
    for i in order:
        if running >= params.top_p * total and nucleus and params.top_p < 1:
            break
        nucleus.append(i)
        running += weights[i]
    mass = sum(weights[i] for i in nucleus)
    return [weights[i] / mass if i in nucleus else 0.0 for i in range(len(x))]


def chi_square(draws: Counter[int], p: list[float]) -> tuple[float, int]:
    """The statistic and its degrees of freedom; rare tokens (fewer than 5 expected) are pooled."""
    n = draws.total()
    cells = [(draws[i], n * q) for i, q in enumerate(p) if n * q >= 5]
    rare = [(draws[i], n * q) for i, q in enumerate(p) if 0 < n * q < 5]
    if rare:
        cells.append((sum(seen for seen, _ in rare), sum(expected for _, expected in rare)))
    return sum((seen - expected) ** 2 / expected for seen, expected in cells), len(cells) - 1


RAW = [float(v) for v in np.random.default_rng(0).normal(0, 1.5, 300).astype(np.float32)]
ALLOWED = [i % 3 != 1 for i in range(300)]
CASES = {
    "plain": (SamplingParams(), {}, False),
    "cold": (SamplingParams(temperature=0.6), {}, False),
    "hot": (SamplingParams(temperature=1.7), {}, False),
    "top-k": (SamplingParams(top_k=9), {}, False),
    "top-p": (SamplingParams(top_p=0.7), {}, False),
    "all three": (SamplingParams(temperature=0.8, top_k=60, top_p=0.85), {}, False),
    "penalties": (
        SamplingParams(presence_penalty=1.2, frequency_penalty=0.4, top_k=40),
        dict(zip(np.argsort(RAW)[::-1][:8].tolist(), (1, 2, 3, 1, 1, 5, 2, 1), strict=True)),
        False,
    ),
    "bias": (SamplingParams(logit_bias={0: 3.0, 299: 4.0, int(np.argmax(RAW)): -100}), {}, False),
    "mask": (SamplingParams(top_p=0.9), {}, True),
}


def sample(params: SamplingParams, counts: dict[int, int], masked: bool, n: int) -> Counter[int]:
    """n draws, each the first of its own seed behind the same history."""
    logits = np.array(RAW, np.float32)
    allowed = np.array(ALLOWED) if masked else None
    draws: Counter[int] = Counter()
    for seed in range(n):
        sampler = Sampler(params)
        sampler.seed = seed
        for token, times in counts.items():
            for _ in range(times):
                sampler.pick(logits, forced=token)
        draws[sampler.pick(logits, allowed).token] += 1
    return draws


@pytest.mark.parametrize("name", CASES)
def test_draws_follow_the_exact_distribution(name: str) -> None:
    params, counts, masked = CASES[name]
    p = exact_distribution(RAW, params, counts, ALLOWED if masked else [True] * 300)
    draws = sample(params, counts, masked, 1_500 if counts else 6_000)
    assert not [token for token in draws if p[token] == 0]
    statistic, df = chi_square(draws, p)
    assert statistic < chi_square_limit(df)


def test_draws_along_one_stream_follow_it_too() -> None:
    logits = np.array(RAW, np.float32)
    sampler = Sampler(SamplingParams(top_k=50, seed=11))
    draws = Counter(sampler.pick(logits).token for _ in range(6_000))
    p = exact_distribution(RAW, sampler.params, {}, [True] * 300)
    statistic, df = chi_square(draws, p)
    assert statistic < chi_square_limit(df)


def test_the_chi_square_test_can_tell() -> None:
    """Draws at temperature 0.8 aren't taken for draws at 0.9, nor top-k 9 for top-k 10."""
    for drawn_with, held_against in (
        (SamplingParams(temperature=0.8), SamplingParams(temperature=0.9)),
        (SamplingParams(top_k=9), SamplingParams(top_k=10)),
    ):
        draws = sample(drawn_with, {}, False, 6_000)
        p = exact_distribution(RAW, held_against, {}, [True] * 300)
        statistic, df = chi_square(draws, p)
        assert statistic > chi_square_limit(df)


def test_min_p_keeps_what_is_likely_beside_the_best() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    kept = [int(np.isfinite(apply_min_p(logits, p)).sum()) for p in (0.0, 0.05, 0.2, 0.5, 0.7, 1.0)]
    assert kept == [4, 4, 3, 2, 1, 1]


def test_the_penalty_of_repetitions_is_the_reference_implementations() -> None:
    """As in transformers: positive logits are divided, negative ones multiplied."""
    logits = np.array([2.0, -2.0, 1.0, -1.0], np.float32)
    penalised = apply_repetition_penalty(logits, np.array([0, 1]), 2.0)
    assert penalised.tolist() == [1.0, -4.0, 1.0, -1.0]
    assert logits.tolist() == [2.0, -2.0, 1.0, -1.0]
    sampler = Sampler(SamplingParams(temperature=0, repetition_penalty=3.0), prompt=[0])
    assert sampler.pick(logits).token == 2  # 0 stands in the prompt
    assert sampler.pick(logits).token == 0  # 2 stands in the answer now
    assert sampler.fork().pick(logits).token == sampler.pick(logits).token
