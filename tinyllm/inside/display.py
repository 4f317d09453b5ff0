"""What a notebook shows of a step and of what went on inside: tables made by `text.shown`."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

import numpy as np

from tinyllm.text.shown import MAX_ROWS, bar, number, percent, table, visible

if TYPE_CHECKING:
    from tinyllm.config import ModelConfig
    from tinyllm.inside.causal import CausalMap
    from tinyllm.inside.explain import Explanation
    from tinyllm.inside.points import HookPoints
    from tinyllm.inside.replay import ActivationCache, LogitLens, Timing
    from tinyllm.step import CacheView, Candidates, Step


def candidates_html(candidates: Candidates) -> str:
    """Token, logit, both probabilities with a bar, and which filter cut it."""
    rows = [
        (
            "→" if c.token == candidates.chosen else "",
            c.rank,
            visible(c.text),
            c.token,
            number(c.logit, 2),
            percent(c.p_raw),
            bar(c.p_raw),
            percent(c.p) if c.kept else "",
            f"cut by {c.cut_by}" if c.cut_by else bar(c.p),
        )
        for c in candidates
    ]
    headers = ["", "rank", "token", "id", "logit", "p raw", "", "p", ""]
    return table(headers, rows)


def step_html(step: Step) -> str:
    """One line about the step, then its candidates."""
    text = visible(step.text)
    line = (
        f"step {step.index}, position {step.position}: <b>{escape(text)}</b> by {step.chosen_by}; "
        f"log-probability {step.logprob:.3f}, entropy {step.entropy:.2f} nats"
    )
    return f"<p>{line}</p>{candidates_html(step.candidates(8))}"


def lens_html(lens: LogitLens) -> str:
    """Each depth's likeliest tokens, and how the chosen one fares."""
    headers = ["depth", *[f"{i + 1}." for i in range(lens.k)], f"p({visible(lens.target_text)})",
               "", "its rank"]  # fmt: skip
    rows = [
        (
            "embedding" if row.layer == 0 else f"after layer {row.layer - 1}",
            *[f"{visible(text)} {percent(p)}" for _, text, p in row.top],
            percent(row.p),
            bar(row.p),
            row.rank,
        )
        for row in lens
    ]
    return table(headers, rows)


def timing_html(timing: Timing) -> str:
    """Milliseconds and share of each operation, the slowest first."""
    total = timing.total or 1.0
    rows = [
        (name, f"{s * 1e3:.2f} ms", percent(s / total), bar(s / total))
        for name, s in sorted(timing.seconds.items(), key=lambda item: -item[1])
    ]
    return table(["operation", "time", "share", ""], rows, f"{timing.total * 1e3:.1f} ms in all")


def activations_html(activations: ActivationCache) -> str:
    """Name, shape and size of each array, and the spread of its values."""
    rows = []
    for name, array in list(activations.items())[:MAX_ROWS]:
        finite = array[np.isfinite(array)]
        spread = (finite.min(), finite.mean(), finite.max()) if finite.size else (np.nan,) * 3
        rows.append((name, str(array.shape), *(number(float(x), 3) for x in spread)))
    left_out = len(activations) - len(rows)
    more = f"{left_out} more arrays are not shown" if left_out else ""
    caption = f"{len(activations)} arrays, {activations.nbytes / 1e6:.1f} MB"
    return table(["hook point", "shape", "min", "mean", "max"], rows, caption, more)


def cache_html(view: CacheView, config: ModelConfig) -> str:
    """What the cache holds, by the formula."""
    per_token = view.nbytes // max(1, view.n_tokens)
    rows = [
        ("tokens", view.n_tokens),
        ("layers", config.n_layers),
        ("key/value heads", config.n_kv_heads),
        ("head_dim", config.head_dim),
        ("bytes a token", per_token),
        ("bytes in all", view.nbytes),
    ]
    return table(["KV cache", ""], rows)


def causal_html(causal: CausalMap) -> str:
    """Layers with their two effects, then the heads of one layer beside where they look."""
    largest = max(float(np.abs([causal.attn, causal.mlp]).max()), 1e-9)
    layers = [
        (i, *_effect(causal.attn[i], largest), *_effect(causal.mlp[i], largest))
        for i in range(len(causal.attn))
    ]
    largest = max(float(np.abs(causal.heads).max()), 1e-9)
    heads = []
    for head, effect in enumerate(causal.heads):
        best = np.argsort(-causal.pattern[head], kind="stable")[:3]
        looks = ", ".join(
            f"{visible(causal.tokens[i])} {percent(float(causal.pattern[head, i]))}" for i in best
        )
        heads.append((head, *_effect(effect, largest), looks))
    text = visible(causal.text)
    return table(
        ["layer", "attention", "", "MLP", ""],
        layers,
        f"nats of log p({text}) = {causal.logprob:.2f} lost when the part is zeroed "
        "(negative: it spoke against the token)",
    ) + table(
        ["head", "effect", "", "looks at"],
        heads,
        f"the heads of layer {causal.layer}: what zeroing costs, and where each looks",
    )


def explanation_html(explanation: Explanation) -> str:
    """The formula in symbols and in numbers, the line of code, and the largest terms."""
    e = explanation
    at = ", ".join(f"{k} {v}" for k, v in e.where.items())
    rows = [
        ("formula", e.formula),
        ("with values", e.filled),
        ("worked out in float64", f"{e.recomputed:.7g}"),
        ("readable path", f"{e.value:.7g}"),
    ]
    if e.kernel is not None:
        rows.append(("compiled kernel", f"{e.kernel:.7g}"))
    rows.append((e.source, e.line))
    if e.tensor:
        rows.append(("tensor", e.tensor))
    head = table([e.name, f"at {at} ({visible(e.token)})"], rows)
    if not e.terms:
        return head
    largest = max(abs(t.value) for t in e.terms) or 1.0
    terms = [(t.label, t.factors, *_effect(t.value, largest)) for t in e.terms[:8]]
    more = f"{len(e.terms) - 8} smaller terms are not shown" if len(e.terms) > 8 else ""
    return head + table(["term", "", "value", ""], terms, more=more)


def _effect(effect: float, largest: float) -> tuple[str, str]:
    sign = "−" if effect < 0 else ""
    return f"{effect:.3g}".replace("-", "−"), sign + bar(abs(float(effect)) / largest, 10)


def hook_points_html(points: HookPoints) -> str:
    """One layer's hook points: the others have the same."""
    rows = [
        (p.name, f"({', '.join(p.axes)})", p.meaning, p.tensor, p.source)
        for p in points
        if p.layer in (None, 0)
    ]
    headers = ["hook point", "shape", "what", "tensor", "line"]
    return table(headers, rows, more=_other_layers(points))


def hook_points_text(points: HookPoints) -> str:
    """The same for a terminal."""
    shown = [p for p in points if p.layer in (None, 0)]
    rows = [(p.name, f"({', '.join(p.axes)})", p.source, p.tensor or "–") for p in shown]
    widths = [max(len(row[i]) for row in rows) for i in range(4)] if rows else []
    lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows]
    return "\n".join([*lines, *filter(None, [_other_layers(points)])])


def _other_layers(points: HookPoints) -> str:
    last = max((p.layer for p in points if p.layer is not None), default=0)
    return f"the same for layers 1 to {last}" if last else ""
