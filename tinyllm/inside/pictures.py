"""Pictures of what goes on inside, as PNG, drawn with Pillow: no browser, no plotting library.

Each function returns a `Picture`, which a notebook shows by itself and `save` writes to a file.
Sizes are capped; what is left out is said on the picture.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from tinyllm.inside.replay import check_index
from tinyllm.sampler import apply_temperature, probabilities
from tinyllm.text.shown import percent, visible

if TYPE_CHECKING:
    from tinyllm.inside.replay import LogitLens
    from tinyllm.step import NextToken, Step

SCALE = 2  # drawn at twice the size: sharp on dense screens, smooth on others
PAPER, INK, FAINT, RULE = (255, 255, 255), (35, 34, 31), (138, 135, 127), (226, 222, 213)
BLUE, ORANGE = (47, 111, 183), (214, 92, 40)
SERIES = (BLUE, ORANGE, (76, 140, 92), (140, 92, 160), (168, 132, 40), (90, 90, 90),
          (200, 80, 120), (60, 150, 160))  # fmt: skip
MAX_TOKENS = 64  # positions on an axis
LIKE = str.maketrans({"→": ">", "−": "-", "–": "-", "—": "-", "“": '"', "”": '"',
                      "‘": "'", "’": "'"})  # fmt: skip


class Picture:
    """A drawing: shown by notebooks, saved by `save`."""

    def __init__(self, image: Image.Image, told: str) -> None:
        self.image, self.told = image, told

    def save(self, path: str | Path) -> Path:
        """Write it as PNG."""
        path = Path(path)
        self.image.save(path, "PNG", optimize=True)
        return path

    def __repr__(self) -> str:
        return f"Picture({self.told}, {self.image.width} × {self.image.height})"

    def _repr_png_(self) -> tuple[bytes, dict[str, Any]]:
        out = io.BytesIO()
        self.image.save(out, "PNG", optimize=True)
        return out.getvalue(), {"width": self.image.width // SCALE}

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        data, size = self._repr_png_()
        return {"image/png": data, "text/plain": repr(self)}, {"image/png": size}


class _Sheet:
    """A sheet in logical pixels, SCALE times as many real ones."""

    def __init__(self, width: float, height: float) -> None:
        size = (round(width * SCALE), round(height * SCALE))
        self.image = Image.new("RGB", size, PAPER)
        self._draw = ImageDraw.Draw(self.image)

    def text(
        self, x: float, y: float, text: str, *, size: int = 11, colour: Any = INK,
        anchor: str = "la",
    ) -> None:  # fmt: skip
        self._draw.text(
            (x * SCALE, y * SCALE), printable(text), fill=colour, font=_font(size), anchor=anchor
        )

    def upright(self, x: float, bottom: float, text: str, colour: Any = INK) -> None:
        """Text that runs upwards from (x, bottom); x is its middle."""
        text, font = printable(text), _font(10)
        strip = Image.new("RGB", (math.ceil(font.getlength(text)) + 2, 13 * SCALE), PAPER)
        ImageDraw.Draw(strip).text((1, 0), text, fill=colour, font=font)
        turned = strip.rotate(90, expand=True)
        corner = (round(x * SCALE - turned.width / 2), round(bottom * SCALE - turned.height))
        self.image.paste(turned, corner)

    def paste(self, x: float, y: float, image: Image.Image) -> None:
        """An image of as many real pixels as it has, its corner at (x, y)."""
        self.image.paste(image.convert("RGB"), (round(x * SCALE), round(y * SCALE)))

    def box(self, x: float, y: float, width: float, height: float, colour: Any) -> None:
        right, below = (x + width) * SCALE - 1, (y + height) * SCALE - 1
        if right >= x * SCALE and below >= y * SCALE:
            self._draw.rectangle((x * SCALE, y * SCALE, right, below), fill=colour)

    def line(self, points: Sequence[tuple[float, float]], colour: Any, width: float = 1.5) -> None:
        scaled = [(x * SCALE, y * SCALE) for x, y in points]
        self._draw.line(scaled, fill=colour, width=round(width * SCALE), joint="curve")

    def dot(self, x: float, y: float, colour: Any, radius: float = 2.2) -> None:
        box = [(v + d) * SCALE for d in (-radius, radius) for v in (x, y)]
        self._draw.ellipse(box, fill=colour)


def attention(
    pattern: NDArray[Any],
    tokens: Sequence[str],
    *,
    title: str = "",
    heads: Sequence[int] | None = None,
) -> Picture:
    """One layer's heads, each a square: queries down, keys across, darker where more is taken.

    Args:
        pattern: (n_heads, T, S), or (T, S) for one head; rows sum to 1.
        tokens: S texts.
        heads: which of them; default: all.

    Raises:
        ValueError: there are more or fewer texts than S, or no such head.
    """
    pattern = pattern[None] if pattern.ndim == 2 else pattern
    if len(tokens) != pattern.shape[2]:
        raise ValueError(
            f"the pattern looks at {pattern.shape[2]} positions, but there are {len(tokens)} "
            "tokens; give the text of each"
        )
    shown = list(range(len(pattern))) if heads is None else list(heads)
    for head in shown:
        check_index("head", head, len(pattern))
    n_q, n_k = min(pattern.shape[1], MAX_TOKENS), min(pattern.shape[2], MAX_TOKENS)
    pattern = pattern[:, -n_q:, -n_k:]
    labels = [visible(t) for t in tokens][-n_k:]
    columns = min(3, len(shown))
    cell = max(3, min(14, 230 // max(n_k, 1)))
    with_labels = cell >= 9
    margin = 8 + (max(_width(t) for t in labels) if with_labels else 0)
    square = n_k * cell
    tile_w, tile_h = square + margin + 14, n_q * cell + 22 + (margin if with_labels else 6)
    rows = math.ceil(len(shown) / columns)
    sheet = _Sheet(columns * tile_w + 10, rows * tile_h + 34)
    cut = f" (the last {n_k} positions)" if n_k == MAX_TOKENS < len(tokens) else ""
    sheet.text(10, 8, (title or "attention") + cut, size=13)
    for i, head in enumerate(shown):
        x0 = (i % columns) * tile_w + margin + 6
        y0 = (i // columns) * tile_h + 50
        sheet.text(x0, y0 - 16, f"head {head}", colour=FAINT)
        sheet.box(x0 - 0.5, y0 - 0.5, square + 1, n_q * cell + 1, RULE)
        sheet.box(x0, y0, square, n_q * cell, PAPER)
        for q in range(n_q):
            for k in range(n_k):
                weight = float(pattern[head, q, k])
                if weight > 0.002:
                    sheet.box(x0 + k * cell, y0 + q * cell, cell, cell, _blend(BLUE, weight**0.5))
        if with_labels:
            for q, text in enumerate(labels[-n_q:]):
                sheet.text(x0 - 4, y0 + (q + 0.5) * cell, text, size=10, anchor="rm")
            for k, text in enumerate(labels):
                bottom = y0 + n_q * cell + 4 + _width(text)
                sheet.upright(x0 + (k + 0.5) * cell, bottom, text)
    return Picture(sheet.image, f"attention of {len(shown)} heads")


def lens(table: LogitLens, *, k: int = 4) -> Picture:
    """The logit lens as a table: a row a depth, the likeliest tokens, the asked-for one's share."""
    k = min(k, table.k)
    cell, row_h, left = 92, 17, 84
    sheet = _Sheet(left + k * cell + 190, (len(table) + 1) * row_h + 40)
    target = visible(table.target_text)
    sheet.text(10, 8, "what each depth would say next", size=13)
    sheet.text(left + k * cell + 12, 34, f"p of {target}", colour=FAINT)
    for i, row in enumerate(table):
        y = 52 + i * row_h
        name = "embedding" if row.layer == 0 else f"layer {row.layer - 1}"
        sheet.text(10, y + row_h / 2, name, colour=FAINT, anchor="lm")
        for j, (token, text, p) in enumerate(row.top[:k]):
            colour = ORANGE if token == table.target else BLUE
            sheet.box(left + j * cell, y, cell - 2, row_h - 2, _blend(colour, 0.08 + 0.55 * p))
            shown = _fit(visible(text), cell - 10)
            sheet.text(left + j * cell + 4, y + row_h / 2 - 1, shown, anchor="lm")
        x = left + k * cell + 12
        sheet.box(x, y + 3, 100 * row.p, row_h - 8, ORANGE)
        sheet.text(x + 106, y + row_h / 2 - 1, percent(row.p), colour=FAINT, anchor="lm")
    return Picture(sheet.image, f"logit lens over {len(table)} depths")


