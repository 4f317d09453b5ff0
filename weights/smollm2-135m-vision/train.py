"""Train the connector of smollm2-135m-vision.

    python train.py look      # where things are in a picture, in which colours
    python train.py kind      # one thing, two, several of the same, or nothing
    python train.py centres   # where the middle of each is, and so how many they are
    python train.py names     # what they are; after `look`
    python train.py rows      # answer from a caption; no pictures
    python train.py pack      # all into connector.safetensors

Each is reproducible from --seed, shows its progress, saves every --save-every steps, goes on where
it was when started again, and draws its loss into .packed/<stage>-loss.png; `names` is solved for
at once. Pictures come from packages (data.py), features from the frozen encoder (features.py).
Needs the `train` extra.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from answers import example
from data import CACHE
from features import CLASS_LAYERS, DIM, PATCH, PATCH_LAYERS, counted, features, patches
from heads import (
    IGNORE,
    MIXED,
    VOTES,
    Centres,
    Kind,
    Look,
    centres_loss,
    discriminants,
    heat_of,
    look_loss,
    names,
    targets,
    tensors_of,
)
from numpy.typing import NDArray
from rows import CAPTION_ROWS, Rows, embedded
from rows import loss_of as rows_loss
from run import Run
from safetensors.torch import save_file
from scenes import COLOURS, SHAPES, Split, contents
from torch import Tensor
from torch.nn.functional import cross_entropy

from tinyllm import fetch
from tinyllm.tokenizer import Tokenizer
from tinyllm.vision.connector import GROUND, WHOLE, expected_shapes

HERE = Path(__file__).parent
FLOOR = 0.05  # a name that is less likely than this is not given
# Defaults by stage: what the connector in this folder was trained with.
DEFAULTS: dict[str, dict[str, float]] = {
    "look": {"scenes": 12_000, "steps": 500, "batch": 64, "lr": 2e-3,
             "weight_decay": 0.01, "warm_up": 50},
    "kind": {"scenes": 12_000, "more": 5_088, "steps": 1500, "batch": 64, "lr": 1e-3,
             "weight_decay": 0.01, "warm_up": 50},
    "centres": {"scenes": 6_144, "more": 5_088, "steps": 1500, "batch": 32, "lr": 2e-3,
                "weight_decay": 0.01, "warm_up": 50},
    "names": {"scenes": 12_000, "more": 5_088},
    "rows": {"steps": 110, "batch": 8, "lr": 5e-3, "weight_decay": 0.0, "warm_up": 20},
}  # fmt: skip


def train_look(options: argparse.Namespace) -> None:
    """Encoded pictures → where things are, and their colours; supervised by what was drawn."""
    _, cells = features("train", options.scenes)
    wanted = targets(contents("train", options.scenes))
    look = Look()

    def loss_at(rng: np.random.Generator) -> Tensor:
        i = rng.choice(options.scenes, options.batch)
        return look_loss(look(rows_of(cells, i)), {k: v[i] for k, v in wanted.items()})

    Run(options, look).go(loss_at)


def train_kind(options: argparse.Namespace) -> None:
    """Encoded pictures → what kind of scene."""
    splits: tuple[tuple[Split, int], ...] = (("train", options.scenes), ("more", options.more))
    whole, cells = (np.concatenate(x) for x in zip(*(features(*s) for s in splits), strict=True))
    wanted = torch.cat([targets(contents(*split))["kind"] for split in splits])
    kind = Kind()

    def loss_at(rng: np.random.Generator) -> Tensor:
        i = rng.choice(len(wanted), options.batch)
        return cross_entropy(kind(rows_of(whole, i), rows_of(cells, i)), wanted[i])

    Run(options, kind).go(loss_at)


def train_centres(options: argparse.Namespace) -> None:
    """Encoded patches → the middles of things, and their number."""
    squeezed, scenes = [], []
    centres = Centres()
    for split, n in (("train", options.scenes), ("more", options.more)):
        rows = patches(split, n)
        if not squeezed:
            some = rows[: 1 + 2400 // 9, ::9]
            centres.analyse(torch.from_numpy(some.reshape(-1, PATCH)).float())
        parts = np.array_split(rows, 1 + len(rows) // 64)
        squeezed += [centres.squeeze(torch.from_numpy(part).float()).half() for part in parts]
        every = contents(split, n)
        scenes += [every[i] for i in counted(n)]
    seen, (middles, hills) = torch.cat(squeezed), heat_of(scenes)
    number = torch.tensor([len(scene.things) for scene in scenes])

    def loss_at(rng: np.random.Generator) -> Tensor:
        i = torch.from_numpy(rng.choice(len(seen), options.batch))
        maps = [seen[i].float(), middles[i], hills[i]]
        if rng.random() < 0.5:
            maps = [m.flip(1) for m in maps]
        if rng.random() < 0.5:
            maps = [m.flip(2) for m in maps]
        if rng.random() < 0.5:
            maps = [m.transpose(1, 2) for m in maps]
        return centres_loss(centres(maps[0]), maps[1], maps[2], number[i])

    Run(options, centres).go(loss_at)


def rows_of(features: NDArray[np.float16], index: NDArray[np.int64]) -> Tensor:
    """Those of the features, float32."""
    return torch.from_numpy(features[index].astype(np.float32))


class Named(NamedTuple):
    """Things whose names are known, as the encoder sees them."""

    whole: Tensor  # (N, CLASS) of pictures of one thing
    seen: Tensor  # (N + M, PATCH) what a slot saw: of those, then of all others
    names: Tensor  # (N + M,)

    def __add__(self, other: Named) -> Named:  # type: ignore[override]
        n, m = len(self.whole), len(other.whole)
        order = lambda a, b: torch.cat([a[:n], b[:m], a[n:], b[m:]])  # noqa: E731
        return Named(
            torch.cat([self.whole, other.whole]),
            order(self.seen, other.seen),
            order(self.names, other.names),
        )


def named(look: Look, split: Split, n: int) -> Named:
    """The named things in a split's first n scenes."""
    whole, cells = features(split, n)
    scenes = contents(split, n)
    wanted, seen = targets(scenes)["name"], what_slots_see(look, cells)
    one = torch.tensor([scene.kind == "one" for scene in scenes])
    alone = torch.zeros_like(wanted, dtype=torch.bool)
    alone[one, WHOLE] = True
    other = (wanted != IGNORE) & ~alone
    return Named(
        torch.from_numpy(whole)[one].float(),
        torch.cat([seen[alone], seen[other]]).float(),
        torch.cat([wanted[alone], wanted[other]]),
    )


