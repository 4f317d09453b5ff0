"""How the numbers inside attention are made: heads normed and turned, scores, shares, the mix."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyllm.config import ModelConfig
from tinyllm.inside.formulas import Entry, Norm, Term, Worked, short, softmax_share, weighted_sum
from tinyllm.kernels import reference as ops
from tinyllm.runner import Array


def stages(config: ModelConfig, layer: int, letter: str) -> list[str]:
    """The points that queries ("q") or keys ("k") of a layer come by, in order."""
    norm = [f"attn.{letter}_norm.hook_normalized"] if config.qk_norm != "no" else []
    turns = config.layer(layer).rotary != "none" and not config.learned_positions
    turn = [f"attn.hook_rot_{letter}"] if turns else []
    order = [*turn, *norm] if config.qk_norm_last else [*norm, *turn]
    return [f"attn.hook_{letter}", *order]


def cut(config: ModelConfig, point: str, x: Array) -> Array:
    """Queries or keys at a point, cut at the family's bound if that stands right behind it."""
    normed_first = config.qk_norm != "no" and not config.qk_norm_last
    at_norm = point.endswith("_norm.hook_normalized")
    if config.qkv_clip is None or at_norm != normed_first or "_rot_" in point:
        return x
    return np.clip(x, -config.qkv_clip, config.qkv_clip)


def before(e: Entry, letter: str) -> tuple[str, NDArray[np.float64]]:
    """The point that this one is made of, and its heads, (heads, head_dim), cut at a bound."""
    assert e.layer is not None
    order = stages(e.config, e.layer, letter)
    at = order.index(e.suffix) - 1 if e.suffix in order else len(order) - 1
    return order[at], cut(e.config, order[at], e.row(order[at])).astype(np.float64)


def normed_heads(e: Entry) -> Worked:
    """A query or key, normed over its head, or over all heads together."""
    letter = e.suffix.removeprefix("attn.")[0]
    source, x = before(e, letter)
    stem = e.in_layer(f"self_attn.{letter}_norm")
    weight, bias = e.weights.get(f"{stem}.weight"), e.bias(stem)
    if e.config.qk_norm == "whole":
        row, index = x.reshape(-1), e.head * e.config.head_dim + e.dim
    else:
        row, index = x[e.head], e.dim
        if e.config.qk_norm == "every head its own":
            weight = None if weight is None else weight[e.head]
            bias = None if bias is None else bias[e.head]
    norm = Norm(e.config, weight, bias)
    value, filled = norm.of(row, index)
    opens = {"name": e.name(source), "head": e.head, "dim": e.dim}
    return Worked(norm.formula, filled, value, [Term(f"x[{e.dim}]", filled, value, opens)])


def rotated(e: Entry) -> Worked:
    """One element of a head, turned with its partner by the position's angle."""
    config = e.config
    assert e.layer is not None
    source, heads = before(e, e.suffix[-1])
    x, turned = heads[e.head], config.turned
    where = {"name": e.name(source), "head": e.head}
    if e.dim >= turned:
        value = float(x[e.dim])
        term = Term(f"x[{e.dim}]", short(value), value, {**where, "dim": e.dim})
        formula = f"x[{e.dim}] (only the first {turned} of a head turn)"
        return Worked(formula, short(value), value, [term])
    own = config.local() if config.layer(e.layer).rotary == "local" else config
    own = own.for_context(e.context)
    neighbours = config.rope_pairs == "neighbours"
    half = turned // 2
    i = e.dim // 2 if neighbours else e.dim % half  # the pair
    first = e.dim % 2 == 0 if neighbours else e.dim < half
    apart = 1 if neighbours else half
    partner = e.dim + apart if first else e.dim - apart
    positions = np.array([e.place])
    cos, sin = (float(t[0, i]) for t in ops.rope_tables(own, positions, np.float64))
    tables = [t[0].astype(np.float32) for t in ops.rope_tables(own, positions)]
    angle = f"{e.place}·{short(float(ops.rope_frequencies(own)[i]))}"
    grown = own.rope_scaling.attention_factor if own.rope_scaling else 1.0
    times = "" if grown == 1.0 else f"·{short(grown)}"
    sign, symbol = (-1.0, "−") if first else (1.0, "+")
    terms = [
        Term(f"x[{j}]", f"{short(x[j])}·{turn}({angle}){times}", value, {**where, "dim": j})
        for j, turn, value in ((e.dim, "cos", float(x[e.dim]) * cos),
                               (partner, "sin", sign * float(x[partner]) * sin))
    ]  # fmt: skip

    def kernel(k: Any, dtype: str) -> float:
        return float(k.turned(x.astype(np.float32), *tables, e.dim))

    plain = not neighbours and turned == config.head_dim
    more = "" if grown == 1.0 else ", times attention_factor"
    return Worked(
        f"x[{e.dim}]·cos(pθ) {symbol} x[{partner}]·sin(pθ){more}",
        f"{terms[0].factors} {symbol} {terms[1].factors}",
        terms[0].value + terms[1].value,
        sorted(terms, key=lambda term: -abs(term.value)),
        kernel if plain else None,
    )


