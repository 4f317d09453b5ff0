"""What the frozen encoder sees, kept on disk: encoding costs a hundred times what training does.

Training features come out of torch in bfloat16, in batches: processors that multiply in it take
half the time, and what it rounds away is less than a JPEG does. Everything that is judged goes
through tinyllm's own encoder in float32 instead (`evaluate.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from data import CACHE
from numpy.typing import NDArray
from PIL import Image
from scenes import Split, scene

from tinyllm import fetch
from tinyllm.connected import PROCESSOR
from tinyllm.connector import GRID, NORM_EPS

CLASS_LAYERS = (9, 10, 11)
PATCH_LAYERS = (4, 9, 11)
DIM = 384
CLASS, PATCH = len(CLASS_LAYERS) * DIM, len(PATCH_LAYERS) * DIM
PART = 96  # scenes a file: what an interruption loses at most

Encode = Callable[[Sequence[Image.Image]], tuple[NDArray[np.float16], NDArray[np.float16]]]


def torch_encoder() -> Encode:
    """Pictures → what `inputs` makes of them, float16."""
    import torch
    from transformers import Dinov2Model

    model = Dinov2Model.from_pretrained(fetch.ensure("dinov2-small"), dtype=torch.bfloat16).eval()
    model.encoder.layer = model.encoder.layer[: max(*CLASS_LAYERS, *PATCH_LAYERS)]

    @torch.inference_mode()
    def encode(
        images: Sequence[Image.Image],
    ) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
        pixels = np.stack([PROCESSOR(np.asarray(image)) for image in images])
        states = model(
            torch.from_numpy(pixels).to(torch.bfloat16), output_hidden_states=True
        ).hidden_states
        classes = torch.stack([states[layer][:, 0] for layer in CLASS_LAYERS], dim=1)
        patches = torch.stack([states[layer][:, 1:] for layer in PATCH_LAYERS], dim=1)
        whole, cells = inputs(classes.float().numpy(), patches.float().numpy())
        return whole.astype(np.float16), cells.astype(np.float16)

    return encode


def normalised(x: np.ndarray) -> np.ndarray:
    """Each row of DIM to mean 0 and variance 1, as the connector does it."""
    x = x.astype(np.float32)
    x = x - x.mean(-1, keepdims=True)
    return np.asarray(x / np.sqrt((x * x).mean(-1, keepdims=True) + NORM_EPS))


def inputs(classes: np.ndarray, patches: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Encoder states → what the heads read.

    Args:
        classes: class tokens behind CLASS_LAYERS, (N, 3, DIM).
        patches: the patches behind PATCH_LAYERS, row by row, (N, 3, 256, DIM).

    Returns:
        Class rows (N, CLASS) and the cells of an 8 × 8 grid (N, 64, PATCH), normalised.
    """
    whole = normalised(classes).reshape(len(classes), CLASS)
    rows = normalised(patches)
    n, side = len(rows), int(rows.shape[2] ** 0.5)
    step = side // GRID
    rows = rows.reshape(n, len(PATCH_LAYERS), GRID, step, GRID, step, DIM).mean(axis=(3, 5))
    rows = rows.reshape(n, len(PATCH_LAYERS), GRID * GRID, DIM).transpose(0, 2, 1, 3)
    return whole, rows.reshape(n, GRID * GRID, PATCH)


def features(split: Split, n: int) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
    """What the heads read of the first n scenes, (n, CLASS) and (n, 64, PATCH).

    What is on disk already isn't encoded again.
    """
    folder = CACHE / "features" / split
    folder.mkdir(parents=True, exist_ok=True)
    encode: Encode | None = None
    begin, done = time.monotonic(), 0
    whole = np.empty((n, CLASS), np.float16)
    cells = np.empty((n, GRID * GRID, PATCH), np.float16)
    for start in range(0, n, PART):
        path = folder / f"{start:06d}.npz"
        if not path.is_file():
            encode = encode or torch_encoder()
            pictures = [scene(i, split)[1] for i in range(start, start + PART)]
            batches = [encode(pictures[i : i + 8]) for i in range(0, PART, 8)]
            _save(path, *(np.concatenate([batch[k] for batch in batches]) for k in (0, 1)))
            done += PART
            rate = done / (time.monotonic() - begin)
            print(f"{split}: {start + PART} scenes encoded, {rate:.1f} a second", flush=True)
        stop = min(start + PART, n)
        with np.load(path) as file:
            whole[start:stop] = file["whole"][: stop - start]
            cells[start:stop] = file["cells"][: stop - start]
    return whole, cells


def _save(path: Path, whole: NDArray[np.float16], cells: NDArray[np.float16]) -> None:
    work = path.with_suffix(".part.npz")
    np.savez(work, whole=whole, cells=cells)
    work.rename(path)
