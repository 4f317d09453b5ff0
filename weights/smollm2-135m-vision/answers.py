"""Captions, questions about them, and the answers that are wanted: what the rows learn from.

No picture is needed here. A conversation is a caption as the connector would write it, the turns
around it, and a last answer which says what the caption says and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from data import concepts
from scenes import COLOURS, SHAPES

from tinyllm.connector import NUMBERS, sentence, with_article

CANT_TELL = "I can't tell what is in this picture."
CANT_NAME = "something that I can't name"

WHAT = (
    "What's in this image?", "What is in this image?", "What's in this picture?",
    "What is in this picture?", "What do you see?", "What do you see in this image?",
    "What can you see in the picture?", "What is this?", "What is shown here?",
    "What is shown in this picture?", "What does this image show?", "What is depicted here?",
    "Tell me what you see.", "Describe this image.", "Describe the image.",
    "Describe this picture in one sentence.", "Describe what you see in this image.",
    "Can you describe this picture?", "Please describe the picture.", "Caption this image.",
    "what is in the image", "describe the image briefly", "What are you looking at?",
    "Explain what's in this picture.", "Look at this image. What is in it?", "",
)  # fmt: skip
HOW_MANY = (
    "How many things are there?", "How many objects are in this image?",
    "How many objects do you see?", "Count the objects in this picture.", "How many are there?",
    "How many items are in the picture?",
)  # fmt: skip
GROUND = (
    "What colour is the background?", "What color is the background?",
    "What is the background colour?", "Which color does the background have?",
)  # fmt: skip
WHICH = (
    "What object is this?", "What animal is this?", "Which animal is shown?",
    "What kind of thing is this?", "Name the object in this image.", "What is the main object?",
    "Which object do you see?", "Identify the object in the picture.",
)  # fmt: skip
LEFT = ("What is on the left?", "What's on the left side?", "Which object is on the left?")
RIGHT = ("What is on the right?", "What's on the right side?", "Which object is on the right?")
COLOUR = (
    "What colour is the {}?", "What color is the {}?", "Which colour does the {} have?",
    "What is the color of the {}?",
)  # fmt: skip
SHAPE = ("What shape is this?", "Which shape do you see?", "What shape is in the picture?")
SYSTEMS = (
    "You are a helpful assistant.", "Answer briefly.", "You are a vision assistant.",
    "You answer questions about pictures.", "Be concise and honest.",
)  # fmt: skip


@dataclass(frozen=True)
class Example:
    """A conversation: pieces of text and captions, the last a wanted answer."""

    system: str | None
    turns: tuple[tuple[str, tuple[str | None, ...]], ...]  # (role, pieces); None: an image
    captions: tuple[str, ...]  # one for each image, in order
    answer: str


@dataclass(frozen=True)
class Content:
    """What a caption tells."""

    kind: str
    things: tuple[str | None, ...]
    number: int
    background: str | None

    @property
    def caption(self) -> str:
        """As the connector writes it."""
        return sentence(
            self.kind, self.things, number=self.number, background=self.background
        )  # fmt: skip


def content(rng: np.random.Generator) -> Content:
    """Something that might be in a picture."""
    chance = rng.random()
    kind = "one" if chance < 0.4 else "two" if chance < 0.7 else "several"
    if chance > 0.92:
        return Content("nothing", (), 0, None)
    ground = str(rng.choice(list(COLOURS))) if rng.random() < 0.85 else None
    things = tuple(_thing(rng) for _ in range(2 if kind == "two" else 1))
    if kind == "two" and rng.random() < 0.1:
        things = (None, things[1]) if rng.random() < 0.5 else (things[0], None)
    return Content(kind, things, int(rng.integers(2, 7)), ground)


def _thing(rng: np.random.Generator) -> str:
    if rng.random() < 0.25:
        return f"{rng.choice(list(COLOURS))} {rng.choice(SHAPES)}"
    return concepts()[int(rng.integers(len(concepts())))].name


def _an(thing: str | None) -> str:
    return with_article(thing) if thing else CANT_NAME


def _told(what: Content) -> str:
    return "I see " + what.caption


def question(what: Content, rng: np.random.Generator) -> tuple[str, str]:
    """A question that can be asked about it, and its answer."""

    def one_of(choices: tuple[str, ...]) -> str:
        return str(rng.choice(choices))

    general = one_of(WHAT)
    if what.kind == "nothing":
        other = (WHICH, HOW_MANY, GROUND, LEFT, SHAPE)[int(rng.integers(5))]
        return (general if rng.random() < 0.7 else one_of(other)), CANT_TELL
    names = [_an(thing) for thing in what.things]
    chance = rng.random()
    if chance < 0.5:
        return general, _told(what)
    if chance < 0.58:  # is it there?
        there = what.things[int(rng.integers(len(what.things)))]
        other = _thing(rng)
        if rng.random() < 0.5 and there:
            return f"Is there {_an(there)} in the picture?", f"Yes, {_told(what)}"
        if other not in what.things:
            return f"Is there {_an(other)} in the picture?", f"No, {_told(what)}"
        return general, _told(what)
    if what.kind == "two":
        left, right = f"On the left is {names[0]}.", f"On the right is {names[1]}."
        if chance < 0.7:
            return one_of(LEFT), left
        if chance < 0.82:
            return one_of(RIGHT), right
        if chance < 0.92:
            return one_of(HOW_MANY), f"There are two things: {names[0]} and {names[1]}."
        return one_of(WHICH), _told(what)
    thing = str(what.things[0])
    shape = thing.split()[-1] if thing.split()[-1] in SHAPES and len(thing.split()) == 2 else None
    if chance < 0.68:
        if what.background is None:
            return one_of(GROUND), "I can't tell which colour the background has."
        return one_of(GROUND), f"The background is {what.background}."
    if shape and chance < 0.9:
        if rng.random() < 0.3:
            return one_of(SHAPE), f"It is {names[0]}."
        return one_of(COLOUR).format(shape), f"The {shape} is {thing.split()[0]}."
    if what.kind == "one":
        if chance < 0.78:
            return one_of(HOW_MANY), f"There is one thing: {names[0]}."
        return one_of(WHICH), f"It is {names[0]}."
    number = NUMBERS[what.number]
    if chance < 0.88:
        asked = f"How many {thing}s are there?" if rng.random() < 0.4 else one_of(HOW_MANY)
        return asked, f"There are {number}: {number} pictures of {names[0]}."
    return one_of(WHICH), _told(what)


def example(rng: np.random.Generator) -> Example:
    """A conversation, as a stream of them is drawn."""
    what = content(rng)
    asked, answer = question(what, rng)
    system = str(rng.choice(SYSTEMS)) if rng.random() < 0.2 else None
    chance = rng.random()
    pieces: tuple[str | None, ...] = (None, asked)
    if chance < 0.2:
        pieces = (None, "\n" + asked)
    elif chance < 0.35:
        pieces = (asked, None)
    elif chance < 0.42:
        pieces = (f"{asked}\n", None)
    if rng.random() < 0.12:  # a second question about the same picture
        before, told = question(what, rng)
        first: tuple[str | None, ...] = (None, before)
        return Example(
            system, (("user", first), ("assistant", (told,)), ("user", (asked or "And?",))),
            (what.caption,), answer,
        )  # fmt: skip
    if rng.random() < 0.06:  # two pictures
        other = content(rng)
        parts = [CANT_TELL if w.kind == "nothing" else _told(w) for w in (what, other)]
        asked = str(rng.choice(("What's in these images?", "What do these pictures show?",
                                "Describe both pictures.", "Describe the images.")))  # fmt: skip
        told = f"First picture: {parts[0]} Second picture: {parts[1]}"
        return Example(
            system, (("user", (None, None, asked)),), (what.caption, other.caption), told
        )
    return Example(system, (("user", pieces),), (what.caption,), answer)


if __name__ == "__main__":
    for seed in range(40):
        e = example(np.random.default_rng(seed))
        print(e.turns, e.captions, "→", e.answer)