def entropy(steps: Sequence[Step]) -> Picture:
    """How unsure the model was at each token: entropy in nats, and the chosen token's surprise."""
    shown = list(steps)[-MAX_TOKENS:]
    texts = [visible(s.text) for s in shown]
    heights = [s.entropy for s in shown]
    surprises = [-s.logprob for s in shown]
    bar_w = 14 if len(shown) > 24 else 22
    plot_h, top, left = 120, 48, 44
    label_h = max((_width(t) for t in texts), default=0) + 10
    sheet = _Sheet(left + len(shown) * bar_w + 20, top + plot_h + label_h)
    marks = ticks(0, max([*heights, *surprises, 1.0]))
    highest = marks[-1]
    cut = f" (the last {MAX_TOKENS})" if len(steps) > MAX_TOKENS else ""
    sheet.text(10, 8, f"entropy before each token{cut}; dots: surprise, −log p", size=13)
    _y_axis(sheet, left, top, plot_h, len(shown) * bar_w, marks, "{:g}".format, "nats")
    for i, text in enumerate(texts):
        height = plot_h * heights[i] / highest
        x = left + i * bar_w
        sheet.box(x + 1, top + plot_h - height, bar_w - 2, height, _blend(BLUE, 0.45))
        sheet.dot(x + bar_w / 2, top + plot_h * (1 - surprises[i] / highest), ORANGE)
        sheet.upright(x + bar_w / 2, top + plot_h + 6 + _width(text), text)
    return Picture(sheet.image, f"entropy along {len(shown)} tokens")


