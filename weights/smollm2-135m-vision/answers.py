"""Captions, questions about them, and the answers that are wanted: what the rows learn from.

No picture is needed here. A conversation is a caption as the connector would write it, the turns
around it, and a last answer which says what the caption says and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from data import concepts
from scenes import COLOURS, SHAPES

from tinyllm.vision.connector import NUMBERS, sentence, with_article

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
IS = ("Is this {}?", "Is it {}?", "Does this picture show {}?", "Would you say that this is {}?")
IS_THERE = ("Is there {} in the picture?", "Do you see {}?", "Is there {} in this image?")
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
class Asked:
    """A question about a picture, and the answer that is wanted."""

    kind: str  # what sort of question it is
    question: str
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


def question(what: Content, rng: np.random.Generator) -> Asked:
    """A question that can be asked about it, and its answer."""

    def one_of(choices: tuple[str, ...]) -> str:
        return str(rng.choice(choices))

    names, told = [_an(thing) for thing in what.things], _told(what)
    other = _thing(rng)
    stranger, alike = _an(other), any(thing and _overlap(thing, other) for thing in what.things)
    if what.kind == "nothing":
        other = one_of(
            (*WHICH, *HOW_MANY, *GROUND, *LEFT, *SHAPE, *(q.format(stranger) for q in IS))
        )
        return Asked("nothing", one_of(WHAT) if rng.random() < 0.6 else other, CANT_TELL)
    which = int(rng.integers(len(names)))
    known = what.things[which] is not None
    some = one_of(IS_THERE)
    asked = [
        (8, Asked("general", one_of(WHAT), told)),
        (2 * known, Asked("is there, yes", some.format(names[which]), f"Yes, {told}")),
        (2 * (not alike), Asked("is there, no", some.format(stranger), f"No, {told}")),
    ]
    if what.kind == "two":
        sides = [f"On the left is {names[0]}.", f"On the right is {names[1]}."]
        questions, side = (LEFT, RIGHT), ("left", "right")
        here, elsewhere = sides[which], names[1 - which]
        asked += [
            (3, Asked("left", one_of(questions[0]), sides[0])),
            (3, Asked("right", one_of(questions[1]), sides[1])),
            (2 * known, Asked("is left or right, yes",
                              f"Is {names[which]} on the {side[which]}?", f"Yes, {_low(here)}")),
            (2 * (names[0] != names[1]),
             Asked("is left or right, no",
                   f"Is {elsewhere} on the {side[which]}?", f"No, {_low(here)}")),
            (2, Asked("how many", one_of(HOW_MANY),
                      f"There are two things: {names[0]} and {names[1]}.")),
            (1, Asked("which", one_of(WHICH), told)),
        ]  # fmt: skip
        return _one_of(asked, rng)
    thing = str(what.things[0])
    ground = f"The background is {what.background}."
    if what.background is None:
        ground = "I can't tell which colour the background has."
    asked.append((2, Asked("background", one_of(GROUND), ground)))
    colour, _, shape = thing.partition(" ")
    if shape in SHAPES and colour in COLOURS:
        asked += [
            (3, Asked("colour", one_of(COLOUR).format(shape), f"The {shape} is {colour}.")),
            (1, Asked("shape", one_of(SHAPE), f"It is {names[0]}.")),
        ]
    if what.kind == "one":
        is_it, it_is = one_of(IS), f"it is {names[0]}."
        asked += [
            (3, Asked("is this, yes", is_it.format(names[0]), f"Yes, {it_is}")),
            (3 * (not alike), Asked("is this, no", is_it.format(stranger), f"No, {it_is}")),
            (2, Asked("how many", one_of(HOW_MANY), f"There is one thing: {names[0]}.")),
            (2, Asked("which", one_of(WHICH), f"It is {names[0]}.")),
        ]
        return _one_of(asked, rng)
    number = NUMBERS[what.number]
    counted = f"There are {number}: {number} pictures of {names[0]}."
    asked += [
        (3, Asked("how many", one_of(HOW_MANY), counted)),
        (2, Asked("how many", f"How many {thing}s are there?", counted)),
        (1, Asked("which", one_of(WHICH), told)),
    ]
    return _one_of(asked, rng)


def _overlap(thing: str, other: str) -> bool:
    """Whether one may be said of the other: a black cat is a cat, too."""
    return f" {thing} ".find(f" {other} ") >= 0 or f" {other} ".find(f" {thing} ") >= 0


def _one_of(asked: list[tuple[int, Asked]], rng: np.random.Generator) -> Asked:
    """One of them, as often as its weight says."""
    weights = np.array([weight for weight, _ in asked], float)
    return asked[int(rng.choice(len(asked), p=weights / weights.sum()))][1]


def _low(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:]


def example(rng: np.random.Generator) -> Example:
    """A conversation, as a stream of them is drawn."""
    what = content(rng)
    asked = question(what, rng)
    system = str(rng.choice(SYSTEMS)) if rng.random() < 0.2 else None
    chance = rng.random()
    pieces: tuple[str | None, ...] = (None, asked.question)
    if chance < 0.2:
        pieces = (None, "\n" + asked.question)
    elif chance < 0.35:
        pieces = (asked.question, None)
    elif chance < 0.42:
        pieces = (f"{asked.question}\n", None)
    if rng.random() < 0.12:  # a second question about the same picture
        before = question(what, rng)
        first: tuple[str | None, ...] = (None, before.question)
        then = (asked.question or "And?",)
        return Example(
            system, (("user", first), ("assistant", (before.answer,)), ("user", then)),
            (what.caption,), asked.answer,
        )  # fmt: skip
    if rng.random() < 0.06:  # two pictures
        other = content(rng)
        parts = [CANT_TELL if w.kind == "nothing" else _told(w) for w in (what, other)]
        both = str(rng.choice(("What's in these images?", "What do these pictures show?",
                               "Describe both pictures.", "Describe the images.")))  # fmt: skip
        told = f"First picture: {parts[0]} Second picture: {parts[1]}"
        return Example(system, (("user", (None, None, both)),), (what.caption, other.caption), told)
    return Example(system, (("user", pieces),), (what.caption,), asked.answer)


if __name__ == "__main__":
    for seed in range(40):
        e = example(np.random.default_rng(seed))
        print(e.turns, e.captions, "→", e.answer)
