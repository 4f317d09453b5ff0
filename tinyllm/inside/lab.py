"""The break-it lab: put a classic bug into the readable path, and find where it shows first.

Each breakage is a mistake that people have really made in a transformer of their own. Most don't
crash: they give fluent nonsense, or the right answer until the context grows. `first_difference`
runs the whole and the broken model side by side and names the first hook point where they part.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tinyllm.config import ModelConfig
from tinyllm.inside.hooks import READABLE_ONLY, HookTap, points_by_name
from tinyllm.kernels import reference as ops
from tinyllm.model import Model
from tinyllm.runner import Array

if TYPE_CHECKING:
    from tinyllm.lm import LM

PROMPT = "The capital of France is Paris. The capital of Italy is"


@dataclass(frozen=True)
class Breakage:
    """A mistake: what goes wrong, and the operations of `kernels.reference` in its wrong form."""

    what: str
    operations: Mapping[str, Callable[..., Any]]


# The wrong forms. Each is what the right one is, but for the line that is wrong.


def _interleaved_rope(x: Array, cos: Array, sin: Array) -> Array:
    a, b = x[..., 0::2], x[..., 1::2]  # neighbours turn together; the checkpoint's are half apart
    cos, sin = cos[:, None, :], sin[:, None, :]
    out = np.empty_like(x)
    out[..., 0::2], out[..., 1::2] = a * cos - b * sin, b * cos + a * sin
    return out


def _no_mask(n_tokens: int, n_visible: int) -> NDArray[np.bool_]:
    return np.ones((n_tokens, n_visible), bool)


def _mask_without_a_cache_only(n_tokens: int, n_visible: int) -> NDArray[np.bool_]:
    if n_tokens != n_visible:  # "the cache is used for decoding, where there is one query"
        return np.ones((n_tokens, n_visible), bool)
    return _causal_mask(n_tokens, n_visible)


def _positions_lag(
    config: ModelConfig, positions: NDArray[np.int64], dtype: Any = np.float32
) -> tuple[Array, Array]:
    cached = positions[0] > 0
    return _rope_tables(config, positions - 1 if cached else positions, dtype)


def _small_theta(
    config: ModelConfig, positions: NDArray[np.int64], dtype: Any = np.float32
) -> tuple[Array, Array]:
    theta = 10_000.0 if config.rope_theta != 10_000.0 else 500_000.0
    return _rope_tables(replace(config, rope_theta=theta), positions, dtype)


def _striped_scores(q: Array, keys: Array, *options: Any) -> Array:
    n_heads, n_kv = q.shape[1], keys.shape[1]
    striped = keys[:, np.arange(n_heads) % n_kv]  # h % n_kv, not h // group
    return _attention_scores(q, striped, *options)


def _striped_mix(pattern: Array, values: Array) -> Array:
    n_heads, n_kv = pattern.shape[0], values.shape[1]
    return _attention_mix(pattern, values[:, np.arange(n_heads) % n_kv])


def _unscaled_scores(q: Array, keys: Array, scale: float | None, *options: Any) -> Array:
    return _attention_scores(q, keys, 1.0, *options)


def _small_eps_scale(x: Array, eps: float) -> Array:
    return _rms_scale(x, eps * 0.1)


def _layer_norm(x: Array, weight: Array, eps: float) -> Array:
    return _rms_norm(x - x.mean(axis=-1, keepdims=True), weight, eps)


def _swapped_swiglu(gate: Array, up: Array) -> Array:
    return _swiglu(up, gate)


def _geglu(gate: Array, up: Array) -> Array:
    inner = math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)
    gelu: Array = 0.5 * gate * (1 + np.tanh(inner))
    return gelu * up


_rms_norm, _rms_scale, _swiglu = ops.rms_norm, ops.rms_scale, ops.swiglu
_rope_tables, _causal_mask = ops.rope_tables, ops.causal_mask
_attention_scores, _attention_mix = ops.attention_scores, ops.attention_mix

BREAKAGES: dict[str, Breakage] = {
    "rope-pairing": Breakage(
        "rotary turns element i with i + 1 instead of i + head_dim/2",
        {"apply_rope": _interleaved_rope},
    ),
    "rope-theta": Breakage(
        "rotary uses the paper's base of 10,000 instead of the checkpoint's",
        {"rope_tables": _small_theta},
    ),
    "position-off-by-one": Breakage(
        "behind a cache, positions are counted one too low",
        {"rope_tables": _positions_lag},
    ),
    "causal-mask": Breakage(
        "no mask: in the prompt, every token sees those after it",
        {"causal_mask": _no_mask},
    ),
    "mask-behind-cache": Breakage(
        "no mask once something is cached: a prompt in two chunks sees ahead in the second",
        {"causal_mask": _mask_without_a_cache_only},
    ),
    "kv-head-map": Breakage(
        "query head h reads key head h % n_kv_heads instead of h // group",
        {"attention_scores": _striped_scores, "attention_mix": _striped_mix},
    ),
    "softmax-scale": Breakage(
        "scores are not divided by sqrt(head_dim)",
        {"attention_scores": _unscaled_scores},
    ),
    "norm-eps": Breakage(
        "the norm's eps is a tenth of the checkpoint's",
        {"rms_scale": _small_eps_scale},
    ),
    "layer-norm": Breakage(
        "the norm subtracts the mean, as LayerNorm does",
        {"rms_norm": _layer_norm},
    ),
    "gate-up-swap": Breakage(
        "SiLU is applied to the up projection instead of the gate",
        {"swiglu": _swapped_swiglu},
    ),
    "activation": Breakage(
        "the gate goes through GELU instead of SiLU",
        {"swiglu": _geglu},
    ),
}


class Broken:
    """A breakage as a context manager: the readable path is wrong inside the `with` block.

    Sessions on the compiled path refuse to step meanwhile, rather than quietly do without it. Can
    be entered again, but not twice at once.
    """

    def __init__(self, name: str, breakage: Breakage) -> None:
        self.name, self.what = name, breakage.what
        self._wrong = breakage.operations
        self._right: dict[str, Any] = {}

    def __enter__(self) -> Broken:
        if READABLE_ONLY:
            raise RuntimeError(f"{READABLE_ONLY[-1]} is already broken; one thing at a time")
        self._right = {name: getattr(ops, name) for name in self._wrong}
        for name, wrong in self._wrong.items():
            setattr(ops, name, wrong)
        READABLE_ONLY.append(self.name)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for name, right in self._right.items():
            setattr(ops, name, right)
        READABLE_ONLY.remove(self.name)

    def __repr__(self) -> str:
        return f"break_it({self.name!r}): {self.what}"


def break_it(name: str) -> Broken:
    """A classic bug, to be put into the readable path by `with break_it(name): …`.

    Raises:
        ValueError: an unknown name; `lab.BREAKAGES` has all of them.
    """
    if name not in BREAKAGES:
        raise ValueError(f"there is no breakage {name!r}; there are {', '.join(BREAKAGES)}")
    return Broken(name, BREAKAGES[name])


@dataclass(frozen=True)
class Difference:
    """Where two runs part.

    Attributes:
        name: the hook point ("logits" behind the last one).
        forward: which forward of the schedule, from 0: two chunks of the prompt, then its last
            two tokens one at a time over the cache.
        positions: (T,) absolute positions that this forward computes.
        index: of the entry that differs most.
        expected, got: that entry in the whole and in the broken run.
        relative: its gap, in units of the largest magnitude of the whole run's array.
        source: the line of model.py.
    """

    name: str
    forward: int
    positions: tuple[int, ...]
    index: tuple[int, ...]
    expected: float
    got: float
    relative: float
    source: str

    def __repr__(self) -> str:
        first, last = self.positions[0], self.positions[-1]
        where = f"position {first}" if first == last else f"positions {first} to {last}"
        return (
            f"Difference(first at {self.name}, {self.source}, {where}: entry "
            f"{list(self.index)} is {self.got:.5g} instead of {self.expected:.5g})"
        )


class _Parted(Exception):
    def __init__(self, difference: Difference) -> None:
        self.difference = difference


@dataclass(frozen=True)
class _Check:
    """A tap that raises _Parted at the first array that is not the whole run's."""

    config: ModelConfig
    whole: Mapping[str, Array]
    forward: int
    positions: tuple[int, ...]
    tolerance: float

    def __call__(self, name: str, got: Array) -> Array:
        found = _largest_gap(self.whole[name], got, self.tolerance)
        if found is not None:
            point = points_by_name(self.config).get(name)
            source = point.source if point else "model.py"
            raise _Parted(Difference(name, self.forward, self.positions, *found, source))
        return got


