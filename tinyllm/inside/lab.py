"""The break-it lab: a classic bug as an argument of a forward, and where it shows first.

Each breakage is a mistake that people have really made in a transformer of their own. Most don't
crash: they give fluent nonsense, or the right answer until the context grows. `first_difference`
runs the whole and the broken forward side by side and names the first hook point where they part.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tinyllm.config import ModelConfig
from tinyllm.inside.breakage import Breakage, Scene
from tinyllm.inside.hooks import WHOLE, Conditions, HookTap
from tinyllm.inside.points import points_by_name
from tinyllm.kernels import reference as ops
from tinyllm.model import Model
from tinyllm.prompt import Prompt
from tinyllm.runner import Array

if TYPE_CHECKING:
    from tinyllm.lm import LM, Images, PromptLike

PROMPT = "The capital of France is Paris. The capital of Italy is"


# The wrong forms. Each is what the right one is, but for the line that is wrong.


def _turned(
    at: Scene, source: str, turn: Callable[[Array, Array, Array], Array], tables: Any = None
) -> Array:
    """Queries or keys turned in a wrong way, or by the wrong angles."""
    cos, sin = tables or ops.rope_tables(at.config, at.positions, at.right.dtype)
    return turn(at.seen[source], cos, sin)


def _interleaved(x: Array, cos: Array, sin: Array) -> Array:
    a, b = x[..., 0::2], x[..., 1::2]  # neighbours turn together; the checkpoint's are half apart
    cos, sin = cos[:, None, :], sin[:, None, :]
    out = np.empty_like(x)
    out[..., 0::2], out[..., 1::2] = a * cos - b * sin, b * cos + a * sin
    return out


def _rope_pairing(source: str) -> Callable[[Scene], Array]:
    return lambda at: _turned(at, source, _interleaved)


def _rope_theta(source: str) -> Callable[[Scene], Array]:
    def wrong(at: Scene) -> Array:
        theta = 10_000.0 if at.config.rope_theta != 10_000.0 else 500_000.0
        config = replace(at.config, rope_theta=theta)
        tables = ops.rope_tables(config, at.positions, at.right.dtype)
        return _turned(at, source, ops.apply_rope, tables)

    return wrong


def _positions_lag(source: str) -> Callable[[Scene], Array]:
    def wrong(at: Scene) -> Array:
        cached = at.positions[0] > 0
        positions = at.positions - 1 if cached else at.positions
        tables = ops.rope_tables(at.config, positions, at.right.dtype)
        return _turned(at, source, ops.apply_rope, tables)

    return wrong


def _scores(at: Scene, keys: Array) -> Array:
    """q·k · score_scale with nothing hidden, (n_heads, T, S); keys (S, n_kv_heads, head_dim)."""
    q = at.seen["attn.hook_rot_q"]
    by_head = np.repeat(keys, q.shape[1] // keys.shape[1], axis=1)
    scores: Array = np.einsum("thd,shd->hts", q, by_head, dtype=q.dtype)
    return scores * scores.dtype.type(at.config.score_scale)


def _no_mask(at: Scene) -> Array:
    hidden = np.isneginf(at.right)
    return np.where(hidden, _scores(at, at.keys()), at.right)


def _no_mask_behind_cache(at: Scene) -> Array:
    # "The cache is used for decoding, where there is one query."
    return _no_mask(at) if at.right.shape[1] != at.right.shape[2] else at.right


def _striped(at: Scene, heads: Array) -> Array:
    """Keys or values dealt out as h % n_kv_heads, not h // group: one for each query head."""
    return heads[:, np.arange(at.config.n_heads) % at.config.n_kv_heads]


def _striped_scores(at: Scene) -> Array:
    scores = _scores(at, _striped(at, at.keys()))
    return np.where(np.isneginf(at.right), at.right, scores)


def _striped_mix(at: Scene) -> Array:
    return ops.attention_mix(at.seen["attn.hook_pattern"], _striped(at, at.values()))


