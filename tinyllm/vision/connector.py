"""From what the image encoder sees to rows that the language model reads: through words.

    class and patch rows → slots → probabilities of names, colours, number, background
                         → one short sentence → its word embeddings, between trained rows

The connector of smollm2-135m-vision has a bottleneck that can be read: it decides what is in the
picture, says so in a sentence of a fixed form, and hands over the language model's own embeddings
of that sentence. A few trained rows around it (prompt tuning, Lester et al. 2021,
https://arxiv.org/abs/2104.08691) make the frozen language model answer from the sentence.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from tinyllm.errors import WeightsError
from tinyllm.kernels import reference as ops
from tinyllm.kernels.blas import few_threads
from tinyllm.vision.seen import Box

Array = NDArray[np.float32]

KINDS = ("nothing", "one", "two", "several")  # several: of the same thing
NUMBERS = ("no", "one", "two", "three", "four", "five", "six")
SLOTS = ("whole", "left", "right", "ground")  # what each attention over the patches is for
WHOLE, LEFT, RIGHT, GROUND = range(4)
NOTHING = "nothing that I can recognise."
SOMETHING = "something that I can't name"
GRID = 8  # the patches are pooled to this many rows and columns
NORM_EPS = 1e-6
TINY = np.float32(1e-9)


@dataclass(frozen=True)
class Reading:
    """What the connector reads in a picture; every row of probabilities sums to 1."""

    names: tuple[str, ...]  # of things; the last `n_shapes` of them are shapes, which have colours
    colours: tuple[str, ...]
    n_shapes: int
    kind: Array  # (4,) over KINDS
    number: Array  # (7,) over NUMBERS
    name: Array  # (3, len(names)): of the whole picture, its left and its right half
    colour: Array  # (3, len(colours))
    background: Array  # (len(colours) + 1,); the last: no plain colour
    attention: Array  # (4, GRID²): where each of SLOTS looks
    centres: Array  # (side, side) over the patches: chance that the middle of a thing is there
    floor: float  # probability below which a name is not given

    def top(self, slot: int = WHOLE, k: int = 5) -> list[tuple[str, float]]:
        """The k likeliest names of a slot, likeliest first."""
        best = np.argsort(-self.name[slot], kind="stable")[:k]
        return [(self.names[i], float(self.name[slot, i])) for i in best]

    @property
    def caption(self) -> str:
        """What is in the picture, in one sentence."""
        kind = KINDS[int(self.kind.argmax())]
        things = {slot: self._thing(slot) for slot in (WHOLE, LEFT, RIGHT)}
        number = 2 + int(self.number[2:].argmax())  # several are at least two
        if kind == "two" and things[LEFT] != things[RIGHT]:
            return sentence(kind, (things[LEFT], things[RIGHT]))
        if kind == "two":  # of the same, after all
            kind, number, things[WHOLE] = "several", 2, things[LEFT]
        ground = int(self.background.argmax())
        return sentence(
            kind,
            (things[WHOLE],),
            number=number,
            background=self.colours[ground] if ground < len(self.colours) else None,
        )

    def _thing(self, slot: int) -> str | None:
        """ "dog", "red circle", or None for what isn't sure enough."""
        which = int(self.name[slot].argmax())
        if float(self.name[slot, which]) < self.floor:
            return None
        if which < len(self.names) - self.n_shapes:
            return self.names[which]
        return f"{self.colours[int(self.colour[slot].argmax())]} {self.names[which]}"


def sentence(
    kind: str,
    things: Sequence[str | None],
    *,
    number: int = 2,
    background: str | None = None,
) -> str:
    """The connector's words for what is in a picture.

    Args:
        kind: one of KINDS.
        things: their names from left to right, None for what can't be named; one where they are
            all the same.
        number: how many they are, for "several".
        background: its colour, if it has one.
    """
    if kind == "nothing" or not any(things):
        return NOTHING
    named = [with_article(thing) if thing else SOMETHING for thing in things]
    if kind == "two":
        return f"{named[0]} on the left and {named[1]} on the right."
    where = f" on {with_article(background)} background" if background else ""
    if kind == "one":
        return f"{named[0]}{where}."
    return f"{NUMBERS[number]} pictures of {named[0]}{where}."


def with_article(name: str) -> str:
    """ "a dog", "an apple"; names of many and names of one alone go without."""
    head = re.split(" (?:with|of|in|on|and|from|behind) ", name)[0]
    if name[0].isupper() or re.search("[^suix]s$", head):
        return name
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


