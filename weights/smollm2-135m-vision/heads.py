"""The heads that read a picture: what `tinyllm.connector` computes, in torch, for training."""

from __future__ import annotations

from collections.abc import Mapping

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


class Heads(nn.Module):
    """Class rows (B, 1152) and patch rows (B, 64, 1152), normalised → logits by name."""

    def __init__(
        self,
        n_names: int | None = None,
        key_dim: int = 64,
        dropout: float = 0.3,
        noise: float = 0.3,
    ) -> None:
        super().__init__()
        n_names, n_colours = n_names or len(names()), len(COLOURS)
        self.key = nn.Linear(PATCH, key_dim, bias=False)
        self.query = nn.Parameter(torch.randn(len(SLOTS), key_dim) * 0.1)
        self.position = nn.Parameter(torch.zeros(len(SLOTS), GRID * GRID))
        self.name_patch = nn.Linear(PATCH, n_names)
        self.name_class = nn.Linear(CLASS, n_names, bias=False)
        self.colour = nn.Linear(PATCH, n_colours)
        self.ground = nn.Linear(PATCH, n_colours + 1)
        self.votes = nn.Linear(PATCH, VOTES)
        self.kind = nn.Linear(VOTES + CLASS, len(KINDS))
        self.number = nn.Linear(VOTES + CLASS, len(NUMBERS))
        self.dropout, self.noise = nn.Dropout(dropout), noise

    def forward(self, classes: Tensor, patches: Tensor) -> dict[str, Tensor]:
        keys = self.key(patches)
        scores = keys @ self.query.T * keys.shape[-1] ** -0.5  # (B, P, 4)
        attention = (scores.mT + self.position).softmax(-1)  # (B, 4, P)
        seen = attention @ patches  # (B, 4, PATCH)
        if self.training and self.noise:
            seen = seen + self.noise * torch.randn_like(seen)
            classes = classes + self.noise * torch.randn_like(classes)
        named = self.name_patch(self.dropout(seen[:, :GROUND]))  # (B, 3, names)
        whole = self.name_class(self.dropout(classes))
        votes = functional.relu(self.votes(patches)).mean(1)
        summary = torch.cat([self.dropout(votes), self.dropout(classes)], dim=-1)
        return {
            "attention": attention,
            "whole": named[:, WHOLE] + whole,
            "whole_patch": named[:, WHOLE],
            "whole_class": whole + self.name_patch.bias,
            "sides": named[:, LEFT : RIGHT + 1],
            "colour": self.colour(self.dropout(seen[:, :GROUND])),
            "ground": self.ground(self.dropout(seen[:, GROUND])),
            "kind": self.kind(summary),
            "number": self.number(summary),
        }


def targets(scenes: list[Scene]) -> dict[str, Tensor]:
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


def loss_of(said: dict[str, Tensor], wanted: dict[str, Tensor], smoothing: float = 0.1) -> Tensor:
    """The heads' cross entropies, and that the slots look where their things are."""

    def entropy(logits: Tensor, labels: Tensor, smooth: float = 0.0) -> Tensor:
        if (labels == IGNORE).all():
            return torch.zeros(())
        return functional.cross_entropy(logits, labels, ignore_index=IGNORE, label_smoothing=smooth)

    whole, sides = wanted["name"][:, WHOLE], wanted["name"][:, LEFT : RIGHT + 1]
    # The patches alone and the class rows alone must know it too, so that neither leans on the
    # other, and so that the halves learn from whole pictures.
    loss = entropy(said["whole"], whole, smoothing)
    loss = loss + 0.5 * entropy(said["whole_patch"], whole, smoothing)
    loss = loss + 0.5 * entropy(said["whole_class"], whole, smoothing)
    loss = loss + entropy(said["sides"].flatten(0, 1), sides.flatten(), smoothing)
    loss = loss + entropy(said["colour"].flatten(0, 1), wanted["colour"].flatten())
    loss = loss + 0.5 * entropy(said["ground"], wanted["ground"])
    loss = loss + entropy(said["kind"], wanted["kind"]) + entropy(said["number"], wanted["number"])
    mass = (said["attention"] * wanted["inside"]).sum(-1)  # (B, 4)
    there = wanted["inside"].amax(-1) > 0
    return loss - 0.3 * torch.log(mass[there] + 1e-4).mean()


def tensors_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The heads' weights under the names that `tinyllm.connector` gives them."""
    tensors = {
        "slots.key": state["key.weight"], "slots.query": state["query"],
        "slots.position": state["position"],
        "name.patch": state["name_patch.weight"], "name.class": state["name_class.weight"],
        "name.bias": state["name_patch.bias"],
    }  # fmt: skip
    for name in ("colour", "ground", "votes", "kind", "number"):
        for kind in ("weight", "bias"):
            tensors[f"{name}.{kind}"] = state[f"{name}.{kind}"]
    return tensors
