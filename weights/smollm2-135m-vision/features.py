"""What the frozen encoder sees, kept on disk: encoding costs a hundred times what training does.

The class token is taken behind layer 11 and the patches behind layer 9, where this encoder tells
objects apart best (its last blocks were tuned for saliency). A picture becomes a class row (384,)
and a grid of 8 × 8 patch rows (each the mean of 2 × 2), in float16.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from data import CACHE
from numpy.typing import NDArray
from PIL import Image
from scenes import SIDE, Split, scene

from tinyllm import fetch
from tinyllm.preprocess import ImageProcessor
from tinyllm.vision import Encoder, load_encoder

CLASS_LAYER, PATCH_LAYER = 11, 9
GRID, DIM = 8, 384

# The whole picture, squeezed into a square: what lies at its edges counts too.
PROCESSOR = ImageProcessor(
    size={"height": SIDE, "width": SIDE},
    resample=Image.Resampling.BICUBIC,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)


@dataclass(frozen=True)
class Features:
    """Of scenes 0 … N - 1 of a split."""

    classes: NDArray[np.float16]  # (N, 384)
    patches: NDArray[np.float16]  # (N, 64, 384), row by row


def encode(encoder: Encoder, image: Image.Image) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
    """One picture → (384,) and (64, 384)."""
    streams = encoder.encode(PROCESSOR(np.asarray(image)), layers=(PATCH_LAYER, CLASS_LAYER))
    patches = streams[PATCH_LAYER][1:].reshape(GRID, 2, GRID, 2, DIM).mean(axis=(1, 3))
    return streams[CLASS_LAYER][0].astype(np.float16), patches.reshape(-1, DIM).astype(np.float16)


def features(split: Split, n: int) -> Features:
    """Of the first n scenes; those that are on disk already aren't encoded again."""
    folder = CACHE / "features" / split
    folder.mkdir(parents=True, exist_ok=True)
    encoder: Encoder | None = None
    begin = time.monotonic()
    parts: list[tuple[NDArray[np.float16], NDArray[np.float16]]] = []
    size = 100  # scenes a file: what an interruption loses at most
    for start in range(0, n, size):
        path = folder / f"{start:06d}.npz"
        if not path.is_file():
            encoder = encoder or load_encoder(fetch.ensure("dinov2-small"))
            rows = [encode(encoder, scene(i, split)[1]) for i in range(start, start + size)]
            _save(path, np.stack([r[0] for r in rows]), np.stack([r[1] for r in rows]))
            rate = (start + size) / (time.monotonic() - begin)
            print(f"{split}: {start + size} scenes encoded, {rate:.0f} a second", flush=True)
        with np.load(path) as file:
            parts.append((file["classes"], file["patches"]))
    classes, patches = (np.concatenate([part[k] for part in parts])[:n] for k in (0, 1))
    return Features(classes, patches)


def _save(path: Path, classes: NDArray[np.float16], patches: NDArray[np.float16]) -> None:
    work = path.with_suffix(".part.npz")
    np.savez(work, classes=classes, patches=patches)
    work.rename(path)