def train_names(options: argparse.Namespace) -> None:
    """What the slots see → its name, by discriminants of the class rows and of the cells.

    How far each of the two is to be trusted is measured on artists that it wasn't fitted to.
    """
    look = Look().eval()
    look.load_state_dict(torch.load(CACHE / "look.pt", weights_only=True)["module"])
    some, others = named(look, "train", options.scenes), named(look, "more", options.more)
    trust = trust_in(fitted(some), others)
    print(f"trust in the class rows {trust[0]:.3f}, in the cells {trust[1]:.3f}")
    (whole, whole_bias), (patch, bias) = fitted(some + others)
    module = {
        "class": trust[0] * whole, "class_bias": trust[0] * whole_bias,
        "patch": trust[1] * patch, "bias": trust[1] * bias,
    }  # fmt: skip
    torch.save({"module": module}, CACHE / "names.pt")


def fitted(things: Named) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The discriminants of class rows and of cells."""
    n = len(names())
    by_class = discriminants(things.whole, things.names[: len(things.whole)], n)
    return by_class, discriminants(things.seen, things.names, n)


def trust_in(
    discriminants: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]], things: Named
) -> Tensor:
    """(2,) the scales of both logits at which these things' names are likeliest."""
    (whole, whole_bias), (patch, bias) = discriminants
    by_patch = things.seen @ patch.T + bias
    by_class = torch.zeros_like(by_patch)
    by_class[: len(things.whole)] = things.whole @ whole.T + whole_bias
    scales = torch.full((2,), 0.1, requires_grad=True)
    solver = torch.optim.LBFGS([scales], max_iter=30, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        value = cross_entropy(scales[0] * by_class + scales[1] * by_patch, things.names)
        value.backward()
        return value

    solver.step(loss)  # type: ignore[arg-type]
    return scales.detach()


@torch.inference_mode()
def what_slots_see(look: Look, cells: NDArray[np.float16]) -> Tensor:
    """(N, 64, PATCH) → (N, 3, PATCH), float16: of the whole, the left and the right."""
    seen = []
    for start in range(0, len(cells), 128):
        part = torch.from_numpy(cells[start : start + 128].astype(np.float32))
        seen.append(look(part)["seen"][:, :GROUND].half())
    return torch.cat(seen)


def train_rows(options: argparse.Namespace) -> None:
    """Captions and questions → answers, through the frozen language model."""
    from transformers import LlamaForCausalLM

    folder = fetch.ensure("smollm2-135m-instruct")
    tokenizer = Tokenizer.from_folder(folder)
    lm = LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, gguf_file="model.gguf")
    lm.requires_grad_(False)
    rows = Rows(lm.get_input_embeddings().weight, tokenizer)

    def loss_at(rng: np.random.Generator) -> Tensor:
        examples = [example(rng) for _ in range(options.batch)]
        return rows_loss(lm, embedded(lm, tokenizer, rows, examples))

    Run(options, rows).go(loss_at)


