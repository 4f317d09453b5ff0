"""A token's logit, its probabilities, and what each filter of the sampler did to it, as formulas.

The logit is a product with the unembedding, made by the forward; what follows it is the sampler's,
in the order mask, penalties and bias, temperature, top-k, top-p, min-p, draw (`sampler.py`). Each
formula opens the one before it, down to the weights.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tinyllm import sampler as sampler_module
from tinyllm.distribution import Distribution
from tinyllm.inside.explain import Explanation, kernel_value
from tinyllm.inside.formulas import Term, Worked, short, softmax_share, weighted_sum
from tinyllm.inside.points import FINAL
from tinyllm.inside.replay import check_index
from tinyllm.model import Model
from tinyllm.sampler import best_ids

if TYPE_CHECKING:
    from tinyllm.inside.rerun import Rerun

FILTERS = ("mask", "penalties", "temperature", "top_k", "top_p", "min_p")
CHOICE_NAMES = ("logits", "p_raw", *FILTERS, "p")


def explain_choice(rerun: Rerun, distribution: Distribution, name: str, token: int) -> Explanation:
    """Explain one token's place in what is drawn from.

    Args:
        rerun: the forward behind the logits.
        distribution: raw logits and sampler, as they were before the draw.
        name: one of CHOICE_NAMES.
        token: its id.

    Raises:
        ValueError: the id is out of range.
    """
    check_index("token", token, len(distribution.logits))
    token %= len(distribution.logits)
    if name == "logits":
        worked, value = _logit(rerun, token), float(rerun.replay.logits[token])
        source = _line_of(Model.unembed)
    elif name in ("p_raw", "p"):
        worked, value = _probability(rerun, distribution, name, token)
        source = _line_of(sampler_module.probabilities)
    else:
        worked, value = _filtered(rerun, distribution, name, token)
        source = _line_of(_FUNCTIONS[name])
    at, line = source
    return Explanation(
        name=name,
        where={"position": len(rerun.tokens) - 1, "dim": token},
        token=rerun.tokenizer.token_text(token, rerun.tokenizer.unfinished(rerun.tokens)),
        formula=worked.formula,
        filled=worked.filled,
        value=value,
        recomputed=worked.value,
        source=at,
        line=line,
        tensor=_head_tensor(rerun) if name == "logits" else "",
        kernel=kernel_value(rerun, worked),
        terms=worked.terms,
    )


def _head_tensor(rerun: Rerun) -> str:
    tied = rerun.model.config.tie_embeddings
    return "model.embed_tokens.weight" if tied else "lm_head.weight"


def _logit(rerun: Rerun, token: int) -> Worked:
    """The final norm's output times the token's row of the unembedding."""
    x = rerun.replay.activations[FINAL][-1].astype(np.float64)
    head = rerun.model.head_weight
    opens = [{"name": FINAL, "dim": j} for j in range(len(x))]
    filled, terms = weighted_sum([f"j={j}" for j in range(len(x))], x, head[token].astype(float),
                                 opens)  # fmt: skip
    formula, value = f"Σⱼ x[j] · unembedding[{token}, j]", float(x @ head[token].astype(np.float64))
    config = rerun.model.config
    if (bias := rerun.model.weights.get("lm_head.bias")) is not None:
        own = float(bias[token])
        terms = sorted([*terms, Term("bias", short(own), own)], key=lambda term: -abs(term.value))
        value, formula, filled = value + own, f"{formula} + bias", f"{filled} + {short(own)}"
    if config.logit_scale != 1.0:
        value, formula = value * config.logit_scale, f"({formula}) · logit scale"
        filled = f"({filled}) · {short(config.logit_scale)}"
    if (cap := config.logit_cap) is not None:
        value, formula = cap * math.tanh(value / cap), f"cap · tanh({formula} / cap)"
        filled = f"{short(cap)} · tanh(({filled}) / {short(cap)})"
    plain = bias is None and config.logit_scale == 1.0 and config.logit_cap is None

    def kernel(k: Any, dtype: str) -> float:
        return float(k.product(head, token, x.astype(np.float32), dtype))

    return Worked(formula, filled, value, terms, kernel if plain else None)


def _probability(
    rerun: Rerun, distribution: Distribution, name: str, token: int
) -> tuple[Worked, float]:
    """Softmax over the raw logits, or over what the filters have left."""
    raw = name == "p_raw"
    logits = distribution.logits if raw else distribution.stages[-1].logits
    x = logits.astype(np.float64)
    value = float((distribution.p_raw if raw else distribution.p)[token])
    before = "logits" if raw else distribution.stages[-1].name
    if np.isneginf(x[token]):
        cut_by = distribution.standing(token).cut_by
        term = Term(f"cut by {cut_by}", "exp(−∞)", 0.0, {"name": cut_by, "dim": token})
        return Worked("exp(−∞) / Σⱼ exp(x[j] − max)", "0", 0.0, [term]), value
    order = best_ids(logits, 100)  # a softmax's smaller terms are many and nothing
    shown = np.unique(np.append(order[np.isfinite(x[order])], token))
    begun = rerun.tokenizer.unfinished(rerun.tokens)
    labels = [f"'{rerun.tokenizer.token_text(int(t), begun)}'" for t in shown]  # one line already
    opens: list[dict[str, Any]] = [{"name": before, "dim": int(t)} for t in shown]
    _, _, terms = softmax_share(x[shown], int(np.searchsorted(shown, token)), labels, opens)
    top = float(x.max())
    total = float(np.exp(x - top).sum())
    n_terms = int(np.count_nonzero(np.isfinite(x)))
    filled = f"exp({short(x[token])} − {short(top)}) / {short(total)} (the sum of {n_terms:,})"
    formula = "exp(x[token] − max) / Σⱼ exp(x[j] − max)"
    return Worked(formula, filled, math.exp(float(x[token]) - top) / total, terms), value


def _filtered(
    rerun: Rerun, distribution: Distribution, name: str, token: int
) -> tuple[Worked, float]:
    """A filter's own rule for one token: what it compared, and the logit it left."""
    stages = [stage.name for stage in distribution.stages]
    if name not in stages:
        raise ValueError(f"{name} is off here; what the filters did is in {', '.join(stages)}")
    after = stages.index(name)
    x = distribution.stages[after - 1].logits
    value = float(distribution.stages[after].logits[token])
    before = float(x[token])
    earlier = stages[after - 1]
    opens = {"name": "logits" if earlier == "raw" else earlier, "dim": token}
    terms = [Term(f"logit before {name}", short(before), before, opens)]
    if math.isinf(before):
        return Worked("cut before", "−∞", -math.inf, terms), value
    formula, filled, result = _RULES[name](distribution, x, token, token in rerun.tokens)
    return Worked(formula, filled, result, terms), value


