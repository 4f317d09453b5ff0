"""The heads that read a picture: what `tinyllm.connector` computes, in torch, for training.

`Look` finds where things are and in which colours, `Count` how many there are, and `Naming` names
what the slots see. They are trained one after the other: naming a thousand things on rows that are
pooled already is fifty times cheaper than through all the cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from data import concepts
from features import CLASS, PATCH
from scenes import COLOURS, SHAPES, Scene
from torch import Tensor, nn
from torch.nn import functional

from tinyllm.connector import GRID, GROUND, KINDS, LEFT, NUMBERS, RIGHT, SLOTS, WHOLE

VOTES = 128
IGNORE = -100


def names() -> tuple[str, ...]:
    """Everything that has a name: the concepts, then the shapes."""
    return (*(concept.name for concept in concepts()), *SHAPES)


class Look(nn.Module):
    """Cells (B, 64, PATCH) → where the slots look, what they see, and logits of its colour."""

    def __init__(self, key_dim: int = 64, dropout: float = 0.2) -> None:
        super().__init__()
        self.key = nn.Linear(PATCH, key_dim, bias=False)
        self.query = nn.Parameter(torch.randn(len(SLOTS), key_dim) * 0.1)
        self.position = nn.Parameter(torch.zeros(len(SLOTS), GRID * GRID))
        self.colour = nn.Linear(PATCH, len(COLOURS))
        self.ground = nn.Linear(PATCH, len(COLOURS) + 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, cells: Tensor) -> dict[str, Tensor]:
        keys = self.key(cells)
        scores = keys @ self.query.T * keys.shape[-1] ** -0.5  # (B, 64, 4)
        attention = (scores.mT + self.position).softmax(-1)
        seen = attention @ cells  # (B, 4, PATCH)
        return {
            "attention": attention,
            "seen": seen,
            "colour": self.colour(self.dropout(seen[:, :GROUND])),
            "ground": self.ground(self.dropout(seen[:, GROUND])),
        }


class Count(nn.Module):
    """Class rows (B, CLASS) and cells (B, 64, PATCH) → logits: what kind of scene, how many."""

    def __init__(self, dropout: float = 0.2, noise: float = 0.1) -> None:
        super().__init__()
        self.votes = nn.Linear(PATCH, VOTES)
        self.kind = nn.Linear(VOTES + CLASS, len(KINDS))
        self.number = nn.Linear(VOTES + CLASS, len(NUMBERS))
        self.dropout, self.noise = nn.Dropout(dropout), noise

    def forward(self, whole: Tensor, cells: Tensor) -> dict[str, Tensor]:
        if self.training:
            whole = whole + self.noise * torch.randn_like(whole)
        votes = functional.relu(self.votes(cells)).mean(1)
        summary = torch.cat([self.dropout(votes), self.dropout(whole)], dim=-1)
        return {"kind": self.kind(summary), "number": self.number(summary)}


class Naming(nn.Module):
    """A class row (B, CLASS) and what a slot saw (B, PATCH) → logits over names, for either.

    Both are whitened first: without that, a few directions in which all pictures differ drown the
    many that tell a thousand things apart. `tensors_of` multiplies it into the weights.
    """

    def __init__(
        self, n_names: int | None = None, dropout: float = 0.3, noise: float = 0.3
    ) -> None:
        super().__init__()
        self.patch = nn.Linear(PATCH, n_names or len(names()))
        self.whole = nn.Linear(CLASS, n_names or len(names()), bias=False)
        for name, width in (("patch", PATCH), ("whole", CLASS)):
            self.register_buffer(f"{name}_mean", torch.zeros(width))
            self.register_buffer(f"{name}_white", torch.eye(width))
        self.dropout, self.noise = nn.Dropout(dropout), noise

    def whiten(self, name: str, rows: Tensor, damping: float = 0.1) -> None:
        """Measure on rows (N, width) what makes them uncorrelated and of one variance."""
        mean = rows.mean(0)
        values, turn = torch.linalg.eigh((rows - mean).T @ (rows - mean) / len(rows))
        scale = (values + damping * values.mean()).rsqrt()
        self.get_buffer(f"{name}_mean").copy_(mean)
        self.get_buffer(f"{name}_white").copy_(turn * scale @ turn.T)

    def forward(self, whole: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        whole = (whole - self.whole_mean) @ self.whole_white
        seen = (seen - self.patch_mean) @ self.patch_white
        if self.training:
            whole = self.dropout(whole + self.noise * torch.randn_like(whole))
            seen = self.dropout(seen + self.noise * torch.randn_like(seen))
        return self.whole(whole), self.patch(seen)


def targets(scenes: Sequence[Scene]) -> dict[str, Tensor]:
    """What the heads should say; IGNORE where there is nothing to say."""
    place = {name: i for i, name in enumerate(names())}
    colours = list(COLOURS)
    name = torch.full((len(scenes), 3), IGNORE)
    colour = torch.full((len(scenes), 3), IGNORE)
    inside = torch.zeros(len(scenes), len(SLOTS), GRID * GRID)
    kinds, numbers, grounds = [], [], []
    for i, scene in enumerate(scenes):
        slots = {"one": [WHOLE], "two": [LEFT, RIGHT], "count": [WHOLE], "nothing": []}[scene.kind]
        for slot, thing in zip(slots, scene.things, strict=False):
            name[i, slot] = place[thing.name]
            if thing.colour:
                colour[i, slot] = colours.index(thing.colour)
            boxes = scene.things if slot == WHOLE else (thing,)
            inside[i, slot] = torch.stack([_cells(t.box) for t in boxes]).amax(0)
        if scene.things and scene.background:
            every = torch.stack([_cells(t.box) for t in scene.things]).amax(0)
            inside[i, GROUND] = 1 - every
        kinds.append(KINDS.index({"count": "several"}.get(scene.kind, scene.kind)))
        numbers.append(len(scene.things))
        grounds.append(colours.index(scene.background) if scene.background else len(colours))
    return {
        "name": name, "colour": colour, "inside": inside, "kind": torch.tensor(kinds),
        "number": torch.tensor(numbers), "ground": torch.tensor(grounds),
    }  # fmt: skip


def _cells(box: tuple[float, float, float, float]) -> Tensor:
    """1 for the cells of the grid whose middle is in the box, (GRID²,)."""
    middle = (torch.arange(GRID) + 0.5) / GRID
    half = 0.5 / GRID  # a thing that is smaller than a cell is in one all the same
    across = (middle > box[0] - half) & (middle < box[2] + half)
    down = (middle > box[1] - half) & (middle < box[3] + half)
    return (down[:, None] & across[None, :]).float().reshape(-1)


def look_loss(said: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Tensor:
    """The colours' cross entropies, and that the slots look evenly where their things are."""
    colours = wanted["colour"].flatten()
    loss = 0.5 * functional.cross_entropy(said["ground"], wanted["ground"])
    if (colours != IGNORE).any():
        flat = said["colour"].flatten(0, 1)
        loss = loss + functional.cross_entropy(flat, colours, ignore_index=IGNORE)
    there = wanted["inside"].amax(-1) > 0  # (B, 4)
    inside = wanted["inside"][there]
    evenly = inside / inside.sum(-1, keepdim=True)
    return loss - (evenly * torch.log(said["attention"][there] + 1e-6)).sum(-1).mean()


