"""From logits to a token: pure filters over one vector, then one draw.

The order is fixed: mask, penalties and bias, temperature, top-k, top-p, min-p, draw (that of
transformers, whose penalty of repetitions comes before the others). A filter removes a
token by setting its logit to -inf, so that every stage can be looked at by itself.

Randomness is counter-based: draw t of stream i under seed s is a pure function of (s, i, t). So
a choice can be rewound, forked, batched or replayed without any state to carry.
"""

from __future__ import annotations

import math
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]
ChosenBy = Literal["argmax", "sample", "forced"]
MAX_SEED = 2**64 - 1
VOCABULARY_BLOCK = 256  # tokens a block, where the vocabulary is gone through in two levels


@dataclass(frozen=True)
class SamplingParams:
    """How to choose the next token. Every field is checked; ValueError names it.

    temperature: 0 … 2; 0 is greedy, the first index on ties.
    top_k: keep the k likeliest tokens; 0 (or -1) keeps all.
    top_p: keep the fewest tokens whose probability reaches this, 0 … 1; the one that crosses is
        kept, so 0 keeps one and 1 keeps all.
    seed: 64-bit; None draws one at random.
    presence_penalty, frequency_penalty: -2 … 2, subtracted once, or once an occurrence, from the
        logits of tokens generated so far.
    min_p: keep tokens of at least this share of the likeliest one's probability, 0 … 1.
    repetition_penalty: 0.01 … 10, divides the logits of tokens in prompt and answer, or multiplies
        negative ones; 1 does nothing.
    logit_bias: token id → added to its logit, -100 … 100.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        _check_range("temperature", self.temperature, 0.0, 2.0)
        _check_range("top_p", self.top_p, 0.0, 1.0)
        _check_range("min_p", self.min_p, 0.0, 1.0)
        _check_range("repetition_penalty", self.repetition_penalty, 0.01, 10.0)
        _check_range("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _check_range("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        if not is_int(self.top_k) or self.top_k < -1:
            raise ValueError(f"top_k must be an integer of at least -1, not {self.top_k!r}")
        if self.seed is not None and not is_int(self.seed):
            raise ValueError(f"seed must be an integer or None, not {self.seed!r}")
        if not isinstance(self.logit_bias, Mapping):
            raise ValueError(
                f"logit_bias must be a dict of token id → bias, not {self.logit_bias!r}"
            )
        for token, bias in self.logit_bias.items():
            if not is_int(token) or token < 0:
                raise ValueError(f"logit_bias: {token!r} is not a token id")
            _check_range(f"logit_bias[{token}]", bias, -100.0, 100.0)


def is_int(value: Any) -> bool:
    """Whether it is a whole number: of Python's or numpy's, and no bool."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def check_whole(name: str, value: Any, least: int) -> None:
    """ValueError unless a parameter is a whole number of at least so much."""
    if not is_int(value) or value < least:
        raise ValueError(f"{name} must be a whole number from {least}, not {value!r}")


def _check_range(name: str, value: Any, low: float, high: float) -> None:
    number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    if not number or not low <= value <= high:  # NaN fails the comparison too
        raise ValueError(f"{name} must be a number from {low:g} to {high:g}, not {value!r}")


# Filters. Each takes logits (vocab_size,) float32 and returns a new vector, or the same one if it
# has nothing to do; none changes its input.


def apply_mask(logits: Logits, allowed: NDArray[np.bool_] | None) -> Logits:
    """Only tokens whose `allowed` entry is True stay."""
    return logits if allowed is None else np.where(allowed, logits, np.float32(-np.inf))


def apply_penalties(
    logits: Logits, counts: Mapping[int, int], presence: float, frequency: float
) -> Logits:
    """Lower tokens generated so far: by `presence` once, by `frequency` an occurrence."""
    if not counts or (presence == 0.0 and frequency == 0.0):
        return logits
    out = logits.copy()
    ids = np.fromiter(counts.keys(), np.int64, len(counts))
    times = np.fromiter(counts.values(), np.float32, len(counts))
    out[ids] -= np.float32(presence) + np.float32(frequency) * times
    return out


def apply_repetition_penalty(logits: Logits, seen: NDArray[np.int64], penalty: float) -> Logits:
    """Make tokens less likely that stand in the prompt or the answer: `seen`, each id once.

    Keskar et al. 2019, https://arxiv.org/abs/1909.05858, with the sign's case as in transformers.
    """
    if penalty == 1.0 or not len(seen):
        return logits
    out, chosen, factor = logits.copy(), logits[seen], np.float32(penalty)
    out[seen] = np.where(chosen < 0, chosen * factor, chosen / factor)
    return out