# Each rule gives a formula, the same with values, and the logit that is left: -inf for a cut.
# `seen` says whether the token stands in the prompt or the answer.
_Ruled = tuple[str, str, float]


def _mask_rule(d: Distribution, x: Any, token: int, seen: bool) -> _Ruled:
    if d.allowed is None:
        return "x (no grammar is set)", short(x[token]), float(x[token])
    kept = bool(d.allowed[token])
    return ("x if the grammar allows the token, else −∞", "allowed" if kept else "not allowed",
            float(x[token]) if kept else -math.inf)  # fmt: skip


def _penalties_rule(d: Distribution, x: Any, token: int, seen: bool) -> _Ruled:
    params, own = d.sampler.params, float(x[token])
    count = d.sampler.picked.count(token)
    bias = float(params.logit_bias.get(token, 0.0))
    factor = params.repetition_penalty if seen else 1.0
    repeated = own * factor if own < 0 else own / factor
    presence = params.presence_penalty if count else 0.0
    first = short(own) if factor == 1.0 else f"{short(own)} {'·' if own < 0 else '/'} {factor:g}"
    return (
        "x (over the repetition penalty, if seen) − presence·[count > 0] − frequency·count + bias",
        f"{first} − {params.presence_penalty:g}·{int(count > 0)} − "
        f"{params.frequency_penalty:g}·{count} + {bias:g}",
        repeated - (presence + params.frequency_penalty * count) + bias,
    )