def lines(
    x: Sequence[float], series: Mapping[str, Sequence[float]], *, title: str, x_label: str = "",
    y_label: str = "", unit: Callable[[float], str] = lambda v: f"{v:,.6g}",
) -> Picture:  # fmt: skip
    """Curves over one axis, from zero up, with round numbers along both.

    Args:
        x: (N,) along.
        series: name → (N,) values that aren't negative.
        title, x_label, y_label: what it shows; `y_label` stands above the upright axis.
        unit: writes the numbers of the upright axis.

    Raises:
        ValueError: a series isn't as long as x.
    """
    for name, values in series.items():
        if len(values) != len(x):
            raise ValueError(f"series {name!r} has {len(values)} values, but x has {len(x)}")
    plot_w, plot_h, top, left = 420, 200, 40 + (12 if y_label else 0), 70
    names_w = max(_width(name) for name in series) + 28
    sheet = _Sheet(left + plot_w + names_w, top + plot_h + 44 + 13 * max(0, len(series) - 3))
    sheet.text(10, 8, title, size=13)
    marks = ticks(0, max(float(max(values)) for values in series.values()) or 1.0)
    highest, low, high = marks[-1], float(min(x)), float(max(x))
    _y_axis(sheet, left, top, plot_h, plot_w, marks, unit, y_label)

    def at(value: float) -> float:
        return left + plot_w * (value - low) / ((high - low) or 1.0)

    for value in [m for m in ticks(low, high) if low <= m <= high]:
        sheet.text(at(value), top + plot_h + 6, f"{value:,.4g}", colour=FAINT, anchor="ma")
    sheet.text(left + plot_w / 2, top + plot_h + 24, x_label, colour=FAINT, anchor="ma")
    named: list[tuple[float, str, Any]] = []
    for (name, values), colour in zip(series.items(), SERIES, strict=False):
        points = [
            (at(a), top + plot_h * (1 - float(b) / highest)) for a, b in zip(x, values, strict=True)
        ]
        sheet.line(points, colour, 2)
        for point in points:
            sheet.dot(*point, colour)
        named.append((points[-1][1], name, colour))
    y = top - 13.0
    for end, name, colour in sorted(named):
        y = max(end, y + 13)  # names don't lie on one another
        sheet.text(left + plot_w + 8, y, name, colour=colour, anchor="lm")
    return Picture(sheet.image, title)


def cache_growth(
    n_tokens: Sequence[int], measured: Sequence[int], formula: Sequence[int]
) -> Picture:
    """The KV cache's bytes over its tokens, measured and by the formula."""
    return lines(
        n_tokens,
        {"by the formula": formula, "measured": measured},
        title="the KV cache grows by the token",
        x_label="tokens held",
        y_label="MB",
        unit=lambda v: f"{v / 1e6:,.3g}",
    )


def temperatures(
    choice: NextToken,
    k: int = 8,
    range_: Sequence[float] = (0.2, 0.4, 0.6, 0.8, 1, 1.2, 1.4, 1.7, 2),
) -> Picture:
    """The likeliest candidates' probabilities under changing temperature, before other filters."""
    best = choice.candidates(min(k, len(SERIES)))
    at = [probabilities(apply_temperature(choice.logits, t)) for t in range_]
    series = {visible(c.text): [float(p[c.token]) for p in at] for c in best}
    return lines(range_, series, title="the same logits at other temperatures",
                 x_label="temperature", y_label="probability",
                 unit=lambda v: f"{100 * v:.3g}%")  # fmt: skip