def pack(options: argparse.Namespace) -> None:
    """All stages' weights as `vision.connector` reads them, and their loss pictures beside."""
    look, kind, centres, naming, rows = (
        torch.load(CACHE / f"{stage}.pt", weights_only=True)["module"] for stage in DEFAULTS
    )
    facts = {
        "names": names(), "n_shapes": len(SHAPES), "colours": list(COLOURS),
        "class_layers": CLASS_LAYERS, "patch_layers": PATCH_LAYERS, "width": DIM,
        "votes": VOTES, "mixed": MIXED, "caption_rows": CAPTION_ROWS, "floor": options.floor,
    }  # fmt: skip
    tensors = tensors_of(look, kind, centres)
    tensors |= {f"name.{name}": tensor for name, tensor in naming.items()}
    tensors |= {f"rows.{name}": rows[name] for name in ("before", "pad", "after")}
    assert set(tensors) == set(expected_shapes(facts, rows["pad"].shape[1]))
    path = HERE / "connector.safetensors"
    small = {name: tensor.half().contiguous() for name, tensor in tensors.items()}
    save_file(small, path, {"connector": json.dumps(facts)})
    for picture in CACHE.glob("*-loss.png"):
        if picture.name.removesuffix("-loss.png") in DEFAULTS:
            shutil.copy(picture, HERE / picture.name)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=[*DEFAULTS, "pack"])
    for name, kind, of in (
        ("scenes", int, "training scenes"), ("more", int, "scenes by further artists"),
        ("steps", int, "steps"), ("batch", int, "examples a step"), ("lr", float, "step size"),
        ("weight-decay", float, "decay"), ("warm-up", int, "steps until the whole step size"),
    ):  # fmt: skip
        key = name.replace("-", "_")
        usual = ", ".join(f"{d[key]} for {s}" for s, d in DEFAULTS.items() if key in d)
        parser.add_argument(f"--{name}", type=kind, help=f"{of}: {usual}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=int, default=50)
    parser.add_argument("--report-every", type=int, default=10)
    parser.add_argument("--floor", type=float, default=FLOOR, help="for pack: least sure name")
    parser.add_argument("--afresh", action="store_true", help="forget an earlier run")
    options = parser.parse_args()
    for name, value in DEFAULTS.get(options.stage, {}).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    stages = (train_look, train_kind, train_centres, train_names, train_rows)
    dict(zip(DEFAULTS, stages, strict=True), pack=pack)[options.stage](options)


if __name__ == "__main__":
    main()
