"""Scenes: what a picture holds, and the picture itself.

`scene(index, split)` is the same for everyone who asks: the index is the seed. Four kinds, in turn:
one thing, two things side by side, several of one thing, and nothing that has a name: blank
grounds, noise, patterns. A thing is an emoji or a coloured shape.
"""

from __future__ import annotations

import colorsys
import functools
import io
import zlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
from data import (
    DEVELOPMENT_STYLE,
    FINAL_STYLE,
    ICONS,
    TRAINING_STYLES,
    Concept,
    concepts,
    draw,
    pictures,
)
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps

SIDE = 224
COLOURS = {
    "red": (214, 40, 40), "orange": (240, 130, 20), "yellow": (245, 210, 30),
    "green": (40, 150, 60), "blue": (40, 90, 210), "purple": (130, 60, 170),
    "pink": (245, 130, 180), "brown": (120, 75, 40), "black": (20, 20, 20),
    "grey": (130, 130, 130), "white": (250, 250, 250),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "star", "heart", "ring", "cross", "diamond")
Split = Literal["train", "more", "validation", "development", "final"]
Kind = Literal["one", "two", "count", "nothing"]
# Sixteen scenes: what kind each is, and whether of emoji or of shapes.
KINDS: tuple[tuple[Kind, bool], ...] = (
    ("one", True), ("two", True), ("one", True), ("one", True), ("count", True), ("one", True),
    ("two", True), ("one", True), ("one", False), ("one", True), ("nothing", False), ("two", True),
    ("one", True), ("count", False), ("one", True), ("two", False),
)  # fmt: skip


@dataclass(frozen=True)
class Thing:
    """An object in the picture; its box is (left, top, right, bottom) as shares of the side."""

    name: str  # of a concept or a shape
    box: tuple[float, float, float, float]
    colour: str | None = None  # of shapes

    @property
    def words(self) -> str:
        """ "dog", "red circle"."""
        return f"{self.colour} {self.name}" if self.colour else self.name


@dataclass(frozen=True)
class Scene:
    """What is in a picture, from left to right."""

    kind: Kind
    things: tuple[Thing, ...]
    background: str | None  # a colour, or None where there is no telling


def held_out(colour: str, shape: str) -> bool:
    """Whether a colour and shape are never trained on together: about a fifth of the pairs."""
    return zlib.crc32(f"{colour} {shape}".encode()) % 5 == 0


@dataclass(frozen=True)
class Plan:
    """A scene, and what it takes to draw it."""

    scene: Scene
    ground: Image.Image
    style: str | None  # of emoji; None for shapes
    boxes: tuple[tuple[float, float, float, float], ...]
    concepts: tuple[Concept, ...]  # a thing each
    pairs: tuple[tuple[str, str], ...]  # or a (colour, shape) each
    rng: np.random.Generator  # as it stands when drawing begins


def scene(index: int, split: Split = "train") -> tuple[Scene, Image.Image]:
    """The scene of that number, and its picture, RGB, SIDE × SIDE.

    "train", "more" and "validation" draw in the training styles (validation has its own indices),
    "development" and "final" in styles that no training step sees, each emoji as it is.
    """
    plan = _plan(index, split)
    image, rng, drawn = plan.ground, plan.rng, None
    for concept, box in zip(plan.concepts, plan.boxes, strict=False):
        if drawn is None or plan.scene.kind == "two":
            code = concept.codes[int(rng.integers(len(concept.codes)))]
            drawn = draw(str(plan.style), code)
            if split in TRAINING_STYLES:
                drawn = vary(drawn, rng)
        _paste(image, drawn, box, rng)
    for (colour, shape), box in zip(plan.pairs, plan.boxes, strict=False):
        _draw_shape(image, shape, colour, box, rng)
    if split in TRAINING_STYLES and plan.scene.kind != "nothing":
        image = _wear(image, rng)
    return plan.scene, image


def contents(split: Split, n: int) -> list[Scene]:
    """What the first n scenes hold, without drawing them."""
    return [_plan(i, split).scene for i in range(n)]


