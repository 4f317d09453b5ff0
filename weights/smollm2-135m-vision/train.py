"""Train the connector of smollm2-135m-vision.

    python train.py look      # where things are in a picture, in which colours
    python train.py count     # how many they are
    python train.py names     # what they are
    python train.py rows      # answer from a caption; no pictures
    python train.py pack      # all into connector.safetensors

`rows` doesn't depend on the others. Each is reproducible from --seed, shows its progress, saves
every --save-every steps, goes on where it was when started again, and draws its loss into
.packed/<stage>-loss.png. Pictures come from packages (data.py), features from the frozen encoder
(features.py). Needs the `train` extra.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import torch
from answers import example
from data import CACHE
from features import CLASS_LAYERS, DIM, PATCH_LAYERS, features
from heads import (
    IGNORE,
    VOTES,
    Count,
    Look,
    Naming,
    count_loss,
    look_loss,
    names,
    naming_loss,
    targets,
    tensors_of,
)
from numpy.typing import NDArray
from rows import CAPTION_ROWS, Rows, embedded
from rows import loss_of as rows_loss
from run import Run
from safetensors.torch import save_file
from scenes import COLOURS, SHAPES, contents
from torch import Tensor

from tinyllm import fetch
from tinyllm.connector import GROUND, WHOLE, expected_shapes
from tinyllm.tokenizer import Tokenizer

HERE = Path(__file__).parent
FLOOR = 0.05  # a name that is less likely than this is not given
# Defaults by stage: what the connector in this folder was trained with.
DEFAULTS = {
    "look": {"steps": 500, "batch": 64, "lr": 2e-3, "weight_decay": 0.01, "warm_up": 50},
    "count": {"steps": 1500, "batch": 64, "lr": 1e-3, "weight_decay": 0.01, "warm_up": 50},
    "names": {"steps": 700, "batch": 256, "lr": 3e-3, "weight_decay": 0.05, "warm_up": 100},
    "rows": {"steps": 120, "batch": 8, "lr": 5e-3, "weight_decay": 0.0, "warm_up": 20},
}


def train_look(options: argparse.Namespace) -> None:
    """Encoded pictures → where things are, and their colours; supervised by what was drawn."""
    _, cells = features("train", options.scenes)
    wanted = targets(contents("train", options.scenes))
    look = Look()

    def loss_at(rng: np.random.Generator) -> Tensor:
        i = rng.choice(options.scenes, options.batch)
        return look_loss(look(rows_of(cells, i)), {k: v[i] for k, v in wanted.items()})

    Run(options, look).go(loss_at)


def train_count(options: argparse.Namespace) -> None:
    """Encoded pictures → what kind of scene, and how many things."""
    whole, cells = features("train", options.scenes)
    wanted = targets(contents("train", options.scenes))
    count = Count()

    def loss_at(rng: np.random.Generator) -> Tensor:
        i = rng.choice(options.scenes, options.batch)
        said = count(rows_of(whole, i), rows_of(cells, i))
        return count_loss(said, {k: wanted[k][i] for k in ("kind", "number")})

    Run(options, count).go(loss_at)


def rows_of(features: NDArray[np.float16], index: NDArray[np.int64]) -> Tensor:
    """Those of the features, float32."""
    return torch.from_numpy(features[index].astype(np.float32))


def train_names(options: argparse.Namespace) -> None:
    """What the slots see → its name."""
    whole, cells = features("train", options.scenes)
    wanted = targets(contents("train", options.scenes))["name"]
    look = Look()
    look.load_state_dict(torch.load(CACHE / "look.pt", weights_only=True)["module"])
    seen = what_slots_see(look, cells)
    scene_of, slot = torch.nonzero(wanted != IGNORE, as_tuple=True)  # of every thing
    naming = Naming()
    naming.whiten("whole", torch.from_numpy(whole[scene_of[slot == WHOLE].numpy()]).float())
    naming.whiten("patch", seen[scene_of, slot].float())

    def loss_at(rng: np.random.Generator) -> Tensor:
        i = torch.from_numpy(rng.choice(len(slot), options.batch))
        n, s = scene_of[i], slot[i]
        logits = naming(torch.from_numpy(whole[n.numpy()]).float(), seen[n, s].float())
        return naming_loss(logits, naming.patch.bias, wanted[n, s], (s == WHOLE).float())

    Run(options, naming).go(loss_at)


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
    lm = LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    lm.requires_grad_(False)
    rows = Rows(lm.get_input_embeddings().weight, tokenizer)

    def loss_at(rng: np.random.Generator) -> Tensor:
        examples = [example(rng) for _ in range(options.batch)]
        return rows_loss(lm, *embedded(lm, tokenizer, rows, examples))

    Run(options, rows).go(loss_at)


def pack(options: argparse.Namespace) -> None:
    """Both stages' weights as `tinyllm.connector` reads them, and their loss pictures beside."""
    stages = ("look", "count", "names", "rows")
    look, count, naming, rows = (
        torch.load(CACHE / f"{s}.pt", weights_only=True)["module"] for s in stages
    )
    facts = {
        "names": names(), "n_shapes": len(SHAPES), "colours": list(COLOURS),
        "class_layers": CLASS_LAYERS, "patch_layers": PATCH_LAYERS, "width": DIM,
        "votes": VOTES, "caption_rows": CAPTION_ROWS, "floor": options.floor,
    }  # fmt: skip
    tensors = tensors_of(look, count, naming) | {
        f"rows.{name}": rows[name] for name in ("before", "pad", "after")
    }
    assert set(tensors) == set(expected_shapes(facts, rows["pad"].shape[1]))
    path = HERE / "connector.safetensors"
    small = {name: tensor.half().contiguous() for name, tensor in tensors.items()}
    save_file(small, path, {"connector": json.dumps(facts)})
    for stage in stages:
        shutil.copy(CACHE / f"{stage}-loss.png", HERE / f"{stage}-loss.png")
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=[*DEFAULTS, "pack"])
    parser.add_argument("--scenes", type=int, default=12_000, help="to train the heads on")
    for name, kind in {
        "steps": int, "batch": int, "lr": float, "weight-decay": float, "warm-up": int
    }.items():  # fmt: skip
        usual = ", ".join(f"{d[name.replace('-', '_')]} for {s}" for s, d in DEFAULTS.items())
        parser.add_argument(f"--{name}", type=kind, help=usual)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=int, default=50)
    parser.add_argument("--report-every", type=int, default=10)
    parser.add_argument("--floor", type=float, default=FLOOR, help="for pack: least sure name")
    parser.add_argument("--afresh", action="store_true", help="forget an earlier run")
    options = parser.parse_args()
    for name, value in DEFAULTS.get(options.stage, {}).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    {
        "look": train_look,
        "count": train_count,
        "names": train_names,
        "rows": train_rows,
        "pack": pack,
    }[options.stage](options)


if __name__ == "__main__":
    main()
