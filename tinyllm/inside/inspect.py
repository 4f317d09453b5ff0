"""Look at a saved trace: in the terminal, or as one HTML file that needs nothing else.

The HTML has no script and asks for nothing from a network: steps are radio buttons, so the arrow
keys go from token to token, and style sheet and drawings are in the file.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from tinyllm.inside.trace_file import StepRecord, TraceRecord
from tinyllm.inside.trace_text import columns, pieces
from tinyllm.sampler import SamplingParams
from tinyllm.text.shown import bar, percent, visible

ATTENTION_COLUMNS = 48  # newest positions that the page draws; the first one always is
LEVELS = 20  # shades of a cell


def print_trace(trace: TraceRecord, console: Console, step: int | None = None) -> None:
    """The text with a line a step; or one step with its candidates, stages, lens and attention.

    Raises:
        ValueError: there is no step of this index.
    """
    console.print(_header(trace))
    if step is None:
        console.print(_steps_table(trace))
        return
    found = [s for s in trace.steps if s.index == step]
    if not found:
        have = ", ".join(str(s.index) for s in trace.steps[:20])
        raise ValueError(f"the trace has no step {step}; it has {have}")
    console.print(Group(*_step_parts(trace, found[0])))


def _header(trace: TraceRecord) -> RenderableType:
    n_prompt = len(trace.prompt)
    text = Text()
    for piece in pieces(trace):
        text.append(piece.text, style="dim" if piece.positions.start < n_prompt else "bold")
    sampling = ", ".join(f"{k} {v}" for k, v in _unusual(trace.sampling).items())
    title = f"{trace.model} ({trace.dtype}, {trace.fingerprint})"
    return Panel(text, title=escape(title), subtitle=escape(sampling), title_align="left")


def _steps_table(trace: TraceRecord) -> Table:
    table = Table(box=None, header_style="dim")
    for name, justify in (("step", "right"), ("token", "left"), ("p", "right"), ("", "left"),
                          ("entropy", "right"), ("by", "left"), ("instead", "left")):  # fmt: skip
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for step in trace.steps:
        p = _chosen(step).p_raw
        others = [c for c in step.candidates if c.token != step.token][:3]
        instead = "  ".join(f"{visible(c.text)} {percent(c.p_raw)}" for c in others)
        table.add_row(
            str(step.index), escape(visible(_text(trace, step))), percent(p),
            f"[cyan]{bar(p, 12)}[/]", f"{step.entropy:.2f}", step.chosen_by,
            f"[dim]{escape(instead)}[/]",
        )  # fmt: skip
    return table


def _step_parts(trace: TraceRecord, step: StepRecord) -> list[RenderableType]:
    head = (
        f"[bold]step {step.index}[/], position {step.position}: "
        f"[bold]{escape(visible(_text(trace, step)))}[/] by {step.chosen_by}, "
        f"log-probability {step.logprob:.3f}, entropy {step.entropy:.2f} nats"
    )
    if step.guess is not None:
        verdict = "kept" if step.guess.kept else "thrown away"
        behind = f", and with it {escape(repr(''.join(step.guess.dropped)))}"
        head += (
            f"\nguessed from the {step.guess.source}: {escape(repr(step.guess.text))}, {verdict}"
            f"{behind if step.guess.dropped else ''}"
        )
    candidates = Table("", "token", "p raw", "", "p", "", box=None, header_style="dim")
    for c in step.candidates:
        mark = "→" if c.token == step.token else ""
        last = f"[red]cut by {c.cut_by}[/]" if c.cut_by else f"[green]{bar(c.p, 16)}[/]"
        candidates.add_row(
            mark, escape(visible(c.text)), percent(c.p_raw), f"[cyan]{bar(c.p_raw, 16)}[/]",
            "" if c.cut_by else percent(c.p), last,
        )  # fmt: skip
    parts: list[RenderableType] = [head, candidates]
    if step.stages:
        parts.append("stages: " + " → ".join(f"{s.name} {s.n_kept:,}" for s in step.stages))
    if step.lens:
        lens = Table("depth", "would say", "", "p", "rank", box=None, header_style="dim")
        for row in step.lens:
            best = row.top[0] if row.top else ("", 0.0)
            lens.add_row(str(row.layer), escape(visible(best[0])), percent(best[1]),
                         f"{bar(row.p, 12)} {percent(row.p)}", str(row.rank))  # fmt: skip
        parts.append(lens)
    places = columns(trace, step.position, step.position)
    for head_record in step.attention or []:
        looked = [(sum(head_record.weights[i] for i in where), text) for text, where in places]
        best_first = sorted(looked, key=lambda item: -item[0])
        looks = "  ".join(f"{visible(text)} {percent(w)}" for w, text in best_first[:5])
        parts.append(f"layer {head_record.layer}, head {head_record.head}: {escape(looks)}")
    if step.replay_error is not None:
        parts.append(f"[dim]replay error {step.replay_error:.1e}[/]")
    return parts


def export_html(trace: TraceRecord, path: str | Path) -> Path:
    """Write the trace as one self-contained HTML file."""
    path = Path(path)
    path.write_text(trace_html(trace), encoding="utf-8")
    return path


def trace_html(trace: TraceRecord) -> str:
    """The trace as an HTML page."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"visible": visible, "percent": percent}
    return environment.get_template("trace.html.jinja").render(
        trace=trace,
        n_prompt=len(trace.prompt),
        pieces=list(pieces(trace)),
        by_position={step.position: step for step in trace.steps},
        text_of=partial(_text, trace),
        surprise={step.index: min(1.0, -step.logprob / 6) for step in trace.steps},
        levels=LEVELS,
        line=_entropy_line(trace.steps),
        chosen={step.index: _chosen(step) for step in trace.steps},
        looks=partial(_looks, trace),
        level=_level,
        shade=_shade,
        sampling=_unusual(trace.sampling),
    )


