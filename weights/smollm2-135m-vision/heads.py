"""The heads that read a picture: what `tinyllm.vision.connector` computes, in torch, for training.

`Look` finds where things are and in which colours, `Kind` what sort of scene it is, `Centres` the
middle of each thing; they are trained by gradients. What the slots see is named by linear
discriminants, which are solved for (`discriminants`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from data import concepts
from features import CLASS, PATCH, SIDE
from scenes import COLOURS, SHAPES, Scene
from torch import Tensor, nn
from torch.nn import functional

from tinyllm.vision.connector import GRID, GROUND, KINDS, LEFT, RIGHT, SLOTS, WHOLE

VOTES = 128
MIXED = 48
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


class Kind(nn.Module):
    """Class rows (B, CLASS) and cells (B, 64, PATCH) → logits: what kind of scene."""

    def __init__(self, dropout: float = 0.2, noise: float = 0.1) -> None:
        super().__init__()
        self.votes = nn.Linear(PATCH, VOTES)
        self.kind = nn.Linear(VOTES + CLASS, len(KINDS))
        self.dropout, self.noise = nn.Dropout(dropout), noise

    def forward(self, whole: Tensor, cells: Tensor) -> Tensor:
        if self.training:
            whole = whole + self.noise * torch.randn_like(whole)
        votes = functional.relu(self.votes(cells)).mean(1)
        return self.kind(torch.cat([self.dropout(votes), self.dropout(whole)], dim=-1))


class Centres(nn.Module):
    """Patches (B, SIDE, SIDE, kept) → logits that the middle of a thing is there, (B, SIDE, SIDE).

    Two convolutions over the principal components of the patches: fewer numbers than the patches
    have, so that training is quick. `tensors_of` multiplies them into the weights.
    """

    def __init__(self, width: int = MIXED, kept: int = 128, noise: float = 0.1) -> None:
        super().__init__()
        self.mix = nn.Linear(kept, width)
        self.near = nn.Conv2d(width, width, 3, padding=1)
        self.heat = nn.Conv2d(width, 1, 3, padding=1)
        self.heat.bias.data.fill_(-3.0)  # middles are few
        self.register_buffer("mean", torch.zeros(PATCH))
        self.register_buffer("components", torch.eye(PATCH)[:kept])
        self.noise, self.dropout = noise, nn.Dropout2d(0.1)

    def analyse(self, rows: Tensor) -> None:
        """Measure the principal components on rows (N, PATCH), each scaled to variance 1."""
        kept, mean = len(self.components), rows.mean(0)
        values, turn = torch.linalg.eigh((rows - mean).T @ (rows - mean) / len(rows))
        self.mean.copy_(mean)
        self.components.copy_((turn[:, -kept:] * values[-kept:].rsqrt()).T)

    def squeeze(self, patches: Tensor) -> Tensor:
        """(B, SIDE², PATCH) → (B, SIDE, SIDE, kept)."""
        return ((patches - self.mean) @ self.components.T).unflatten(1, (SIDE, SIDE))

    def forward(self, squeezed: Tensor) -> Tensor:
        if self.training:  # a look of its own for each picture, and noise
            squeezed = squeezed * (1 + 0.2 * torch.randn_like(squeezed[:, :1, :1]))
            squeezed = squeezed + self.noise * torch.randn_like(squeezed)
        mixed = self.dropout(functional.relu(self.mix(squeezed)).permute(0, 3, 1, 2))
        return self.heat(self.dropout(functional.relu(self.near(mixed))))[:, 0]


def discriminants(
    rows: Tensor, names: Tensor, n_names: int, prior: float = 2.0, damping: float = 0.03
) -> tuple[Tensor, Tensor]:
    """Fisher's linear discriminants: weights (n_names, width) and biases (n_names,).

    A row's logit for a name is that of a Gaussian around the name's mean, all names of one
    covariance: directions in which pictures of one thing differ, from one hand to another, count
    for little.

    Args:
        rows: (N, width) of single things.
        names: (N,) what each is.
        prior: pictures of the mean of all that each name is given besides its own.
        damping: added to the covariance's diagonal, as a share of its mean.
    """
    common = rows.mean(0)
    sums = torch.zeros(n_names, rows.shape[1]).index_add_(0, names, rows)
    counts = torch.bincount(names, minlength=n_names)[:, None]
    means = (sums + prior * common) / (counts + prior)
    apart = rows - means[names]
    covariance = apart.T @ apart / len(rows)
    covariance += damping * covariance.diagonal().mean() * torch.eye(len(covariance))
    weights = torch.linalg.solve(covariance, (means - common).T).T
    return weights, -0.5 * ((means + common) * weights).sum(1)


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


def heat_of(scenes: Sequence[Scene]) -> tuple[Tensor, Tensor]:
    """What `Centres` should say: the patches that things' middles are in, and soft hills around
    them, where it is no harm to say so; (N, SIDE, SIDE) each."""
    middle = torch.arange(SIDE) + 0.5
    middles, hills = torch.zeros(2, len(scenes), SIDE, SIDE)
    for i, scene in enumerate(scenes):
        for thing in scene.things:
            left, top, right, bottom = (SIDE * x for x in thing.box)
            x, y, spread = (left + right) / 2, (top + bottom) / 2, max(0.6, (right - left) / 8)
            far = (middle[:, None] - y) ** 2 + (middle[None, :] - x) ** 2
            hills[i] = torch.maximum(hills[i], torch.exp(-far / (2 * spread**2)))
            middles[i, min(int(y), SIDE - 1), min(int(x), SIDE - 1)] = 1
    return middles, hills


def centres_loss(logits: Tensor, middles: Tensor, hills: Tensor, number: Tensor) -> Tensor:
    """A focal loss on where middles are (Law and Deng 2018, https://arxiv.org/abs/1808.01244), and
    the cross entropy of how many peaks there are."""
    chance = logits.sigmoid().clamp(1e-5, 1 - 1e-5)
    hit = -(middles * (1 - chance) ** 2 * chance.log()).sum((1, 2))
    false = -((1 - middles) * (1 - hills) ** 4 * chance**2 * (1 - chance).log()).sum((1, 2))
    said = how_many(chance).gather(1, number[:, None])
    return ((hit + false) / number.clamp(min=1)).mean() - (said + 1e-6).log().mean()


def how_many(chance: Tensor, most: int = 9) -> Tensor:
    """(B, SIDE, SIDE) → the chance of each number of things, (B, most + 1), where each peak is one
    with the chance that stands there."""
    highest = functional.max_pool2d(chance[:, None], 3, stride=1, padding=1)[:, 0]
    peaks = torch.where(chance == highest, chance, 0).flatten(1).topk(most).values
    number = functional.one_hot(torch.zeros(len(chance), dtype=torch.long), most + 1).float()
    for peak in peaks.unbind(1):
        more = functional.pad(number[:, :-1], (1, 0))
        number = number * (1 - peak[:, None]) + more * peak[:, None]
    return number


def tensors_of(
    look: Mapping[str, Tensor], kind: Mapping[str, Tensor], centres: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The heads' weights under the names that `tinyllm.vision.connector` gives them."""
    mix = centres["mix.weight"] @ centres["components"]
    tensors = {
        "slots.key": look["key.weight"], "slots.query": look["query"],
        "slots.position": look["position"],
        "mix.weight": mix, "mix.bias": centres["mix.bias"] - mix @ centres["mean"],
    }  # fmt: skip
    for name in ("near", "heat"):  # (out, in, 3, 3) → (out, 3 · 3 · in)
        tensors[f"{name}.weight"] = centres[f"{name}.weight"].permute(0, 2, 3, 1).flatten(1)
        tensors[f"{name}.bias"] = centres[f"{name}.bias"]
    for name in ("colour", "ground", "votes", "kind"):
        module = look if name in ("colour", "ground") else kind
        for part in ("weight", "bias"):
            tensors[f"{name}.{part}"] = module[f"{name}.{part}"]
    return tensors
