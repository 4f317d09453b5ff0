"""Scenes: what a picture holds, the picture itself, and what can be asked about it.

`scene(index, split)` is the same for everyone who asks: the index is the seed. Four kinds, in turn:
one thing, two things side by side, several of one thing, a coloured shape; and now and then
nothing at all, of which the honest answer is that nothing can be told.
"""

from __future__ import annotations

import colorsys
import zlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
from data import DEVELOPMENT_STYLE, TRAINING_STYLES, Concept, concepts, draw
from PIL import Image, ImageDraw

SIDE = 224
COLOURS = {
    "red": (214, 40, 40), "orange": (240, 130, 20), "yellow": (245, 210, 30),
    "green": (40, 150, 60), "blue": (40, 90, 210), "purple": (130, 60, 170),
    "pink": (245, 130, 180), "brown": (120, 75, 40), "black": (20, 20, 20),
    "grey": (130, 130, 130), "white": (250, 250, 250),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "star", "heart", "ring", "cross", "diamond")
NUMBERS = ("no", "one", "two", "three", "four", "five", "six")
Split = Literal["train", "validation", "development"]
Kind = Literal["one", "two", "count", "shape", "nothing"]
KINDS: tuple[Kind, ...] = ("one", "two", "one", "count", "one", "two", "shape", "one", "nothing")


@dataclass(frozen=True)
class Thing:
    """An object in the picture; its box is (left, top, right, bottom) as shares of the side."""

    name: str
    box: tuple[float, float, float, float]
    concept: int | None = None  # its place in `concepts()`; None for shapes
    colour: str | None = None  # of shapes
    shape: str | None = None


@dataclass(frozen=True)
class Scene:
    """What is in a picture, from left to right, and questions with their answers."""

    kind: Kind
    things: tuple[Thing, ...]
    background: str
    questions: tuple[tuple[str, str], ...]


def held_out(colour: str, shape: str) -> bool:
    """Whether a colour and shape are never trained on together: about a fifth of the pairs."""
    return zlib.crc32(f"{colour} {shape}".encode()) % 5 == 0


def scene(index: int, split: Split = "train") -> tuple[Scene, Image.Image]:
    """The scene of that number, and its picture, RGB, SIDE × SIDE.

    "train" and "validation" draw in the training styles (validation has its own indices),
    "development" in the style that no training step sees.
    """
    rng = np.random.default_rng([index, zlib.crc32(split.encode())])
    styles = (DEVELOPMENT_STYLE,) if split == "development" else TRAINING_STYLES
    kind = KINDS[index % len(KINDS)]
    background = str(rng.choice(["white"] * 4 + list(COLOURS)))
    image = _canvas(background, rng)
    things: list[Thing] = []
    if kind == "shape":
        pairs = [
            (c, s)
            for c in COLOURS
            for s in SHAPES
            if c != background and (split != "train" or not held_out(c, s))
        ]
        colour, shape = pairs[rng.integers(len(pairs))]
        box = _place(rng, 0.35, 0.8)
        _draw_shape(image, shape, COLOURS[colour], box)
        things = [Thing(f"{colour} {shape}", box, colour=colour, shape=shape)]
    elif kind == "nothing":
        if rng.random() < 0.5:
            noise = rng.integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)
            image = Image.fromarray(noise)
            background = "noise"
    else:
        style = str(rng.choice(styles))
        n = {"one": 1, "two": 2, "count": int(rng.integers(2, 7))}[kind]
        chosen = rng.choice(len(concepts()), 2, replace=False)
        for number, box in enumerate(_boxes(kind, n, rng)):
            which = int(chosen[number if kind == "two" else 0])
            concept = concepts()[which]
            _paste(image, draw(style, concept.code), box, rng)
            things.append(Thing(concept.name, box, concept=which))
    things.sort(key=lambda thing: thing.box[0] + thing.box[2])
    return Scene(kind, tuple(things), background, _questions(kind, things, background)), image


def article(name: str) -> str:
    """ "a dog", "an apple"."""
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def _questions(kind: Kind, things: list[Thing], background: str) -> tuple[tuple[str, str], ...]:
    describe = "Describe what you see in this image."
    if kind == "nothing":
        unsure = "I can't tell: I don't see anything that I know in this picture."
        return ((describe, unsure), ("What's in this image?", unsure))
    names = [article(thing.name) for thing in things]
    if kind == "two":
        told = f"I see {names[0]} on the left and {names[1]} on the right."
        return (
            (describe, told),
            ("What's in this image?", told),
            ("What is on the left?", f"On the left is {names[0]}."),
            ("What is on the right?", f"On the right is {names[1]}."),
            ("How many things are there?", "There are two."),
        )
    if kind == "count":
        number = NUMBERS[len(things)]
        told = f"I see {number} pictures of {names[0]}."
        return (
            (describe, told),
            ("What's in this image?", told),
            ("How many are there?", f"There are {number}."),
        )
    questions = [
        (describe, f"I see {names[0]} on a {background} background."),
        ("What's in this image?", f"I see {names[0]}."),
        ("What colour is the background?", f"It is {background}."),
    ]
    if kind == "shape":
        questions.append(("What colour is the shape?", f"It is {things[0].colour}."))
    return tuple(questions)