def _plan(index: int, split: Split) -> Plan:
    rng = np.random.default_rng([index, zlib.crc32(split.encode())])
    kind, emoji = KINDS[index % len(KINDS)]
    if kind == "nothing":
        blank, image = _nothing(rng)
        return Plan(blank, image, None, (), (), (), rng)
    background = str(rng.choice(["white"] * 5 + list(COLOURS)))
    image = _ground(background, rng)
    n = {"one": 1, "two": 2, "count": int(rng.integers(2, 7))}[kind]
    boxes = tuple(_boxes(kind, n, rng))
    style, named, coloured = None, (), ()
    if emoji:
        style = FINAL_STYLE if split == "final" else DEVELOPMENT_STYLE
        styles = TRAINING_STYLES.get("train" if split == "validation" else split)
        if styles:
            style = str(rng.choice(list(styles), p=list(styles.values())))
        # The first thing of scene after scene goes through the concepts in a shuffled order.
        known = drawn_by(style)
        order = np.random.default_rng([index // len(known), len(known)])
        first = int(order.permutation(len(known))[index * 7 % len(known)])
        second = (first + int(rng.integers(1, len(known)))) % len(known)
        named = (known[first], known[second]) if kind == "two" else (known[first],) * n
        things = [Thing(c.name, box) for c, box in zip(named, boxes, strict=True)]
    else:
        pairs = [
            (c, s)
            for c in COLOURS
            for s in SHAPES
            if c != background and (split not in TRAINING_STYLES or not held_out(c, s))
        ]
        one, other = (pairs[i] for i in rng.choice(len(pairs), 2, replace=False))
        coloured = (one, other) if kind == "two" else (one,) * n
        things = [Thing(s, box, c) for (c, s), box in zip(coloured, boxes, strict=True)]
    things.sort(key=lambda thing: thing.box[0] + thing.box[2])
    return Plan(Scene(kind, tuple(things), background), image, style, boxes, named, coloured, rng)


@functools.cache
def drawn_by(style: str) -> tuple[Concept, ...]:
    """The concepts of which a style has pictures, each with those alone."""
    if style not in ICONS:
        return concepts()
    there = pictures(style)
    found = (Concept(c.name, tuple(x for x in c.codes if x in there)) for c in concepts())
    return tuple(concept for concept in found if concept.codes)


def vary(emoji: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The same thing as another hand might have drawn it: tilted, stretched, in other colours."""
    n = emoji.width
    big = Image.new("RGBA", (n * 5 // 4, n * 5 // 4))
    big.paste(emoji, (n // 8, n // 8))
    angle = np.deg2rad(rng.normal(0, 20 if rng.random() < 0.15 else 6))
    stretch = np.exp(rng.normal(0, 0.1))
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    shear = np.array([[stretch, rng.normal(0, 0.07)], [rng.normal(0, 0.03), 1 / stretch]])
    matrix = turn @ shear
    centre = np.full(2, big.width / 2)
    offset = centre - matrix @ centre
    rows = np.concatenate([matrix, offset[:, None]], axis=1).reshape(-1)
    image = big.transform(big.size, Image.Transform.AFFINE, tuple(rows), Image.Resampling.BICUBIC)
    alpha = image.getchannel("A")
    image = image.crop(alpha.getbbox() or (0, 0, *image.size)) if rng.random() < 0.5 else image
    alpha, rgb = image.getchannel("A"), image.convert("RGB")
    if rng.random() < 0.12:
        rgb = ImageOps.grayscale(rgb).convert("RGB")
    elif rng.random() < 0.6:
        hue = rng.normal(0, 8 if rng.random() < 0.8 else 40)
        h, s, v = rgb.convert("HSV").split()
        h = h.point([int((x + hue) % 256) for x in range(256)])
        rgb = Image.merge("HSV", (h, s, v)).convert("RGB")
        rgb = ImageEnhance.Color(rgb).enhance(float(rng.uniform(0.5, 1.6)))
    if rng.random() < 0.5:
        rgb = ImageEnhance.Contrast(rgb).enhance(float(rng.uniform(0.7, 1.3)))
        rgb = ImageEnhance.Brightness(rgb).enhance(float(rng.uniform(0.8, 1.2)))
    if rng.random() < 0.25:  # flat areas, as drawings have that know no gradients
        rgb = rgb.quantize(int(rng.integers(4, 12)), Image.Quantize.MEDIANCUT).convert("RGB")
        rgb = rgb.filter(ImageFilter.ModeFilter(5))
    if rng.random() < 0.12:  # an outline around it, dark or like a sticker's
        edge = alpha.filter(ImageFilter.MaxFilter(int(rng.choice([5, 9]))))
        ink = (30, 30, 30) if rng.random() < 0.5 else (255, 255, 255)
        rgb = Image.composite(rgb, Image.new("RGB", rgb.size, ink), alpha)
        alpha = edge
    rgb.putalpha(alpha)
    return rgb


def _wear(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """What happens to pictures on their way: small copies, blur, JPEG, noise."""
    chance = rng.random()
    if chance < 0.12:
        small = int(rng.integers(64, 160))
        return image.resize((small, small), Image.Resampling.BILINEAR).resize(
            (SIDE, SIDE), Image.Resampling.BICUBIC
        )
    if chance < 0.2:
        return image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.5, 1.5))))
    if chance < 0.35:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=int(rng.integers(30, 90)))
        return Image.open(file).convert("RGB")
    if chance < 0.42:
        pixels = np.asarray(image) + rng.normal(0, rng.uniform(3, 14), (SIDE, SIDE, 3))
        return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    return image


def _nothing(rng: np.random.Generator) -> tuple[Scene, Image.Image]:
    """A blank ground, or noise, blots, stripes and ramps, of which nothing can be told."""
    chance = rng.random()
    if chance < 0.4:
        background = str(rng.choice(list(COLOURS)))
        image = _ground(background, rng)
        if rng.random() < 0.3:
            pixels = np.asarray(image) + rng.normal(0, rng.uniform(2, 12), (SIDE, SIDE, 3))
            image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        return Scene("nothing", (), background), image
    pixels: NDArray[np.float64]
    channels = 1 if rng.random() < 0.35 else 3
    if chance < 0.6:
        pixels = rng.uniform(0, 255, (SIDE, SIDE, channels))
        if rng.random() < 0.3:
            pixels = rng.normal(128, rng.uniform(20, 80), (SIDE, SIDE, channels))
    elif chance < 0.8:  # noise that is coarser than a pixel, hard-edged or soft
        grid = int(rng.choice([3, 5, 8, 16, 28, 56]))
        cells = rng.integers(0, 256, (grid, grid, 3)).astype(np.uint8)
        filters = (Image.Resampling.NEAREST, Image.Resampling.BICUBIC)
        coarse = Image.fromarray(cells).resize((SIDE, SIDE), filters[int(rng.integers(2))])
        return Scene("nothing", (), None), coarse
    elif chance < 0.9:  # stripes
        angle, width = rng.uniform(0, np.pi), rng.uniform(4, 40)
        y, x = np.mgrid[:SIDE, :SIDE]
        wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * np.pi / width)[..., None]
        if rng.random() < 0.5:
            wave = np.sign(wave)
        ends = rng.uniform(0, 255, (2, 3))
        pixels = ends[0] + (ends[1] - ends[0]) * (wave + 1) / 2
    else:  # a ramp from one colour to another
        ends = rng.uniform(0, 255, (2, 3))
        share = np.linspace(0, 1, SIDE)[:, None, None]
        share = share if rng.random() < 0.5 else share.transpose(1, 0, 2)
        pixels = np.broadcast_to(ends[0] + (ends[1] - ends[0]) * share, (SIDE, SIDE, 3))
    pixels = np.broadcast_to(pixels, (SIDE, SIDE, 3))
    return Scene("nothing", (), None), Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _tint(colour: str, rng: np.random.Generator, spread: float) -> tuple[float, float, float]:
    """A colour, 0 … 255, varied in hue and lightness, but still that colour."""
    red, green, blue = (c / 255 for c in COLOURS[colour])
    hue, light, rich = colorsys.rgb_to_hls(red, green, blue)
    hue = (hue + rng.normal(0, spread / 4)) % 1
    light = float(np.clip(light + rng.normal(0, spread), 0, 1))
    rich = float(np.clip(rich * (1 + rng.normal(0, spread)), 0, 1))
    tinted = colorsys.hls_to_rgb(hue, light, rich)
    return tinted[0] * 255, tinted[1] * 255, tinted[2] * 255


def _ground(background: str, rng: np.random.Generator) -> Image.Image:
    """A plain ground, now and then with a soft gradient."""
    base = np.array(_tint(background, rng, 0.03))
    slope = rng.normal(0, 8) if rng.random() < 0.3 else 0.0
    ramp = np.linspace(-slope, slope, SIDE)[:, None, None]
    pixels = np.broadcast_to(base + ramp, (SIDE, SIDE, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _place(
    rng: np.random.Generator, least: float, most: float, left: float = 0.0, right: float = 1.0
) -> tuple[float, float, float, float]:
    """A square box between two verticals."""
    side = float(rng.uniform(least, most)) * min(1.0, right - left)
    x = float(rng.uniform(left, right - side))
    y = float(rng.uniform(0, 1 - side))
    return x, y, x + side, y + side


def _boxes(kind: Kind, n: int, rng: np.random.Generator) -> list[tuple[float, float, float, float]]:
    if kind == "one":
        if rng.random() < 0.35:  # in the middle and large
            half = float(rng.uniform(0.3, 0.5))
            return [(0.5 - half, 0.5 - half, 0.5 + half, 0.5 + half)]
        return [_place(rng, 0.4, 0.95)]
    if kind == "two":
        return [_place(rng, 0.65, 1.0, 0.0, 0.5), _place(rng, 0.65, 1.0, 0.5, 1.0)]
    boxes = []
    if n <= 3 and rng.random() < 0.4:  # in a row
        for cell in range(n):
            side = float(rng.uniform(0.75, 0.95)) / n
            x, y = cell / n + (1 / n - side) / 2, 0.5 - side / 2 + float(rng.normal(0, 0.03))
            boxes.append((x, y, x + side, y + side))
        return boxes
    for cell in rng.permutation(9)[:n]:  # in a grid of 3 × 3, one a cell
        x, y = cell % 3 / 3, cell // 3 / 3
        side = float(rng.uniform(0.22, 0.32))
        dx, dy = rng.uniform(0, 1 / 3 - side, 2)
        boxes.append((x + dx, y + dy, x + dx + side, y + dy + side))
    return boxes


def _paste(
    image: Image.Image, emoji: Image.Image, box: tuple[float, ...], rng: np.random.Generator
) -> None:
    side = max(8, round((box[2] - box[0]) * SIDE))
    turned = emoji.rotate(float(rng.normal(0, 3)), Image.Resampling.BICUBIC)
    turned = ImageOps.contain(turned, (side, side), Image.Resampling.LANCZOS)
    left = round(box[0] * SIDE) + (side - turned.width) // 2
    top = round(box[1] * SIDE) + (side - turned.height) // 2
    image.paste(turned, (left, top), turned)


def _draw_shape(
    image: Image.Image,
    shape: str,
    colour: str,
    box: tuple[float, ...],
    rng: np.random.Generator,
) -> None:
    """Drawn four times as large and shrunk, for smooth edges."""
    n = 4 * max(8, round((box[2] - box[0]) * SIDE))
    mask = Image.new("L", (n, n), 0)
    pen = ImageDraw.Draw(mask)
    turn = np.linspace(0, 2 * np.pi, 10, endpoint=False) - np.pi / 2
    if shape == "circle":
        pen.ellipse((0, 0, n - 1, n - 1), 255)
    elif shape == "square":
        pen.rectangle((n * 0.05, n * 0.05, n * 0.95, n * 0.95), 255)
    elif shape == "triangle":
        pen.polygon([(n / 2, n * 0.05), (n, n * 0.95), (0, n * 0.95)], 255)
    elif shape == "diamond":
        narrow = float(rng.uniform(0, 0.2)) * n
        pen.polygon([(n / 2, 0), (n - narrow, n / 2), (n / 2, n), (narrow, n / 2)], 255)
    elif shape == "star":
        inner = float(rng.uniform(0.18, 0.26)) * n
        radius = np.where(np.arange(10) % 2 == 0, n / 2, inner)
        points = zip(n / 2 + radius * np.cos(turn), n / 2 + radius * np.sin(turn), strict=True)
        pen.polygon([(float(x), float(y)) for x, y in points], 255)
    elif shape == "heart":
        t = np.linspace(0, 2 * np.pi, 100)
        x = 16 * np.sin(t) ** 3
        y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
        points = zip(n / 2 + x / 34 * n, n * 0.45 - y / 34 * n, strict=True)
        pen.polygon([(float(a), float(b)) for a, b in points], 255)
    elif shape == "ring":
        hole = float(rng.uniform(0.18, 0.33)) * n
        pen.ellipse((0, 0, n - 1, n - 1), 255)
        pen.ellipse((hole, hole, n - hole, n - hole), 0)
    elif shape == "cross":
        bar = float(rng.uniform(0.33, 0.4)) * n
        pen.rectangle((bar, 0, n - bar, n), 255)
        pen.rectangle((0, bar, n, n - bar), 255)
    spread = 12 if shape in ("square", "cross", "diamond", "triangle") else 20
    mask = mask.rotate(float(rng.normal(0, spread / 3)), Image.Resampling.BICUBIC)
    mask = mask.resize((n // 4, n // 4), Image.Resampling.LANCZOS)
    tint = tuple(round(min(255.0, c)) for c in _tint(colour, rng, 0.04))
    image.paste(tint, (round(box[0] * SIDE), round(box[1] * SIDE)), mask)


if __name__ == "__main__":
    sheet = Image.new("RGB", (8 * SIDE, 6 * SIDE))
    for i in range(48):
        what, picture = scene(i, ("train", "development")[i // 32])
        sheet.paste(picture, (i % 8 * SIDE, i // 8 * SIDE))
        print(i, what.kind, [thing.words for thing in what.things], what.background)
    sheet.save("scenes.png")