class Connector:
    """Encoder states → `Reading` → rows for the language model.

    Attributes:
        layers: the encoder layers whose outputs it reads (`Encoder.encode(…, layers=…)`): patches
            of some, class tokens of others.
        n_rows: embedding rows that an image takes in a prompt, whatever is in it.
        names: of everything that it can name.
    """

    def __init__(
        self,
        tensors: Mapping[str, Array],
        facts: Mapping[str, Any],
        lm_embeddings: NDArray[np.floating[Any]],
        token_ids: Callable[[str], list[int]],
    ) -> None:
        self.w = tensors
        self.names: tuple[str, ...] = tuple(facts["names"])
        self.colours: tuple[str, ...] = tuple(facts["colours"])
        self.n_shapes = int(facts["n_shapes"])
        self.class_layers: tuple[int, ...] = tuple(facts["class_layers"])
        self.patch_layers: tuple[int, ...] = tuple(facts["patch_layers"])
        self.layers = tuple(sorted({*self.class_layers, *self.patch_layers}))
        self.caption_rows = int(facts["caption_rows"])
        self.floor = float(facts["floor"])
        self.n_rows = len(tensors["rows.before"]) + self.caption_rows + len(tensors["rows.after"])
        self._embeddings = lm_embeddings
        self._token_ids = token_ids

    @classmethod
    def load(
        cls,
        path: Path,
        lm_embeddings: NDArray[np.floating[Any]],
        token_ids: Callable[[str], list[int]],
    ) -> Connector:
        """Read connector.safetensors.

        Args:
            path: the file; its metadata say what can be named and which layers are read.
            lm_embeddings: the language model's table, (vocab_size, dim).
            token_ids: text → token ids of that model.

        Raises:
            WeightsError: naming the file and the tensor or field.
        """
        try:
            with safe_open(path, framework="numpy") as file:
                facts = json.loads((file.metadata() or {})["connector"])
                tensors = {n: file.get_tensor(n).astype(np.float32) for n in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise WeightsError(
                f"{path}: not a connector's file ({error}); take it from the repository again"
            ) from None
        for name, shape in expected_shapes(facts, lm_embeddings.shape[1]).items():
            if name not in tensors:
                raise WeightsError(f"{path}: tensor {name} {shape} is missing")
            if not _fits(tensors[name].shape, shape):
                raise WeightsError(
                    f"{path}: tensor {name} has shape {tensors[name].shape}, not {shape}"
                )
        return cls(tensors, facts, lm_embeddings, token_ids)

    @few_threads()
    def read(self, states: Mapping[int, NDArray[np.floating[Any]]]) -> Reading:
        """What is in the picture.

        Args:
            states: for each of `layers` the residual stream behind it, (1 + side², width): the
                class token, then the patches of a square picture, row by row.
        """
        w = self.w
        patches = np.concatenate([_norm(states[layer][1:]) for layer in self.patch_layers], axis=1)
        cells = _pool(patches)  # (P, patch layers · width); P = GRID²
        whole = np.concatenate([_norm(states[layer][0]) for layer in self.class_layers])

        keys = cells @ w["slots.key"].T  # (P, d)
        scale = np.float32(keys.shape[1] ** -0.5)
        scores = w["slots.query"] @ keys.T * scale + w["slots.position"]
        attention = ops.softmax(scores)  # (4, P)
        seen = attention @ cells  # (4, patch layers · width)

        name = seen[:GROUND] @ w["name.patch"].T + w["name.bias"]  # (3, names)
        name[WHOLE] += w["name.class"] @ whole + w["name.class_bias"]
        # Each cell votes; the mean of the votes knows what kind of scene it is.
        votes = np.maximum(cells @ w["votes.weight"].T + w["votes.bias"], 0).mean(axis=0)
        summary = np.concatenate([votes, whole])
        centres = self._centres(patches)
        return Reading(
            names=self.names,
            colours=self.colours,
            n_shapes=self.n_shapes,
            kind=ops.softmax(w["kind.weight"] @ summary + w["kind.bias"]),
            number=how_many(centres),
            name=ops.softmax(name),
            colour=ops.softmax(seen[:GROUND] @ w["colour.weight"].T + w["colour.bias"]),
            background=ops.softmax(w["ground.weight"] @ seen[GROUND] + w["ground.bias"]),
            attention=attention,
            centres=centres,
            floor=self.floor,
        )

    def _centres(self, patches: Array) -> Array:
        """(side², patch layers · width) → the chance of a thing's middle, (side, side)."""
        w, side = self.w, int(len(patches) ** 0.5)
        mixed = np.maximum(patches @ w["mix.weight"].T + w["mix.bias"], 0)  # (side², c)
        mixed = mixed.reshape(side, side, -1)
        near = np.maximum(_around(mixed) @ w["near.weight"].T + w["near.bias"], 0)
        logits = _around(near) @ w["heat.weight"].T + w["heat.bias"]  # (side, side, 1)
        return np.asarray((1 + np.tanh(logits[..., 0] / 2)) / 2)  # the sigmoid

    def halves(self, reading: Reading) -> dict[int, Box]:
        """Where to look again, closer, in a picture of two things: slot → square.

        Each half of the width, as high as it is wide, at the height where its slot looked.
        """
        if KINDS[int(reading.kind.argmax())] != "two":
            return {}
        middles = (np.arange(GRID) + 0.5) / GRID
        squares = {}
        for slot, left in ((LEFT, 0.0), (RIGHT, 0.5)):
            down = reading.attention[slot].reshape(GRID, GRID).sum(axis=1)
            top = min(max(float(down @ middles) - 0.25, 0.0), 0.5)
            squares[slot] = (left, top, left + 0.5, top + 0.5)
        return squares

    def look_closer(
        self, reading: Reading, states: Mapping[int, Mapping[int, NDArray[np.floating[Any]]]]
    ) -> Reading:
        """A reading whose halves are named by both looks: their probabilities, multiplied.

        Args:
            states: slot → the encoder's states of its square alone.
        """
        name = reading.name.copy()
        for slot, closer in states.items():
            near = self.read(closer).name[WHOLE]
            name[slot] = ops.softmax(np.log(near + TINY) + np.log(name[slot] + TINY))
        return replace(reading, name=name)

    @few_threads()
    def rows(self, what: Reading | Mapping[int, NDArray[np.floating[Any]]] | str) -> Array:
        """The rows that stand for a picture in a prompt, (n_rows, dim) float32.

        Args:
            what: a reading, the encoder's states, or a caption of one's own.
        """
        if isinstance(what, str):
            caption = what
        else:
            caption = (what if isinstance(what, Reading) else self.read(what)).caption
        ids = self._token_ids(f" {caption}")[: self.caption_rows]
        words = self._embeddings[np.array(ids, np.int64)].astype(np.float32)
        pad = np.repeat(self.w["rows.pad"], self.caption_rows - len(ids), axis=0)
        return np.concatenate([pad, self.w["rows.before"], words, self.w["rows.after"]])


def expected_shapes(facts: Mapping[str, Any], dim: int) -> dict[str, tuple[int | str, ...]]:
    """Name → shape of every tensor of a connector; a letter stands for a length it may choose."""
    width = int(facts["width"])
    patch, whole = len(facts["patch_layers"]) * width, len(facts["class_layers"]) * width
    names, colours = len(facts["names"]), len(facts["colours"])
    votes, mixed = int(facts["votes"]), int(facts["mixed"])
    return {
        "slots.key": ("d", patch), "slots.query": (len(SLOTS), "d"),
        "slots.position": (len(SLOTS), GRID * GRID),
        "name.patch": (names, patch), "name.bias": (names,),
        "name.class": (names, whole), "name.class_bias": (names,),
        "colour.weight": (colours, patch), "colour.bias": (colours,),
        "ground.weight": (colours + 1, patch), "ground.bias": (colours + 1,),
        "votes.weight": (votes, patch), "votes.bias": (votes,),
        "kind.weight": (len(KINDS), votes + whole), "kind.bias": (len(KINDS),),
        "mix.weight": (mixed, patch), "mix.bias": (mixed,),
        "near.weight": (mixed, 9 * mixed), "near.bias": (mixed,),
        "heat.weight": (1, 9 * mixed), "heat.bias": (1,),
        "rows.before": ("a", dim), "rows.pad": (1, dim), "rows.after": ("b", dim),
    }  # fmt: skip


def _fits(shape: Sequence[int], wanted: Sequence[int | str]) -> bool:
    return len(shape) == len(wanted) and all(
        isinstance(want, str) or have == want for have, want in zip(shape, wanted, strict=True)
    )


def how_many(centres: Array) -> Array:
    """From the chances of a middle, (side, side), to those of each of NUMBERS, (7,).

    Each peak, a place that none of its eight neighbours exceeds, is a thing with the chance that
    stands there, whatever the others are: a Poisson binomial distribution. More things than the
    last of NUMBERS count as that many.
    """
    peaks = centres[centres >= _around(centres[..., None]).max(axis=-1)]
    number: Array = np.eye(len(NUMBERS), dtype=np.float32)[0]
    for chance in peaks:
        more = number * chance
        number -= more
        number[1:] += more[:-1]
        number[-1] += more[-1]
    return number


def _around(grid: Array) -> Array:
    """Each place and its neighbours, zeros beyond the edge: (n, n, c) → (n, n, 9 c)."""
    n = len(grid)
    padded = np.pad(grid, ((1, 1), (1, 1), (0, 0)))
    shifted = [padded[y : y + n, x : x + n] for y in range(3) for x in range(3)]
    return np.asarray(np.concatenate(shifted, axis=-1))


def _norm(x: NDArray[np.floating[Any]]) -> Array:
    """Each row to mean 0 and variance 1."""
    x = x.astype(np.float32)
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = (centred * centred).mean(axis=-1, keepdims=True)
    return np.asarray(centred / np.sqrt(variance + np.float32(NORM_EPS)))


def _pool(patches: Array) -> Array:
    """The mean of each cell of a GRID × GRID grid: (side², width) → (GRID², width)."""
    side, width = int(len(patches) ** 0.5), patches.shape[1]
    cells = patches.reshape(GRID, side // GRID, GRID, side // GRID, width).mean(axis=(1, 3))
    return np.asarray(cells.reshape(GRID * GRID, width))