def _canvas(background: str, rng: np.random.Generator) -> Image.Image:
    """A plain ground, its colour varied a little, now and then with a soft gradient."""
    red, green, blue = (c / 255 for c in COLOURS[background])
    hue, light, rich = colorsys.rgb_to_hls(red, green, blue)
    light = float(np.clip(light + rng.normal(0, 0.03), 0, 1))
    base = np.array(colorsys.hls_to_rgb(hue, light, rich)) * 255
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
        return [_place(rng, 0.4, 0.95)]
    if kind == "two":
        return [_place(rng, 0.6, 0.95, 0.0, 0.5), _place(rng, 0.6, 0.95, 0.5, 1.0)]
    cells = rng.permutation(9)[:n]  # a grid of 3 × 3, one a cell
    boxes = []
    for cell in cells:
        x, y = cell % 3 / 3, cell // 3 / 3
        side = float(rng.uniform(0.22, 0.3))
        dx, dy = rng.uniform(0, 1 / 3 - side, 2)
        boxes.append((x + dx, y + dy, x + dx + side, y + dy + side))
    return boxes


def _paste(
    image: Image.Image, emoji: Image.Image, box: tuple[float, ...], rng: np.random.Generator
) -> None:
    side = max(8, round((box[2] - box[0]) * SIDE))
    turned = emoji.rotate(float(rng.normal(0, 6)), Image.Resampling.BICUBIC)
    small = turned.resize((side, side), Image.Resampling.LANCZOS)
    image.paste(small, (round(box[0] * SIDE), round(box[1] * SIDE)), small)


def _draw_shape(
    image: Image.Image, shape: str, colour: tuple[int, int, int], box: tuple[float, ...]
) -> None:
    """Drawn four times as large and shrunk, for smooth edges."""
    n = 4 * max(8, round((box[2] - box[0]) * SIDE))
    mask = Image.new("L", (n, n), 0)
    pen = ImageDraw.Draw(mask)
    turn = np.linspace(0, 2 * np.pi, 10, endpoint=False) - np.pi / 2
    if shape == "circle":
        pen.ellipse((0, 0, n - 1, n - 1), 255)
    elif shape == "square":
        pen.rectangle((0, 0, n, n), 255)
    elif shape == "triangle":
        pen.polygon([(n / 2, 0), (n, n), (0, n)], 255)
    elif shape == "diamond":
        pen.polygon([(n / 2, 0), (n, n / 2), (n / 2, n), (0, n / 2)], 255)
    elif shape == "star":
        radius = np.where(np.arange(10) % 2 == 0, n / 2, n / 5)
        points = zip(n / 2 + radius * np.cos(turn), n / 2 + radius * np.sin(turn), strict=True)
        pen.polygon([(float(x), float(y)) for x, y in points], 255)
    elif shape == "heart":
        pen.ellipse((0, 0, n * 0.55, n * 0.55), 255)
        pen.ellipse((n * 0.45, 0, n, n * 0.55), 255)
        pen.polygon([(n * 0.05, n * 0.4), (n * 0.95, n * 0.4), (n / 2, n)], 255)
    elif shape == "ring":
        pen.ellipse((0, 0, n - 1, n - 1), 255)
        pen.ellipse((n * 0.28, n * 0.28, n * 0.72, n * 0.72), 0)
    elif shape == "cross":
        pen.rectangle((n * 0.35, 0, n * 0.65, n), 255)
        pen.rectangle((0, n * 0.35, n, n * 0.65), 255)
    mask = mask.resize((n // 4, n // 4), Image.Resampling.LANCZOS)
    image.paste(colour, (round(box[0] * SIDE), round(box[1] * SIDE)), mask)


def names() -> list[Concept]:
    """The concepts in the order of their numbers."""
    return list(concepts())


if __name__ == "__main__":
    sheet = Image.new("RGB", (9 * SIDE, 4 * SIDE))
    for i in range(36):
        what, picture = scene(i, ("train", "development")[i // 18])
        sheet.paste(picture, (i % 9 * SIDE, i // 9 * SIDE))
        print(i, what.questions[0][1])
    sheet.save("scenes.png")
