"""How things look in a notebook: plain HTML tables with unicode bars.

No script, no style sheet, nothing from a network: notebook viewers strip those. Every table is
capped, and says what it left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tinyllm.config import ModelConfig
    from tinyllm.decode import CacheView, Candidates, Step
    from tinyllm.distribution import Stages
    from tinyllm.inside.causal import CausalMap
    from tinyllm.inside.explain import Explanation
    from tinyllm.inside.hooks import HookPoints
    from tinyllm.inside.replay import ActivationCache, LogitLens, Timing

MAX_ROWS = 40
EIGHTHS = " ▏▎▍▌▋▊▉█"


def bar(fraction: float, width: int = 16) -> str:
    """A horizontal bar, `width` characters at 1; an eighth of a character is the finest step."""
    eighths = round(float(np.clip(fraction, 0.0, 1.0)) * width * 8)
    if eighths == 0 and fraction > 0:
        return EIGHTHS[1]  # something is there
    full, rest = divmod(eighths, 8)
    return EIGHTHS[8] * full + (EIGHTHS[rest] if rest else "")


def visible(text: str) -> str:
    """Token text with its spaces shown."""
    return text.replace(" ", "␣")


def percent(p: float) -> str:
    """A probability for a table."""
    if p == 0:
        return "0"
    return f"{p:.1%}" if p >= 0.001 else f"{p * 100:.1g}%"


def table(
    headers: Sequence[str], rows: Iterable[Sequence[Any]], caption: str = "", more: str = ""
) -> str:
    """An HTML table; strings to the left, numbers to the right; `more` is said below it."""
    shown: list[Sequence[Any]] = []
    left_out = 0
    for row in rows:
        if len(shown) < MAX_ROWS:
            shown.append(row)
        else:
            left_out += 1
    if left_out:
        more = "; ".join(filter(None, [f"{left_out} more rows are not shown", more]))
    parts = ["<table>"]
    if caption:
        parts.append(f'<caption align="top">{escape(caption)}</caption>')
    parts.append(f"<thead><tr>{''.join(_cell(h, 'th') for h in headers)}</tr></thead><tbody>")
    parts += [f"<tr>{''.join(_cell(value) for value in row)}</tr>" for row in shown]
    if more:
        parts.append(f'<tr><td align="left" colspan="{len(headers)}">… {escape(more)}</td></tr>')
    return "".join([*parts, "</tbody></table>"])


def _cell(value: Any, tag: str = "td") -> str:
    if isinstance(value, str):
        return f'<{tag} align="left">{escape(value)}</{tag}>'
    number = f"{value:,}" if isinstance(value, int) else str(value)
    return f'<{tag} align="right">{escape(number)}</{tag}>'


def candidates_html(candidates: Candidates) -> str:
    """Token, logit, both probabilities with a bar, and which filter cut it."""
    rows = [
        (
            "→" if c.token == candidates.chosen else "",
            c.rank,
            visible(c.text),
            c.token,
            _number(c.logit, 2),
            percent(c.p_raw),
            bar(c.p_raw),
            percent(c.p) if c.kept else "",
            f"cut by {c.cut_by}" if c.cut_by else bar(c.p),
        )
        for c in candidates
    ]
    headers = ["", "rank", "token", "id", "logit", "p raw", "", "p", ""]
    return table(headers, rows)


def stages_html(stages: Stages) -> str:
    """How many tokens each filter left, and how much raw probability they hold."""
    rows, before = [], None
    for stage in stages:
        cut = "" if before is None or before == stage.n_kept else f"−{before - stage.n_kept:,}"
        rows.append((stage.name, stage.n_kept, cut, percent(stage.mass), bar(stage.mass)))
        before = stage.n_kept
    return table(["stage", "tokens left", "cut", "raw probability left", ""], rows)


def step_html(step: Step) -> str:
    """One line about the step, then its candidates."""
    text = visible(step.session.tokenizer.token_text(step.token))
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
        rows.append((name, str(array.shape), *(_number(float(x), 3) for x in spread)))
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


def _number(x: float, digits: int) -> str:
    return f"{x:.{digits}f}".replace("-", "−")