def apply_logit_bias(logits: Logits, bias: Mapping[int, float]) -> Logits:
    """Add each bias to its token's logit; ids outside the vocabulary are a ValueError."""
    if not bias:
        return logits
    _check_bias(bias, len(logits))
    out = logits.copy()
    ids = np.fromiter(bias.keys(), np.int64, len(bias))
    out[ids] += np.fromiter(bias.values(), np.float32, len(bias))
    return out


def apply_temperature(logits: Logits, temperature: float) -> Logits:
    """logits / temperature: below 1 sharpens, above 1 flattens. 0 keeps the best token alone."""
    if temperature == 1.0:
        return logits
    if temperature == 0.0:
        out = np.full_like(logits, -np.inf)
        best = int(np.argmax(logits))
        out[best] = logits[best]
        return out
    # A tiny temperature may send the others to -inf, but the best stays at 0: so long as float32
    # doesn't round the temperature itself to nothing.
    divisor = max(np.float32(temperature), np.finfo(np.float32).tiny)
    with np.errstate(over="ignore"):
        scaled: Logits = (logits - logits.max()) / divisor
    return scaled


def apply_top_k(logits: Logits, k: int) -> Logits:
    """Keep the k largest logits; among equals at the edge the lower ids stay."""
    if k <= 0 or k >= len(logits):
        return logits
    return _keep_only(logits, best_ids(logits, k))


def apply_top_p(logits: Logits, top_p: float) -> Logits:
    """Nucleus sampling: the fewest likeliest tokens whose probabilities sum to `top_p` or more.

    Holtzman et al. 2020, https://arxiv.org/abs/1904.09751. The token that crosses is kept.
    """
    if top_p >= 1.0:
        return logits
    p = np.exp(logits - logits.max())  # not normalised
    mass = float(p.sum(dtype=np.float64))
    # Tokens below an even share of 1 - top_p hold less than that together, so the nucleus is
    # among the others: only these few need sorting.
    ids = np.flatnonzero(p >= (1.0 - top_p) * mass / len(p))
    order = ids[np.argsort(-logits[ids], kind="stable")]  # best first, ids on ties
    p_order = p[order].astype(np.float64)
    mass_before = np.cumsum(p_order) - p_order  # of the likelier tokens
    n_keep = max(1, int(np.count_nonzero(mass_before < top_p * mass)))
    return _keep_only(logits, order[:n_keep])


def apply_min_p(logits: Logits, min_p: float) -> Logits:
    """Keep tokens whose probability is at least `min_p` times the likeliest one's.

    Nguyen et al. 2024, https://arxiv.org/abs/2407.01082.
    """
    if min_p <= 0.0:
        return logits
    floor = float(logits.max()) + math.log(min_p)
    return np.where(logits >= floor, logits, np.float32(-np.inf))