def _unscaled_scores(at: Scene) -> Array:
    return at.right / at.right.dtype.type(at.config.score_scale)


def _small_eps(source: str) -> Callable[[Scene], Array]:
    def wrong(at: Scene) -> Array:
        x = at.seen[source][-len(at.right) :]
        return ops.rms_norm(x, at.weights[at.tensor], at.config.norm_eps * 0.1)

    return wrong


def _layer_norm(source: str) -> Callable[[Scene], Array]:
    def wrong(at: Scene) -> Array:
        x = at.seen[source][-len(at.right) :]
        centred = x - x.mean(axis=-1, keepdims=True)
        return ops.rms_norm(centred, at.weights[at.tensor], at.config.norm_eps)

    return wrong


def _swapped_swiglu(at: Scene) -> Array:
    return ops.swiglu(at.seen["mlp.hook_pre_linear"], at.seen["mlp.hook_pre"])


def _geglu(at: Scene) -> Array:
    gate, up = at.seen["mlp.hook_pre"], at.seen["mlp.hook_pre_linear"]
    inner = math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)
    gelu: Array = 0.5 * gate * (1 + np.tanh(inner))
    return gelu * up


def _at_rotary(wrong: Callable[[str], Callable[[Scene], Array]]) -> Mapping[str, Any]:
    return {"attn.hook_rot_q": wrong("attn.hook_q"), "attn.hook_rot_k": wrong("attn.hook_k")}


def _at_norms(wrong: Callable[[str], Callable[[Scene], Array]]) -> Mapping[str, Any]:
    return {
        "ln1.hook_normalized": wrong("hook_resid_pre"),
        "ln2.hook_normalized": wrong("hook_resid_mid"),
        "ln_final.hook_normalized": wrong("hook_resid_post"),
    }


BREAKAGES: dict[str, Breakage] = {
    breakage.name: breakage
    for breakage in (
        Breakage(
            "rope-pairing",
            "rotary turns element i with i + 1 instead of i + head_dim/2",
            _at_rotary(_rope_pairing),
        ),
        Breakage(
            "rope-theta",
            "rotary uses the paper's base of 10,000 instead of the checkpoint's",
            _at_rotary(_rope_theta),
        ),
        Breakage(
            "position-off-by-one",
            "behind a cache, positions are counted one too low",
            _at_rotary(_positions_lag),
        ),
        Breakage(
            "causal-mask",
            "no mask: in the prompt, every token sees those after it",
            {"attn.hook_attn_scores": _no_mask},
        ),
        Breakage(
            "mask-behind-cache",
            "no mask once something is cached: a prompt in two chunks sees ahead in the second",
            {"attn.hook_attn_scores": _no_mask_behind_cache},
        ),
        Breakage(
            "kv-head-map",
            "query head h reads key head h % n_kv_heads instead of h // group",
            {"attn.hook_attn_scores": _striped_scores, "attn.hook_z": _striped_mix},
        ),
        Breakage(
            "softmax-scale",
            "scores are not divided by sqrt(head_dim)",
            {"attn.hook_attn_scores": _unscaled_scores},
        ),
        Breakage(
            "norm-eps",
            "the norm's eps is a tenth of the checkpoint's",
            _at_norms(_small_eps),
        ),
        Breakage(
            "layer-norm",
            "the norm subtracts the mean, as LayerNorm does",
            _at_norms(_layer_norm),
        ),
        Breakage(
            "gate-up-swap",
            "SiLU is applied to the up projection instead of the gate",
            {"mlp.hook_post": _swapped_swiglu},
        ),
        Breakage(
            "activation",
            "the gate goes through GELU instead of SiLU",
            {"mlp.hook_post": _geglu},
        ),
    )
}