def count_loss(said: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Tensor:
    """The two cross entropies."""
    return sum(
        (functional.cross_entropy(said[name], wanted[name]) for name in ("kind", "number")),
        torch.zeros(()),
    )


def naming_loss(
    logits: tuple[Tensor, Tensor], bias: Tensor, names: Tensor, has_class: Tensor
) -> Tensor:
    """Cross entropies of the class row's and the cells' logits, each alone and both together.

    Args:
        bias: the cells' bias, which both share.
        names: (B,) what is right.
        has_class: (B,) 1 where the class row is of this thing alone, 0 for one of two things.
    """
    whole, patch = logits

    def entropy(logits: Tensor) -> Tensor:
        return functional.cross_entropy(logits, names, reduction="none", label_smoothing=0.1)

    both = entropy(whole + patch) + 0.5 * entropy(whole + bias)
    return (has_class * both + (1 - 0.5 * has_class) * entropy(patch)).mean()


def tensors_of(
    look: Mapping[str, Tensor], count: Mapping[str, Tensor], naming: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The heads' weights under the names that `tinyllm.connector` gives them."""
    patch, whole = (naming[f"{n}.weight"] @ naming[f"{n}_white"] for n in ("patch", "whole"))
    tensors = {
        "slots.key": look["key.weight"], "slots.query": look["query"],
        "slots.position": look["position"],
        "name.patch": patch, "name.bias": naming["patch.bias"] - patch @ naming["patch_mean"],
        "name.class": whole, "name.class_bias": -whole @ naming["whole_mean"],
    }  # fmt: skip
    for name in ("colour", "ground", "votes", "kind", "number"):
        module = look if name in ("colour", "ground") else count
        for kind in ("weight", "bias"):
            tensors[f"{name}.{kind}"] = module[f"{name}.{kind}"]
    return tensors
