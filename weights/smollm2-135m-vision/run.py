"""A training loop that goes on where it was: seeded, with progress, and a picture of the loss."""

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
from data import CACHE
from torch import Tensor, nn

matplotlib.use("Agg")


class Run:
    """A stage's loop: batches by seed and step alone, so that a resumed run repeats none."""

    def __init__(self, options: argparse.Namespace, module: nn.Module) -> None:
        self.options = options
        self.module = module
        self.weights = [p for p in module.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(
            self.weights, lr=options.lr, weight_decay=options.weight_decay
        )
        self.path = CACHE / f"{options.stage}.pt"
        self.losses: list[float] = []
        if self.path.is_file() and not options.afresh:
            saved = torch.load(self.path, weights_only=True)
            module.load_state_dict(saved["module"])
            self.optimiser.load_state_dict(saved["optimiser"])
            self.losses = saved["losses"]
            print(f"going on from step {len(self.losses)} of {self.path.name}", flush=True)

    def go(self, loss_at: Callable[[np.random.Generator], Tensor]) -> None:
        """Step until --steps; `loss_at` draws a batch from the generator it is given."""
        options, begin, first = self.options, time.monotonic(), len(self.losses)
        for step in range(first, options.steps):
            rng = np.random.default_rng([options.seed, step])
            torch.manual_seed(options.seed * 1_000_003 + step)  # dropout and noise
            cosine = 0.5 * (1 + math.cos(math.pi * step / options.steps))
            for group in self.optimiser.param_groups:
                group["lr"] = options.lr * min(1.0, (step + 1) / options.warm_up) * cosine
            loss = loss_at(rng)
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
                    f"step {step + 1}: loss {recent:.3f}, {rate:.2f} steps/s, {left:.0f} min left",
                    flush=True,
                )
            if (step + 1) % options.save_every == 0 or step + 1 == options.steps:
                self.save()

    def save(self) -> None:
        """The checkpoint, whole or not at all, and the picture of the loss."""
        state: dict[str, Any] = {
            "module": self.module.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "losses": self.losses,
        }
        work = self.path.with_suffix(".part")
        torch.save(state, work)
        work.rename(self.path)
        draw_losses(self.losses, self.path.with_name(f"{self.options.stage}-loss.png"))
        note = {k: v for k, v in vars(self.options).items() if not callable(v)}
        self.path.with_suffix(".json").write_text(json.dumps(note, indent=2))


def draw_losses(losses: list[float], path: Path) -> None:
    """Every step's loss and its running mean."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3))
    axes.plot(losses, color="0.8", linewidth=0.5)
    width = max(1, len(losses) // 50)
    mean = np.convolve(losses, np.ones(width) / width, mode="valid")
    axes.plot(np.arange(len(mean)) + width - 1, mean)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.set_title(path.stem.replace("-", ": "))
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    pyplot.close(figure)