def break_it(name: str) -> Breakage:
    """A classic bug: to be given to a call as broken=, or to a thread by `with break_it(name): …`.

    Raises:
        ValueError: an unknown name; `lab.BREAKAGES` has all of them.
    """
    if name not in BREAKAGES:
        raise ValueError(f"there is no breakage {name!r}; there are {', '.join(BREAKAGES)}")
    return BREAKAGES[name]


Broken = str | Breakage | Iterable[str | Breakage] | None


def breakages(broken: Broken) -> tuple[Breakage, ...]:
    """What a caller's broken= names: a breakage, its name, several, or none."""
    if broken is None:
        return ()
    given = [broken] if isinstance(broken, (str, Breakage)) else list(broken)
    return tuple(break_it(b) if isinstance(b, str) else b for b in given)


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
    """A recorder that raises _Parted at the first array that is not the whole run's."""

    config: ModelConfig
    whole: Mapping[str, Array]
    forward: int
    positions: tuple[int, ...]
    tolerance: float

    def __call__(self, name: str, got: Array) -> None:
        found = _largest_gap(self.whole[name], got, self.tolerance)
        if found is not None:
            point = points_by_name(self.config).get(name)
            source = point.source if point else "model.py"
            raise _Parted(Difference(name, self.forward, self.positions, *found, source))


def first_difference(
    lm: LM | Model,
    broken: Breakage | str | LM | Model,
    prompt: PromptLike | Prompt = PROMPT,
    *,
    images: Images = (),
    tolerance: float = 1e-4,
) -> Difference | None:
    """The first hook point, in the order of the forward pass, where two models part.

    The prompt runs as two chunks and two single tokens over one cache, so that what is wrong with
    a cache alone shows as well.

    Args:
        lm: the one to trust.
        broken: a breakage (or its name), or another model of the same shape.
        prompt, images: as `LM.generate` takes them (of a bare Model: ids, or a Prompt), at least 5
            tokens; everything of one forward is held in memory.
        tolerance: the largest gap to let pass, as a share of the array's largest magnitude.

    Returns:
        The first difference, or None when there is none.
    """
    model = lm if isinstance(lm, Model) else lm.model
    if isinstance(broken, (str, Breakage)):
        other: Any = model
        under = Conditions(broken=breakages(broken))
    else:
        other, under = getattr(broken, "model", broken), WHOLE
    if not isinstance(other, Model) or other.config != model.config:
        raise ValueError("the second must be a breakage, or a model of the same shape as the first")
    if isinstance(prompt, Prompt):
        asked = prompt
    elif not isinstance(lm, Model):
        asked = lm.prompt(prompt, images)
    elif isinstance(prompt, str) or not all(isinstance(t, (int, np.integer)) for t in prompt):
        raise ValueError("a bare Model has no tokenizer; give the prompt as token ids")
    else:
        asked = Prompt(np.array(prompt, np.int32))
    ids = asked.tokens.tolist()
    if len(ids) < 5:
        raise ValueError(f"the prompt needs at least 5 tokens to be cut up, not {len(ids)}")

    half = (len(ids) - 2) // 2
    chunks = [(0, half), (half, len(ids) - 2), (len(ids) - 2, len(ids) - 1),
              (len(ids) - 1, len(ids))]  # fmt: skip
    right_cache, wrong_cache = model.new_cache(len(ids)), model.new_cache(len(ids))
    for forward, (start, end) in enumerate(chunks):
        arrays: dict[str, Array] = {}
        where, rows = asked.images_between(start, end)
        given: Any = {"image_positions": where, "image_rows": rows}
        tap = HookTap(model, right_cache, WHOLE, len(ids), arrays.__setitem__)
        arrays["logits"] = model.forward(ids[start:end], right_cache, tap=tap, **given)

        check = _Check(model.config, arrays, forward, tuple(range(start, end)), tolerance)
        wrong = HookTap(other, wrong_cache, under, len(ids), check)
        try:
            check("logits", other.forward(ids[start:end], wrong_cache, tap=wrong, **given))
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
