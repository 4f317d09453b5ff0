"""From what the encoder sees to words that the language model knows.

`Heads` name what is in the picture: slots, ordered from left to right, each with a distribution
over concepts, colours and shapes; and for the whole picture its number of things and background.
`SoftWords` turns distributions into embeddings: a slot's row is the mean of the language model's
own word embeddings, weighted by probability, so that a sure slot *is* that word.
"""

from __future__ import annotations

import torch
from data import concepts
from scenes import COLOURS, NUMBERS, SHAPES, Scene
from torch import Tensor, nn
from torch.nn import functional

N_SLOTS = 6
WORDS = 3  # rows that a concept's name takes: its first tokens, the last one repeated
NAMED_SLOTS = 2  # of which the language model is told
BACKGROUNDS = (*COLOURS, "noise")
SIZES = {
    "concept": len(concepts()) + 1,  # the last class of each: none
    "colour": len(COLOURS) + 1,
    "shape": len(SHAPES) + 1,
}
N_ROWS = NAMED_SLOTS * WORDS + 4  # names, and colour, shape, number, background


class Heads(nn.Module):
    """Class row (B, 384), patch rows (B, 64, 384) → logits by name; slots (B, 6, classes)."""

    def __init__(self, dim: int = 256, n_layers: int = 2) -> None:
        super().__init__()
        self.project = nn.Sequential(nn.LayerNorm(384), nn.Linear(384, dim))
        self.project_class = nn.Sequential(nn.LayerNorm(384), nn.Linear(384, dim))
        self.positions = nn.Parameter(torch.randn(64, dim) * 0.02)
        self.queries = nn.Parameter(torch.randn(N_SLOTS + 1, dim) * 0.02)
        layer = nn.TransformerDecoderLayer(
            dim, 8, 4 * dim, dropout=0.1, activation="gelu", batch_first=True, norm_first=True
        )
        self.decoder = nn.TransformerDecoder(layer, n_layers, norm=nn.LayerNorm(dim))
        # The class row names single things best; each slot may look at it directly.
        self.slots = nn.ModuleDict({k: nn.Linear(2 * dim, n) for k, n in SIZES.items()})
        self.number = nn.Linear(2 * dim, len(NUMBERS))
        self.background = nn.Linear(2 * dim, len(BACKGROUNDS))

    def forward(self, classes: Tensor, patches: Tensor) -> dict[str, Tensor]:
        whole = self.project_class(classes)[:, None]  # (B, 1, dim)
        memory = torch.cat([self.project(patches) + self.positions, whole], dim=1)
        queries = self.queries.expand(len(classes), -1, -1)
        seen = self.decoder(queries, memory)  # (B, slots + 1, dim)
        seen = torch.cat([seen, whole.expand_as(seen)], dim=-1)
        logits = {name: head(seen[:, :N_SLOTS]) for name, head in self.slots.items()}
        logits["number"] = self.number(seen[:, -1])
        logits["background"] = self.background(seen[:, -1])
        return logits


def targets(scenes: list[Scene]) -> dict[str, Tensor]:
    """What `Heads` should say of each scene; the slots are filled from the left."""
    none = {name: size - 1 for name, size in SIZES.items()}
    out = {name: torch.full((len(scenes), N_SLOTS), none[name]) for name in SIZES}
    for i, scene in enumerate(scenes):
        for slot, thing in enumerate(scene.things[:N_SLOTS]):
            if thing.concept is not None:
                out["concept"][i, slot] = thing.concept
            if thing.colour is not None and thing.shape is not None:
                out["colour"][i, slot] = list(COLOURS).index(thing.colour)
                out["shape"][i, slot] = SHAPES.index(thing.shape)
    out["number"] = torch.tensor([len(scene.things) for scene in scenes])
    out["background"] = torch.tensor([BACKGROUNDS.index(scene.background) for scene in scenes])
    return out


def loss_of(logits: dict[str, Tensor], wanted: dict[str, Tensor]) -> Tensor:
    """The sum of the heads' cross entropies, each a mean; empty slots weigh a tenth."""
    total = torch.zeros(())
    for name, given in logits.items():
        weight = None
        if name in SIZES:
            weight = torch.ones(SIZES[name])
            weight[-1] = 0.1
        flat = given.reshape(-1, given.shape[-1])
        total = total + functional.cross_entropy(
            flat, wanted[name].reshape(-1), weight, label_smoothing=0.05
        )
    return total


class SoftWords(nn.Module):
    """Distributions → rows for the language model, (B, N_ROWS, dim).

    Args:
        embeddings: the language model's table, (vocab_size, dim); frozen.
        ids_of: text → token ids.
    """

    def __init__(self, embeddings: Tensor, ids_of: object) -> None:
        super().__init__()

        def table(names: list[str], word: int) -> Tensor:
            rows = []
            for name in names:
                ids = ids_of(" " + name)  # type: ignore[operator]
                rows.append(embeddings[ids[min(word, len(ids) - 1)]])
            return torch.stack(rows)

        names = [concept.name for concept in concepts()] + ["nothing"]
        for word in range(WORDS):
            self.register_buffer(f"concept{word}", table(names, word), persistent=False)
        for name, words in {
            "colour": [*COLOURS, "none"],
            "shape": [*SHAPES, "none"],
            "number": list(NUMBERS),
            "background": list(BACKGROUNDS),
        }.items():
            self.register_buffer(name, table(words, 0), persistent=False)
        # Which row is which: what little is trained here besides the language model's adapter.
        self.place = nn.Parameter(torch.zeros(N_ROWS, embeddings.shape[1]))

    def forward(self, logits: dict[str, Tensor]) -> Tensor:
        rows = []
        for slot in range(NAMED_SLOTS):
            share = logits["concept"][:, slot].softmax(-1)
            rows += [share @ self.get_buffer(f"concept{word}") for word in range(WORDS)]
        rows += [
            logits[name][:, 0].softmax(-1) @ self.get_buffer(name) for name in ("colour", "shape")
        ]
        rows += [logits[n].softmax(-1) @ self.get_buffer(n) for n in ("number", "background")]
        return torch.stack(rows, dim=1) + self.place


class LoRA(nn.Module):
    """A frozen linear map and a trained one of low rank beside it; Hu et al. 2021, 2106.09685."""

    def __init__(self, linear: nn.Linear, rank: int = 8, alpha: float = 16.0) -> None:
        super().__init__()
        self.linear = linear
        self.a = nn.Parameter(torch.randn(rank, linear.in_features) / linear.in_features**0.5)
        self.b = nn.Parameter(torch.zeros(linear.out_features, rank))
        self.scale = alpha / rank

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + (x @ self.a.T) @ self.b.T * self.scale


def add_lora(model: nn.Module, names: tuple[str, ...]) -> list[nn.Parameter]:
    """Freeze a model and give its linear maps of those names adapters; returns their weights."""
    model.requires_grad_(False)
    places = [(m, n) for m in model.modules() for n, c in m.named_children() if n in names]
    for module, name in places:
        setattr(module, name, LoRA(getattr(module, name)))
    return [p for p in model.parameters() if p.requires_grad]