def attended(e: Entry) -> tuple[Array, Array, Array]:
    """The query, (head_dim,), and all keys and values, (S, head_dim); all in the cache's dtype."""
    assert e.layer is not None
    keys, values = e.keys(e.layer)[:, e.kv_head], e.values(e.layer)[:, e.kv_head]
    _, q = before(e, "q")
    return q[e.head].astype(keys.dtype), keys, values


def _kernel_scores(e: Entry) -> bool:
    """Whether the kernel, asked alone, forms scores as this family does."""
    config = e.config
    own = (config.attention_scale, config.score_cap, config.temperature)
    assert e.layer is not None
    return own == (None, None, None) and config.layer(e.layer).window is None and not config.sinks


def scored(e: Entry) -> Worked:
    """A query's product with one key, scaled, and capped in some families."""
    config = e.config
    assert e.layer is not None
    source, _ = before(e, "q")
    q, keys, _ = (array.astype(np.float64) for array in attended(e))
    key, window = keys[e.key], config.layer(e.layer).window
    if window is not None and e.key <= e.position - window:
        first = e.position - window + 1
        return Worked(
            "−∞ (outside of the window)",
            f"−∞: the last {window:,} positions are seen, from {first:,} on",
            -math.inf,
        )
    opens = [{"name": e.name(source), "head": e.head, "dim": d} for d in range(len(q))]
    filled, terms = weighted_sum([f"d={d}" for d in range(len(q))], q, key, opens)
    formula = f"Σ_d q[head {e.head}, d] · k[head {e.kv_head}, d]"
    value = float(q @ key) * config.score_scale
    if config.attention_scale is None:
        formula, filled = f"{formula} / √head_dim", f"({filled}) / √{config.head_dim}"
    else:
        formula, filled = f"{formula} · scale", f"({filled}) · {short(config.attention_scale)}"
    if (grows := config.temperature) is not None:
        grown = float(ops.temperature(np.array([e.position]), grows.beta, grows.length)[0])
        value, formula = value * grown, f"{formula} · temperature(position)"
        filled = f"{filled} · {short(grown)}"
    if (cap := config.score_cap) is not None:
        value, formula = cap * math.tanh(value / cap), f"cap · tanh({formula} / cap)"
        filled = f"{short(cap)} · tanh({filled} / {short(cap)})"

    def kernel(k: Any, dtype: str) -> float:
        return float(k.weight_of(*attended(e), e.key, dtype)[0])

    return Worked(formula, filled, value, terms, kernel if _kernel_scores(e) else None)


def weighed(e: Entry) -> Worked:
    """A key's share of a query's attention; a sink takes some of it and gives nothing."""
    scores = e.over_keys("attn.hook_attn_scores")
    labels = [e.at_key(j) for j in range(len(scores))]
    opens: list[dict[str, Any]] = [
        {"name": e.name("attn.hook_attn_scores"), "head": e.head, "key": j}
        for j in range(len(scores))
    ]
    formula = "exp(score[key] − max) / Σⱼ exp(score[j] − max)"
    if e.config.sinks:
        sink = float(e.weights[f"{e.in_layer('self_attn')}.sinks"][e.head])
        scores, labels, opens = np.append(scores, sink), [*labels, "sink"], [*opens, {}]
        formula += ", one j more for the head's sink"
    top = float(scores.max())
    filled, value, terms = softmax_share(scores, e.key, labels, opens)

    def kernel(k: Any, dtype: str) -> float:
        return float(k.weight_of(*attended(e), e.key, dtype)[1])

    return Worked(
        formula,
        f"exp({short(scores[e.key])} − {short(top)}) / ({filled})",
        value,
        terms,
        kernel if _kernel_scores(e) else None,
    )


def mixed(e: Entry) -> Worked:
    """Values, each by its key's share."""
    assert e.layer is not None
    pattern = e.over_keys("attn.hook_pattern")
    v = e.values(e.layer)[:, e.kv_head, e.dim].astype(np.float64)
    labels = [e.at_key(j) for j in range(len(pattern))]
    opens = [{"name": e.name("attn.hook_pattern"), "head": e.head, "key": j}
             for j in range(len(pattern))]  # fmt: skip
    filled, terms = weighted_sum(labels, pattern, v, opens)

    def kernel(k: Any, dtype: str) -> float:
        return float(k.attention(*attended(e), dtype)[2][e.dim])

    return Worked(
        f"Σ_key pattern[head {e.head}, key] · v[key, head {e.kv_head}, {e.dim}]",
        filled,
        float(pattern @ v),
        terms,
        kernel if _kernel_scores(e) else None,
    )
