"""What the frozen encoder sees, kept on disk: encoding costs a hundred times what training does.

Training features come out of torch in bfloat16, in batches: processors that multiply in it take
half the time, and what it rounds away is less than a JPEG does. Everything that is judged goes
through tinyllm's own encoder in float32 instead (`evaluate.py`).
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from data import CACHE
from numpy.typing import NDArray
from PIL import Image
from scenes import KINDS, Split, scene

from tinyllm import fetch
from tinyllm.vision.connected import PROCESSOR
from tinyllm.vision.connector import GRID, NORM_EPS

CLASS_LAYERS = (9, 10, 11)
PATCH_LAYERS = (4, 9, 11)
DIM = 384
CLASS, PATCH = len(CLASS_LAYERS) * DIM, len(PATCH_LAYERS) * DIM
SIDE = 16  # patches a side, of a picture of 224 pixels
PART = 96  # scenes a file: what an interruption loses at most

Rows = NDArray[np.float16]
Encode = Callable[[Sequence[Image.Image]], tuple[Rows, Rows]]


@functools.cache
def torch_encoder() -> Encode:
    """Pictures → what the connector reads of each: its class rows (N, CLASS), its patches
    (N, SIDE², PATCH); float16, normalised."""
    import torch
    from transformers import Dinov2Model

    model = Dinov2Model.from_pretrained(fetch.ensure("dinov2-small"), dtype=torch.bfloat16).eval()
    model.encoder.layer = model.encoder.layer[: max(*CLASS_LAYERS, *PATCH_LAYERS)]

    @torch.inference_mode()
    def encode(images: Sequence[Image.Image]) -> tuple[Rows, Rows]:
        pixels = np.stack([PROCESSOR(np.asarray(image)) for image in images])
        states = model(
            torch.from_numpy(pixels).to(torch.bfloat16), output_hidden_states=True
        ).hidden_states
        classes = [normalised(states[layer][:, 0].float().numpy()) for layer in CLASS_LAYERS]
        patches = [normalised(states[layer][:, 1:].float().numpy()) for layer in PATCH_LAYERS]
        whole, rows = np.concatenate(classes, -1), np.concatenate(patches, -1)
        return whole.astype(np.float16), rows.astype(np.float16)

    return encode


def normalised(x: np.ndarray) -> np.ndarray:
    """Each row of DIM to mean 0 and variance 1, as the connector does it."""
    x = x - x.mean(-1, keepdims=True)
    return np.asarray(x / np.sqrt((x * x).mean(-1, keepdims=True) + NORM_EPS))


def cells(patches: np.ndarray) -> np.ndarray:
    """Patches (N, SIDE², PATCH) → the cells of an 8 × 8 grid, (N, GRID², PATCH)."""
    n, step = len(patches), SIDE // GRID
    blocks = patches.reshape(n, GRID, step, GRID, step, PATCH).astype(np.float32)
    return blocks.mean(axis=(2, 4)).reshape(n, GRID * GRID, PATCH).astype(patches.dtype)


def features(split: Split, n: int) -> tuple[Rows, Rows]:
    """What the heads read of the first n scenes, class rows (n, CLASS) and cells (n, 64, PATCH).

    What is on disk already isn't encoded again.
    """
    whole, grid = np.empty((n, CLASS), np.float16), np.empty((n, GRID * GRID, PATCH), np.float16)
    for start in range(0, n, PART):
        file = _part(split, start, "cells")
        stop = min(start + PART, n)
        whole[start:stop] = file["whole"][: stop - start]
        grid[start:stop] = file["cells"][: stop - start]
    return whole, grid


def counted(n: int) -> list[int]:
    """Of the first n scenes those whose patches are kept one by one, to count on: the scenes of
    several things, and some of the others."""
    kinds = [KINDS[i % len(KINDS)][0] for i in range(n)]
    return [i for i in range(n) if kinds[i] == "count" or i % 11 == 0]


def patches(split: Split, n: int) -> Rows:
    """The patches of the scenes `counted`, (…, SIDE², PATCH)."""
    parts = [_part(split, start, "patches")["patches"] for start in range(0, n, PART)]
    return np.concatenate(parts)[: len(counted(n))]


def _part(split: Split, start: int, kind: Literal["cells", "patches"]) -> Mapping[str, Rows]:
    """PART scenes' features, from disk or encoded."""
    paths = {k: CACHE / "features" / split / f"{start:06d}-{k}.npz" for k in ("cells", "patches")}
    if not paths[kind].is_file():
        begin = time.monotonic()
        few = [i for i in counted(start + PART) if i >= start]
        scenes = few if kind == "patches" else list(range(start, start + PART))
        pictures = [scene(i, split)[1] for i in scenes]
        batches = [torch_encoder()(pictures[i : i + 8]) for i in range(0, len(pictures), 8)]
        whole, rows = (np.concatenate([batch[k] for batch in batches]) for k in (0, 1))
        if kind == "cells":
            _save(paths["cells"], whole=whole, cells=cells(rows))
        _save(paths["patches"], patches=rows[[scenes.index(i) for i in few]])
        rate = len(pictures) / (time.monotonic() - begin)
        print(f"{split} {start}: {len(pictures)} scenes encoded, {rate:.1f} a second", flush=True)
    with np.load(paths[kind]) as file:
        return dict(file)


def _save(path: Path, **arrays: Rows) -> None:
    """The file whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    work = path.with_suffix(".part.npz")
    np.savez(work, **arrays)  # type: ignore[arg-type]
    work.rename(path)