def candidates(choice: NextToken, k: int = 10) -> Picture:
    """The likeliest tokens as bars: pale the model's own probability, dark the one drawn with."""
    best = choice.candidates(k)
    row_h, left, width = 19, 120, 300
    sheet = _Sheet(left + width + 170, len(best) * row_h + 46)
    sheet.text(10, 8, "pale: the model's own probability; dark: after the filters", size=13)
    top = max(max(c.p_raw, c.p) for c in best) or 1.0
    for i, c in enumerate(best):
        y = 36 + i * row_h
        colour = INK if c.kept else FAINT
        shown = _fit(visible(c.text), left - 20)
        sheet.text(left - 8, y + row_h / 2, shown, colour=colour, anchor="rm")
        sheet.box(left, y + 2, width * c.p_raw / top, row_h - 5, _blend(BLUE, 0.35))
        sheet.box(left, y + 6, width * c.p / top, row_h - 13, BLUE)
        told = f"{percent(c.p_raw)} → {percent(c.p)}" if c.kept else f"cut by {c.cut_by}"
        x = left + width * max(c.p_raw, c.p) / top + 8
        sheet.text(x, y + row_h / 2, told, colour=FAINT if c.kept else ORANGE, anchor="lm")
    return Picture(sheet.image, f"{len(best)} candidates")


def strip(
    items: Sequence[Image.Image | NDArray[Any]], labels: Sequence[str], *, side: int = 120,
    title: str = "",
) -> Picture:  # fmt: skip
    """Pictures side by side, each under its label; squares of numbers as heat, dark where large.

    Args:
        items: images, or arrays (n, n), each with its own scale.
        labels: one an item.
        side: of each, in pixels.

    Raises:
        ValueError: there are more or fewer labels than items.
    """
    if len(labels) != len(items):
        raise ValueError(f"there are {len(items)} pictures, but {len(labels)} labels")
    cells = [max(side, math.ceil(_width(text) * 1.1)) + 8 for text in labels]
    top = 48 if title else 24
    sheet = _Sheet(sum(cells) + 12, top + side + 8)
    sheet.text(10, 8, title, size=13)
    x = 10.0
    for item, text, width in zip(items, labels, cells, strict=True):
        image = item if isinstance(item, Image.Image) else _heat(item)
        how = Image.Resampling.NEAREST if image is not item else Image.Resampling.LANCZOS
        sheet.text(x, top - 17, text, colour=FAINT)
        sheet.paste(x, top, image.resize((side * SCALE, side * SCALE), how))
        x += width
    return Picture(sheet.image, title or f"{len(items)} pictures: {', '.join(labels)}")


def _heat(values: NDArray[Any]) -> Image.Image:
    share = (values - values.min()) / (np.ptp(values) or 1.0)
    colours = np.array(PAPER) + share[..., None] * (np.array(BLUE) - np.array(PAPER))
    return Image.fromarray(np.rint(colours).astype(np.uint8))


def ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers from `low` or below to `high` or above.

    Steps are 1, 2, 2.5 or 5 times a power of ten.
    """
    span = (high - low) or abs(high) or 1.0
    scale = 10.0 ** math.floor(math.log10(span / 5))
    step = next(m * scale for m in (1, 2, 2.5, 5, 10) if span / (m * scale) <= 5 + 1e-9)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def _y_axis(
    sheet: _Sheet, left: float, top: float, height: float, width: float, marks: Sequence[float],
    unit: Callable[[float], str], label: str,
) -> None:  # fmt: skip
    """Lines at `marks`, from 0 at the bottom to the last one on top; `label` stands above them."""
    for mark in marks:
        y = top + height * (1 - mark / marks[-1])
        sheet.line([(left, y), (left + width, y)], RULE, 0.5)
        sheet.text(left - 6, y, unit(mark), size=10, colour=FAINT, anchor="rm")
    sheet.text(left - 6, top - 9, label, size=10, colour=FAINT, anchor="rb")


def printable(text: str) -> str:
    """Text in letters that Pillow's own font has; others as their code point."""
    text = text.translate(LIKE)
    return "".join(c if c in _drawn() else f"[{ord(c):X}]" for c in text)


@lru_cache(maxsize=1)
def _drawn() -> frozenset[str]:
    """Which letters the font draws: those that don't look like the one that stands for none."""
    font = _font(11)
    missing = bytes(font.getmask("\U0010fffd"))
    letters = [chr(c) for c in (*range(32, 0x250), *range(0x2010, 0x2040), 0x2192, 0x2212)]
    return frozenset(c for c in letters if c == " " or bytes(font.getmask(c)) != missing)


@lru_cache(maxsize=4)
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size * SCALE)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def _width(text: str) -> float:
    return float(_font(10).getlength(printable(text))) / SCALE


def _fit(text: str, width: float) -> str:
    while _width(text) > width and len(text) > 1:
        text = text[:-2] + "…"
    return text


def _blend(colour: tuple[int, int, int], share: float) -> tuple[int, int, int]:
    share = min(max(share, 0.0), 1.0)
    r, g, b = (round(p + (c - p) * share) for p, c in zip(PAPER, colour, strict=True))
    return r, g, b