def best_ids(logits: Logits, k: int) -> NDArray[np.intp]:
    """The ids of the k largest logits, best first; among equals the lower ids."""
    if k <= 0:
        return np.zeros(0, np.intp)
    # k blocks hold a value of at least the k-th largest block maximum: the top k reach it, and few
    # others do. A whole partition costs ten times as much.
    block = min(VOCABULARY_BLOCK, max(1, len(logits) // (2 * k)))  # at least 2k blocks
    maxima = np.maximum.reduceat(logits, np.arange(0, len(logits), block))
    floor = np.partition(maxima, -k)[-k] if k <= len(maxima) else -np.inf
    ids = np.flatnonzero(logits >= floor)  # ascending: a stable sort leaves ties so
    return ids[np.argsort(-logits[ids], kind="stable")[:k]]


def _keep_only(logits: Logits, ids: NDArray[np.intp]) -> Logits:
    out = np.full_like(logits, -np.inf)
    out[ids] = logits[ids]
    return out


def probabilities(logits: Logits) -> NDArray[np.float64]:
    """Softmax in float64, (vocab_size,)."""
    p: NDArray[np.float64] = np.subtract(logits, logits.max(), dtype=np.float64)
    np.exp(p, out=p)
    p /= p.sum()
    return p


def log_normalizer(logits: Logits) -> float:
    """log Σ exp(logits): logprob(token) = logits[token] - log_normalizer. Summed in float64."""
    top = logits.max()
    return float(top) + math.log(float(np.exp(logits - top).sum(dtype=np.float64)))


def draw(logits: Logits, u: float) -> int:
    """The token whose slice of the unit interval, laid out in id order, holds `u` (0 <= u < 1)."""
    p = np.exp(logits - logits.max())  # not normalised; zero where a filter has cut
    # First the block of tokens whose share of the interval holds u, then the token inside it.
    starts = np.arange(0, len(p), VOCABULARY_BLOCK)
    block_ends = np.cumsum(np.add.reduceat(p, starts), dtype=np.float64)
    target = u * block_ends[-1]
    block = min(int(np.searchsorted(block_ends, target, side="right")), len(starts) - 1)
    inside = p[starts[block] : starts[block] + VOCABULARY_BLOCK].astype(np.float64)
    before = block_ends[block - 1] if block else 0.0
    place = int(np.searchsorted(before + np.cumsum(inside), target, side="right"))
    token = int(starts[block]) + min(place, len(inside) - 1)
    # Rounding can point just past the last token with any mass; that one takes it.
    return token if p[token] > 0 else int(np.flatnonzero(p[:token])[-1])


def uniform(seed: int, stream: int, step: int) -> float:
    """Draw `step` of `stream` under `seed`, in [0, 1): Philox 4x64 keyed and counted by them.

    Salmon et al. 2011, https://doi.org/10.1145/2063384.2063405.
    """
    key = np.array([seed & MAX_SEED, stream], np.uint64)  # a list would go through float64
    bits = np.random.Philox(key=key, counter=[0, 0, 0, step])
    return float(np.random.Generator(bits).random())


def top_logprobs(logits: Logits, k: int) -> list[tuple[int, float]]:
    """The k likeliest tokens with their log-probabilities under the raw softmax, best first."""
    if k <= 0:
        return []
    norm = log_normalizer(logits)
    return [(int(i), float(logits[i]) - norm) for i in best_ids(logits, k)]


@dataclass(frozen=True)
class Pick:
    """A chosen token; `logprob` is under the softmax of the raw logits, before any filter."""

    token: int
    logprob: float
    chosen_by: ChosenBy


class Sampler:
    """One choice's draws: the filters in order, the tokens drawn so far, and the draw counter.

    Args:
        params: how to choose; a missing seed is drawn here, and kept in `self.seed`.
        stream: which of a request's n choices this is.
        prompt: its ids, which the penalty of repetitions counts in.
    """

    def __init__(
        self, params: SamplingParams, stream: int = 0, prompt: Sequence[int] | NDArray[Any] = ()
    ) -> None:
        self.params = params
        self.stream = stream
        self.seed = secrets.randbits(63) if params.seed is None else params.seed
        repeats = params.repetition_penalty != 1.0
        self._prompt = frozenset(int(id) for id in prompt) if repeats else frozenset[int]()
        self.picked: list[int] = []
        self._counts: dict[int, int] = {}

    def stages(
        self, logits: Logits, allowed: NDArray[np.bool_] | None = None
    ) -> list[tuple[str, Logits]]:
        """The logits after each filter, in order, as (name, vector); the last is drawn from."""
        params = self.params
        x = apply_mask(logits, allowed)
        stages = [("raw", logits), ("mask", x)]
        x = self._penalised(x)
        stages.append(("penalties", x))
        stages.append(("temperature", x := apply_temperature(x, params.temperature)))
        stages.append(("top_k", x := apply_top_k(x, params.top_k)))
        stages.append(("top_p", x := apply_top_p(x, params.top_p)))
        if params.min_p > 0.0:
            stages.append(("min_p", apply_min_p(x, params.min_p)))
        return stages

    def _penalised(self, x: Logits) -> Logits:
        """With every penalty and bias."""
        params = self.params
        if params.repetition_penalty != 1.0:
            seen = np.array(sorted(self._prompt | self._counts.keys()), np.int64)
            x = apply_repetition_penalty(x, seen, params.repetition_penalty)
        x = apply_penalties(x, self._counts, params.presence_penalty, params.frequency_penalty)
        return apply_logit_bias(x, params.logit_bias)

    def pick(
        self,
        logits: Logits,
        allowed: NDArray[np.bool_] | None = None,
        forced: int | None = None,
    ) -> Pick:
        """Choose the next token from logits (vocab_size,).

        Args:
            logits: raw, float32.
            allowed: (vocab_size,) bool: what a grammar permits; None permits all.
            forced: take this token whatever the logits say.

        Raises:
            ValueError: nothing is allowed, the logits hold NaN, or an id is out of range.
        """
        if forced is not None:
            if not 0 <= forced < len(logits):
                raise ValueError(f"token {forced} is not in the vocabulary of {len(logits)}")
            token, chosen_by = forced, "forced"
        else:
            token, chosen_by = self._choose(logits, allowed)
        self.picked.append(token)
        self._counts[token] = self._counts.get(token, 0) + 1
        logprob = float(logits[token]) - self._log_normalizer(logits)
        return Pick(token, logprob, chosen_by)  # type: ignore[arg-type]

    def _choose(self, logits: Logits, allowed: NDArray[np.bool_] | None) -> tuple[int, str]:
        params = self.params
        x = self._penalised(apply_mask(logits, allowed))
        best = int(np.argmax(x))  # the first on ties; NaN sorts first, so it is seen here
        if not x[best] > -np.inf:
            problem = "hold NaN" if np.isnan(x[best]) else "allow no token at all"
            raise ValueError(f"the logits {problem}")
        if params.temperature == 0.0:
            return best, "argmax"
        return self._draw(x, self._uniform()), "sample"

    # What takes the time, apart from the rest so that it can be compiled (engine/sampling.py).

    def _draw(self, x: Logits, u: float) -> int:
        params = self.params
        x = apply_temperature(x, params.temperature)
        x = apply_top_p(apply_top_k(x, params.top_k), params.top_p)
        return draw(apply_min_p(x, params.min_p), u)

    def _uniform(self) -> float:
        return uniform(self.seed, self.stream, len(self.picked))

    def _log_normalizer(self, logits: Logits) -> float:
        return log_normalizer(logits)

    def rewind(self, n: int) -> None:
        """Forget the last n picks: the next draw is the one that the first of them had."""
        if not 0 <= n <= len(self.picked):
            raise ValueError(f"can't rewind {n} of {len(self.picked)} picks")
        for _ in range(n):
            token = self.picked.pop()
            self._counts[token] -= 1
            if not self._counts[token]:
                del self._counts[token]

    def fork(self) -> Sampler:
        """An independent sampler in the same state: same seed, stream and history."""
        return self.at(self.picked)

    def at(self, picked: Sequence[int]) -> Sampler:
        """An independent sampler with the same seed and stream that has picked these tokens."""
        twin = Sampler(self.params, self.stream, tuple(self._prompt))
        twin.seed, twin.picked, twin._counts = self.seed, list(picked), dict(Counter(picked))
        return twin


# What others call sampling, or pass beside it, and where it is here.
ELSEWHERE = {
    "stop": "lm.session(prompt).run(until=…) stops at a text",
    "system": 'give messages, the first of them {"role": "system", "content": …}',
    "do_sample": "temperature=0 is greedy",
}


def sampling_params(given: Mapping[str, Any], beside: Sequence[str] = ()) -> SamplingParams:
    """Parameters by name; ValueError names one that isn't there, or is out of its range.

    `beside` are the caller's other parameters, one of which may have been meant.
    """
    known = [f.name for f in fields(SamplingParams)]
    for name in given:
        if name not in known:
            raise ValueError(
                f"there is no sampling parameter {name!r}{_meant(name, [*known, *beside])}; "
                f"there are {', '.join(known)}"
            )
    return SamplingParams(**given)


def changed_params(
    params: SamplingParams, given: Mapping[str, Any], vocab_size: int
) -> SamplingParams:
    """Parameters, some of them otherwise; ValueError as in `sampling_params`."""
    sampling_params(given)
    changed = replace(params, **given)
    _check_bias(changed.logit_bias, vocab_size)
    return changed


def _check_bias(bias: Mapping[int, float], vocab_size: int) -> None:
    if bias and (largest := max(bias)) >= vocab_size:
        raise ValueError(f"logit_bias: token {largest} is not in the vocabulary of {vocab_size}")


def _meant(name: str, known: Sequence[str]) -> str:
    """What to write instead, as far as it can be guessed."""
    if name in ELSEWHERE:
        return f": {ELSEWHERE[name]}"
    near = get_close_matches(name, known, 1)
    return f": did you mean {near[0]}?" if near else ""


class Draws(NamedTuple):
    """How tokens are drawn: what a sampler is made of but for what it has picked."""

    params: SamplingParams
    seed: int
    stream: int

    @classmethod
    def of(cls, sampler: Sampler) -> Draws:
        """A sampler's."""
        return cls(sampler.params, sampler.seed, sampler.stream)

    def sampler(self, prompt: Sequence[int], picked: Sequence[int]) -> Sampler:
        """One that has picked these tokens behind a prompt."""
        sampler = Sampler(self.params, self.stream, prompt)
        sampler.seed = self.seed
        return sampler.at(picked)
