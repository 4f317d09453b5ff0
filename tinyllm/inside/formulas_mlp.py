"""How the numbers inside MLPs are made: activations, and what experts are chosen and give."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tinyllm.inside.formulas import (
    Entry,
    Formula,
    Term,
    Worked,
    back_in_stream,
    product,
    put_out,
    short,
    softmax_share,
    weighted_sum,
)
from tinyllm.kernels import reference as ops


def activated(prefix: str) -> Formula:
    """act(gate) · up: one number, let through by another; or act(up) alone."""

    def work(e: Entry) -> Worked:
        where: dict[str, Any] = {"dim": e.dim}
        index: tuple[int, ...] = (e.dim,)
        if e.per_head:  # within a chosen expert
            where["head"], index = e.head, (e.head, e.dim)
        config = e.config
        pre = float(e.row(f"{prefix}.hook_pre")[index])
        opens = {"name": e.name(f"{prefix}.hook_pre"), **where}
        name = config.activation
        if not config.gated:
            value = _act(e, pre)
            term = Term(f"{name}(up)", f"{name}({short(pre)})", value, opens)
            return Worked(f"{name}(up)", f"{name}({short(pre)})", value, [term])
        up = float(e.row(f"{prefix}.hook_pre_linear")[index])
        alpha, limit = config.act_alpha, config.act_limit
        clamped = alpha is not None and limit is not None
        if alpha is not None and limit is not None:
            low, up = min(pre, limit), min(max(up, -limit), limit) + 1
            act = low / (1 + math.exp(-alpha * low))
            gate = f"g·σ({short(alpha)}·g), g = min({short(pre)}, {short(limit)})"
            formula = "g·σ(α·g) · (clip(up, ±limit) + 1), g = min(gate, limit)"
        else:
            act = _act(e, pre)
            gate, formula = f"{name}({short(pre)})", f"{name}(gate) · up"
        terms = [
            Term(f"{'g·σ(α·g)' if clamped else f'{name}(gate)'}", gate, act, opens),
            Term("clip(up) + 1" if clamped else "up", short(up), up,
                 {"name": e.name(f"{prefix}.hook_pre_linear"), **where}),
        ]  # fmt: skip
        plain = name == "silu" and not clamped
        return Worked(
            formula,
            f"{gate} · {short(up)}",
            act * up,
            sorted(terms, key=lambda term: -abs(term.value)),
            (lambda k, dtype: k.gated(pre, up)) if plain else None,
        )

    return work


def _act(e: Entry, x: float) -> float:
    """The family's activation of one number."""
    name, array = e.config.activation, np.array([x])
    if name == "xielu":
        stem = e.in_layer("mlp.act")
        return float(ops.xielu(array, *(e.weights[f"{stem}.alpha_{s}"] for s in "pn"))[0])
    return float(getattr(ops, name)(array)[0])


def chosen(e: Entry) -> tuple[list[int], list[float]]:
    """The newest token's experts, the one with the largest weight first, and their weights."""
    assert e.config.experts is not None
    weights = e.row("mlp.hook_expert_weights")
    best = [int(i) for i in ops.largest(weights[None], e.config.experts.k)[0]]
    return best, [float(weights[i]) for i in best]


def expert_weight(e: Entry) -> Worked:
    """An expert's weight: its share of the softmax, over all experts or the chosen alone."""
    experts = e.config.experts
    assert experts is not None
    scores = e.row("mlp.hook_router")
    best = ops.largest(scores[None], experts.k)[0]
    if e.dim not in best:
        own = Term(f"expert {e.dim}", short(scores[e.dim]), 0.0,
                   {"name": e.name("mlp.hook_router"), "dim": e.dim})  # fmt: skip
        last = short(scores[best[-1]])
        filled = f"0: {short(scores[e.dim])} is behind the {experts.k} best, down to {last}"
        return Worked("0 (not among the chosen)", filled, 0.0, [own])
    among = best if experts.weights == "normalised" else np.arange(experts.n)
    x = scores[among]
    opens = [{"name": e.name("mlp.hook_router"), "dim": int(i)} for i in among]
    filled, value, terms = softmax_share(
        x, int(np.flatnonzero(among == e.dim)[0]), [f"expert {i}" for i in among], opens
    )
    over = "the chosen" if experts.weights == "normalised" else "all experts"
    return Worked(
        f"exp(score[expert] − max) / Σⱼ exp(score[j] − max), over {over}",
        f"exp({short(scores[e.dim])} − {short(float(x.max()))}) / ({filled})",
        value,
        terms,
    )


def of_expert(matrix: str) -> Formula:
    """A row of one of a chosen expert's matrices times what it reads."""

    def work(e: Entry) -> Worked:
        expert = chosen(e)[0][e.head]
        stem = e.in_layer(f"mlp.experts.{expert}.{matrix}")
        if matrix == "down_proj":
            x, name = e.row("mlp.experts.hook_post")[e.head], e.name("mlp.experts.hook_post")
            opens = [{"name": name, "head": e.head, "dim": j} for j in range(len(x))]
        else:
            x, name = e.row(e.read_by_mlp), e.name(e.read_by_mlp)
            opens = [{"name": name, "dim": j} for j in range(len(x))]
        return product(e, stem, e.dim, x, opens)

    return work


def mlp_out(e: Entry) -> Worked:
    """What the MLP adds: its last product, or its chosen experts' outputs by their weights."""
    assert e.layer is not None
    if not e.config.layer(e.layer).experts:
        return put_out("mlp.hook_post", "mlp_output_norm")(e)
    experts, weights = chosen(e)
    outs = e.row("mlp.experts.hook_out")  # (k, dim)
    opens = [{"name": e.name("mlp.experts.hook_out"), "head": i, "dim": e.dim}
             for i in range(len(experts))]  # fmt: skip
    share = np.array(weights)
    filled, terms = weighted_sum([f"expert {i}" for i in experts], share, outs[:, e.dim], opens)
    plain = Worked("Σ over chosen experts: weight · output", filled,
                   float(share @ outs[:, e.dim]), terms)  # fmt: skip
    return back_in_stream(e, plain, share @ outs, "mlp_output_norm")