def _looks(trace: TraceRecord, step: StepRecord) -> dict[str, Any]:
    """What the page draws of a step's attention: columns, and a weight a head and column."""
    places = columns(trace, step.position, ATTENTION_COLUMNS)
    heads = [
        (h.head, [sum(h.weights[i] for i in where) for _, where in places])
        for h in step.attention or []
    ]
    drawn = sum(len(where) for _, where in places)
    return {"columns": [text for text, _ in places], "heads": heads, "drawn": drawn}


def _level(share: float) -> int:
    """A share as one of the style sheet's LEVELS of colour: a class is shorter than a style."""
    return round(min(max(share, 0.0), 1.0) * LEVELS)


def _shade(share: float) -> str:
    """A cell's attribute that colours it."""
    level = _level(share)
    return f" class=c{level}" if level else ""


def _unusual(sampling: dict[str, Any]) -> dict[str, Any]:
    """The parameters that do something."""
    usual = asdict(SamplingParams())
    return {
        name: value
        for name, value in sampling.items()
        if name == "temperature" or value not in (None, {}, usual.get(name))
    }


def _entropy_line(steps: list[StepRecord]) -> dict[str, Any]:
    """Entropy along the steps, in the coordinates of an SVG 1000 wide and 100 high."""
    highest = max([step.entropy for step in steps] + [1.0])
    apart = 1000 / max(1, len(steps))
    points = [
        {"x": round((i + 0.5) * apart, 1), "y": round(95 - 88 * s.entropy / highest, 1), "step": s}
        for i, s in enumerate(steps)
    ]
    return {"points": points, "highest": highest, "apart": apart}


def _chosen(step: StepRecord) -> Any:
    return next(c for c in step.candidates if c.token == step.token)


def _text(trace: TraceRecord, step: StepRecord) -> str:
    """A step's token, as a part of a character that only later tokens make whole."""
    return trace.texts[step.position] if step.position < len(trace.texts) else step.text