def first_difference(
    lm: LM | Model,
    broken: Broken | str | LM | Model,
    prompt: str | Sequence[int] = PROMPT,
    *,
    tolerance: float = 1e-4,
) -> Difference | None:
    """The first hook point, in the order of the forward pass, where two models part.

    The prompt runs as two chunks and two single tokens over one cache, so that what is wrong with
    a cache alone shows as well.

    Args:
        lm: the one to trust.
        broken: a breakage (or its name), or another model of the same shape.
        prompt: text, or at least 5 ids; everything of one forward is held in memory.
        tolerance: the largest gap to let pass, as a share of the array's largest magnitude.

    Returns:
        The first difference, or None when there is none.
    """
    model = lm if isinstance(lm, Model) else lm.model
    if isinstance(broken, str):
        broken = break_it(broken)
    other = model if isinstance(broken, Broken) else getattr(broken, "model", broken)
    if not isinstance(other, Model) or other.config != model.config:
        raise ValueError("the second must be a breakage, or a model of the same shape as the first")
    if isinstance(prompt, str):
        if isinstance(lm, Model):
            raise ValueError("a bare Model has no tokenizer; give the prompt as token ids")
        prompt = lm.tokenizer.encode_prompt(prompt)
    ids = [int(t) for t in prompt]
    if len(ids) < 5:
        raise ValueError(f"the prompt needs at least 5 tokens to be cut up, not {len(ids)}")

    half = (len(ids) - 2) // 2
    chunks = [(0, half), (half, len(ids) - 2), (len(ids) - 2, len(ids) - 1),
              (len(ids) - 1, len(ids))]  # fmt: skip
    right_cache, wrong_cache = model.new_cache(len(ids)), model.new_cache(len(ids))
    for forward, (start, end) in enumerate(chunks):
        arrays: dict[str, Array] = {}
        tap = HookTap(model.config, right_cache, (), len(ids), arrays.__setitem__)
        arrays["logits"] = model.forward(ids[start:end], right_cache, tap=tap)

        check = _Check(model.config, arrays, forward, tuple(range(start, end)), tolerance)
        try:
            with broken if isinstance(broken, Broken) else nullcontext():
                check("logits", other.forward(ids[start:end], wrong_cache, tap=check))
        except _Parted as parted:
            return parted.difference
    return None


def _largest_gap(
    expected: Array, got: Array, tolerance: float
) -> tuple[tuple[int, ...], float, float, float] | None:
    """(index, expected, got, relative gap) of the worst entry, if it is beyond the tolerance."""
    with np.errstate(invalid="ignore"):
        gap = np.where(expected == got, 0.0, np.abs(expected.astype(np.float64) - got))
    gap[np.isnan(gap)] = np.inf
    finite = np.abs(expected[np.isfinite(expected)])
    scale = float(finite.max()) if finite.size else 1.0
    worst = np.unravel_index(int(np.argmax(gap)), gap.shape)
    relative = float(gap[worst]) / (scale or 1.0)
    if relative <= tolerance:
        return None
    index = tuple(int(i) for i in worst)
    return index, float(expected[worst]), float(got[worst]), relative
