"""How tokens, numbers and tables are shown: one sign for a space, bars, percents, HTML tables.

No script, no style sheet, nothing from a network: notebook viewers strip those. What has to hold
inside a notebook (numbers to the right) is a `style` on each cell, which Jupyter's own style sheet
doesn't override. Every table is capped, and says what it left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

SPACE = "·"  # stands for a space inside a token: in notebooks, pictures and terminals alike
MAX_ROWS = 40
EIGHTHS = " ▏▎▍▌▋▊▉█"
TINY = 1e-6  # a probability below this is shown as that


def visible(text: str) -> str:
    """Token text with its spaces shown."""
    return text.replace(" ", SPACE)


def bar(fraction: float, width: int = 16) -> str:
    """A horizontal bar, `width` characters at 1; an eighth of a character is the finest step."""
    eighths = round(min(max(float(fraction), 0.0), 1.0) * width * 8)
    if eighths == 0 and fraction > 0:
        return EIGHTHS[1]  # something is there
    full, rest = divmod(eighths, 8)
    return EIGHTHS[8] * full + (EIGHTHS[rest] if rest else "")


def percent(p: float) -> str:
    """A probability for a table: one decimal, a significant digit below 0.1 %, 0 for none."""
    if p == 0:
        return "0"
    if p < TINY:
        return "<0.0001%"
    return f"{p:.1%}" if p >= 0.001 else f"{float(f'{p * 100:.1g}'):.4f}".rstrip("0") + "%"


def number(x: float, digits: int) -> str:
    """A number with a true minus sign."""
    return f"{x:.{digits}f}".replace("-", "−")


def table(
    headers: Sequence[str], rows: Iterable[Sequence[Any]], caption: str = "", more: str = ""
) -> str:
    """An HTML table: text to the left, numbers (and what reads as one) to the right.

    A header goes to the side of the first row's cell below it; `more` is said below the table.
    """
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
        parts.append(f'<caption style="caption-side: top">{escape(caption)}</caption>')
    first = shown[0] if shown else headers
    sides = [_side(first[i] if i < len(first) else "") for i in range(len(headers))]
    heads = [_cell(h, side, "th") for h, side in zip(headers, sides, strict=True)]
    parts.append(f"<thead><tr>{''.join(heads)}</tr></thead><tbody>")
    parts += [f"<tr>{''.join(_cell(v, _side(v)) for v in row)}</tr>" for row in shown]
    if more:
        note = f"… {escape(more)}"
        parts.append(f'<tr><td style="text-align: left" colspan="{len(headers)}">{note}</td></tr>')
    return "".join([*parts, "</tbody></table>"])


def _side(value: Any) -> str:
    if not isinstance(value, str):
        return "right"
    digits = value.removesuffix("%").removesuffix(" ms").lstrip("−<").replace(",", "")
    return "right" if digits.replace(".", "", 1).isdigit() else "left"


def _cell(value: Any, side: str, tag: str = "td") -> str:
    text = f"{value:,}" if isinstance(value, int) else str(value)
    return f'<{tag} style="text-align: {side}">{escape(text)}</{tag}>'