def _temperature_rule(d: Distribution, x: Any, token: int, seen: bool) -> _Ruled:
    temperature, top = d.sampler.params.temperature, float(x.max())
    if temperature == 1.0:
        return "x (temperature 1 changes nothing)", short(x[token]), float(x[token])
    if temperature == 0.0:
        best = int(np.argmax(x))
        told = "the largest" if best == token else f"{short(x[token])} < {short(top)}"
        return ("x if it is the largest, else −∞", told,
                float(x[token]) if best == token else -math.inf)  # fmt: skip
    value = (float(x[token]) - top) / temperature
    return "(x − max) / temperature", f"({short(x[token])} − {short(top)}) / {temperature:g}", value


def _top_k_rule(d: Distribution, x: Any, token: int, seen: bool) -> _Ruled:
    k = d.sampler.params.top_k
    if k <= 0 or k >= len(x):
        return "x (top_k is off)", short(x[token]), float(x[token])
    larger = int(np.count_nonzero(x > x[token]) + np.count_nonzero(x[:token] == x[token]))
    kept = larger < k
    return (
        f"x if fewer than k = {k} are larger, else −∞",
        f"{larger:,} are larger: {'kept' if kept else 'cut'}",
        float(x[token]) if kept else -math.inf,
    )


def _top_p_rule(d: Distribution, x: Any, token: int, seen: bool) -> _Ruled:
    limit = d.sampler.params.top_p
    if limit >= 1.0:
        return "x (top_p is off)", short(x[token]), float(x[token])
    p = np.exp(x.astype(np.float64) - float(x.max()))
    larger = (x > x[token]) | ((x == x[token]) & (np.arange(len(x)) < token))
    before = float(p[larger].sum() / p.sum())
    kept = not larger.any() or before < limit
    return (
        f"x if the likelier tokens hold less than top_p = {limit:g} together, else −∞",
        f"they hold {before:.4g}: {'kept' if kept else 'cut'}",
        float(x[token]) if kept else -math.inf,
    )


def _min_p_rule(d: Distribution, x: Any, token: int, seen: bool) -> _Ruled:
    floor, top = d.sampler.params.min_p, float(x.max())
    share = math.exp(float(x[token]) - top)
    kept = float(x[token]) >= top + math.log(floor)
    return (
        f"x if exp(x − max) is at least min_p = {floor:g}, else −∞",
        f"{share:.4g}: {'kept' if kept else 'cut'}",
        float(x[token]) if kept else -math.inf,
    )


_RULES: dict[str, Callable[[Distribution, Any, int, bool], _Ruled]] = {
    "mask": _mask_rule,
    "penalties": _penalties_rule,
    "temperature": _temperature_rule,
    "top_k": _top_k_rule,
    "top_p": _top_p_rule,
    "min_p": _min_p_rule,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "mask": sampler_module.apply_mask,
    "penalties": sampler_module.apply_penalties,
    "temperature": sampler_module.apply_temperature,
    "top_k": sampler_module.apply_top_k,
    "top_p": sampler_module.apply_top_p,
    "min_p": sampler_module.apply_min_p,
}


def _line_of(function: Callable[..., Any]) -> tuple[str, str]:
    """("sampler.py:123", the line) where a function begins."""
    file = Path(inspect.getsourcefile(function) or "").name
    try:
        lines, number = inspect.getsourcelines(function)
    except OSError:  # a frozen or zipped install has no source to point to
        return file, ""
    return f"{file}:{number}", lines[0].strip()
