"""Train the connector of smollm2-135m-vision.

    python train.py heads --scenes 30000 --steps 20000     # name what is in the picture
    python train.py words --scenes 30000 --steps 4000      # tell the language model

Both stages are reproducible from --seed, show their progress, save every --save-every steps, go on
where they were when started again, and draw their loss into .packed/<stage>-loss.png. Pictures come
from packages (data.py), features from the frozen encoder (features.py). Needs the `train` extra.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from connector import N_ROWS, Heads, SoftWords, add_lora, loss_of, targets
from data import CACHE
from features import Features, features
from scenes import Scene, scene
from torch import Tensor, nn

from tinyllm import fetch
from tinyllm.tokenizer import Tokenizer

matplotlib.use("Agg")

LORA_NAMES = ("q_proj", "v_proj", "o_proj", "down_proj")
IMAGE_SLOT = "\x00"  # where the image's rows go in a rendered chat; nobody types it


def batch_of(have: Features, index: np.ndarray) -> tuple[Tensor, Tensor]:
    """Features of those scenes as float32 tensors."""
    return (
        torch.from_numpy(have.classes[index].astype(np.float32)),
        torch.from_numpy(have.patches[index].astype(np.float32)),
    )


class Run:
    """A stage's loop: batches by seed and step alone, so that a resumed run repeats none."""

    def __init__(self, options: argparse.Namespace, trained: dict[str, nn.Module]) -> None:
        self.options = options
        self.trained = trained
        self.weights = [p for m in trained.values() for p in m.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(self.weights, lr=options.lr, weight_decay=0.01)
        self.path = CACHE / f"{options.stage}.pt"
        self.losses: list[float] = []
        if self.path.is_file() and not options.afresh:
            saved = torch.load(self.path, weights_only=True)
            for name, module in trained.items():
                module.load_state_dict(saved[name], strict=False)
            self.optimiser.load_state_dict(saved["optimiser"])
            self.losses = saved["losses"]
            print(f"going on from step {len(self.losses)} of {self.path.name}")

    def go(self, loss_at: Callable[[np.ndarray, np.random.Generator], Tensor]) -> None:
        """Step until --steps; `loss_at` takes scene numbers and a generator."""
        options, begin, first = self.options, time.monotonic(), len(self.losses)
        for step in range(first, options.steps):
            rng = np.random.default_rng([options.seed, step])
            torch.manual_seed(options.seed * 1_000_003 + step)  # dropout
            cosine = 0.5 * (1 + math.cos(math.pi * step / options.steps))
            for group in self.optimiser.param_groups:
                group["lr"] = options.lr * min(1.0, (step + 1) / 200) * cosine
            loss = loss_at(rng.choice(options.scenes, options.batch), rng)
            self.optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.weights, 1.0)
            self.optimiser.step()
            self.losses.append(loss.item())
            if (step + 1) % options.report_every == 0:
                recent = float(np.mean(self.losses[-options.report_every :]))
                rate = (step + 1 - first) / (time.monotonic() - begin)
                left = (options.steps - step - 1) / rate / 60
                print(
                    f"step {step + 1}: loss {recent:.3f}, {rate:.2f} steps/s, {left:.0f} min left"
                )
            if (step + 1) % options.save_every == 0 or step + 1 == options.steps:
                self.save()

    def save(self) -> None:
        """The checkpoint, whole or not at all, and the picture of the loss."""
        state: dict[str, Any] = {
            name: {k: v for k, v in module.state_dict().items() if _is_trained(module, k)}
            for name, module in self.trained.items()
        }
        state |= {"optimiser": self.optimiser.state_dict(), "losses": self.losses}
        work = self.path.with_suffix(".part")
        torch.save(state, work)
        work.rename(self.path)
        draw_losses(self.losses, self.path.with_name(f"{self.options.stage}-loss.png"))
        note = {k: v for k, v in vars(self.options).items() if not callable(v)}
        self.path.with_suffix(".json").write_text(json.dumps(note, indent=2))


def _is_trained(module: nn.Module, name: str) -> bool:
    found = dict(module.named_parameters()).get(name)
    return found is None or found.requires_grad


