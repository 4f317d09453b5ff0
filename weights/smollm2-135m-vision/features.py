"""What the frozen encoder sees, kept on disk: encoding costs a hundred times what training does.

Training features come out of torch in bfloat16, in batches: processors that multiply in it take
half the time, and what it rounds away is less than a JPEG does. Everything that is judged goes
through tinyllm's own encoder in float32 instead (`evaluate.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from data import CACHE
from numpy.typing import NDArray
from PIL import Image
from scenes import SIDE, Split, scene

from tinyllm import fetch
from tinyllm.preprocess import ImageProcessor

CLASS_LAYERS = (9, 10, 11)
PATCH_LAYERS = (4, 9, 11)
GRID, DIM = 16, 384
PART = 96  # scenes a file: what an interruption loses at most

# The whole picture, squeezed into a square: what lies at its edges counts too.
PROCESSOR = ImageProcessor(
    size={"height": SIDE, "width": SIDE},
    resample=Image.Resampling.BICUBIC,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)


Encode = Callable[[Sequence[Image.Image]], tuple[NDArray[np.float16], NDArray[np.float16]]]


def torch_encoder() -> Encode:
    """Pictures → class rows (B, 3, 384) and patch rows (B, 3, 256, 384), in bfloat16."""
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
        return classes.to(torch.float16).numpy(), patches.to(torch.float16).numpy()

    return encode


def parts(split: Split, n: int) -> Iterator[tuple[NDArray[np.float16], NDArray[np.float16]]]:
    """Of scenes 0 … n - 1, some at a time: class rows (k, 3, 384), patch rows (k, 3, 256, 384).

    What is on disk already isn't encoded again.
    """
    folder = CACHE / "features" / split
    folder.mkdir(parents=True, exist_ok=True)
    encode: Encode | None = None
    begin, done = time.monotonic(), 0
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
        size = min(PART, n - start)
        with np.load(path) as file:
            yield file["classes"][:size], file["patches"][:size]


def _save(path: Path, classes: NDArray[np.float16], patches: NDArray[np.float16]) -> None:
    work = path.with_suffix(".part.npz")
    np.savez(work, classes=classes, patches=patches)
    work.rename(path)