def draw_losses(losses: list[float], path: Path) -> None:
    """Every step's loss and its running mean."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    axes.plot(losses, color="0.8", linewidth=0.5)
    width = max(1, len(losses) // 50)
    mean = np.convolve(losses, np.ones(width) / width, mode="valid")
    axes.plot(np.arange(len(mean)) + width - 1, mean)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def train_heads(options: argparse.Namespace) -> None:
    """Stage 1: what is in the picture, supervised by what was drawn."""
    have = features("train", options.scenes)
    wanted = targets([scene(i)[0] for i in range(options.scenes)])
    heads = Heads()
    run = Run(options, {"heads": heads})

    def loss_at(index: np.ndarray, rng: np.random.Generator) -> Tensor:
        classes, patches = batch_of(have, index)
        # A little noise on the features stands for styles not seen.
        classes = classes + 0.1 * torch.randn_like(classes)
        return loss_of(heads(classes, patches), {k: v[index] for k, v in wanted.items()})

    run.go(loss_at)


def train_words(options: argparse.Namespace) -> None:
    """Stage 2: the adapter that makes the language model speak of what the soft words say.

    The heads' dropout stays on: the language model must see honest mistakes, and on their own
    training scenes they make too few.
    """
    from transformers import LlamaForCausalLM

    folder = fetch.ensure("smollm2-135m-instruct")
    tokenizer = Tokenizer.from_folder(folder)
    lm = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    heads = Heads()
    heads.load_state_dict(torch.load(CACHE / "heads.pt", weights_only=True)["heads"])
    heads.requires_grad_(False)
    words = SoftWords(lm.get_input_embeddings().weight.detach(), tokenizer.encode)
    add_lora(lm, LORA_NAMES)
    have = features("train", options.scenes)
    scenes: list[Scene] = [scene(i)[0] for i in range(options.scenes)]
    run = Run(options, {"lm": lm, "words": words})

    def loss_at(index: np.ndarray, rng: np.random.Generator) -> Tensor:
        classes, patches = batch_of(have, index)
        rows = words(heads.train()(classes, patches))
        pairs = [
            scenes[i].questions[rng.integers(len(scenes[i].questions))] for i in index.tolist()
        ]
        embedded, labels = examples(tokenizer, lm, rows, pairs)
        return lm(inputs_embeds=embedded, labels=labels).loss

    run.go(loss_at)


def examples(
    tokenizer: Tokenizer, lm: Any, rows: Tensor, pairs: list[tuple[str, str]]
) -> tuple[Tensor, Tensor]:
    """Chats with an image and one question: embeddings (B, T, dim) and labels, answers only."""
    table = lm.get_input_embeddings()
    all_ids, all_labels = [], []
    for question, answer in pairs:
        before, behind = prompt_ids(tokenizer, question)
        tail = [*tokenizer.encode(answer), tokenizer.special_tokens["<|im_end|>"]]
        all_ids.append([*before, *[0] * N_ROWS, *behind, *tail])
        all_labels.append([-100] * (len(all_ids[-1]) - len(tail)) + tail)
    width = max(map(len, all_ids))
    ids = torch.tensor([x + [0] * (width - len(x)) for x in all_ids])
    labels = torch.tensor([x + [-100] * (width - len(x)) for x in all_labels])
    embedded = table(ids)
    start = len(prompt_ids(tokenizer, "")[0])
    embedded = torch.cat([embedded[:, :start], rows, embedded[:, start + N_ROWS :]], dim=1)
    return embedded, labels


def prompt_ids(tokenizer: Tokenizer, question: str) -> tuple[list[int], list[int]]:
    """The ids of a chat with an image, before the image's rows and behind them."""
    chat = [{"role": "user", "content": IMAGE_SLOT + question}]
    before, _, behind = tokenizer.render_chat(chat).partition(IMAGE_SLOT)
    # The image stands between two lines, so that no token can reach over it.
    return (
        tokenizer.encode(before, allow_special=True),
        tokenizer.encode("\n" + behind, allow_special=True),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=["heads", "words"])
    parser.add_argument("--scenes", type=int, default=30_000)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=int, default=500)
    parser.add_argument("--report-every", type=int, default=50)
    parser.add_argument("--afresh", action="store_true", help="forget an earlier run")
    options = parser.parse_args()
    {"heads": train_heads, "words": train_words}[options.stage](options)


if __name__ == "__main__":
    main()
