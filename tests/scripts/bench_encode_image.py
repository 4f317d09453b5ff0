"""How fast images are encoded, beside torch: interleaved pairs in one run, medians.

    python -m tests.scripts.bench_encode_image [--size 224] [--pairs 15] [--threads 2]

Needs torch and transformers beside tinyllm. Prints milliseconds an image for the compiled path
and torch in float32, the median ratio of the pairs, and the largest gap of the last
hidden states.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import Dinov2Model

from tinyllm import fetch
from tinyllm.vision.load import load_encoder


def milliseconds(work: Callable[[], Any]) -> float:
    """Of one call."""
    begin = time.perf_counter()
    work()
    return (time.perf_counter() - begin) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=224, help="of the square image, in pixels")
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2, help="torch's")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    folder = fetch.ensure("dinov2-small")
    fast = load_encoder(folder)
    theirs = Dinov2Model.from_pretrained(folder).eval()
    rng = np.random.default_rng(0)
    pixels = rng.standard_normal((3, options.size, options.size)).astype(np.float32)
    batch = torch.from_numpy(pixels[None])

    with torch.inference_mode():
        paths: dict[str, Callable[[], Any]] = {
            "torch": lambda: theirs(batch),
            "compiled": lambda: fast.encode(pixels),
        }
        expected = theirs(batch).last_hidden_state[0].numpy()
        for name in ("compiled",):
            gap = np.abs(paths[name]() - expected).max()
            print(f"{name:9} largest gap to torch {gap:.1e}")
        times: dict[str, list[float]] = {name: [] for name in paths}
        for _ in range(options.pairs):
            for name, work in paths.items():
                times[name].append(milliseconds(work))
    for name, taken in times.items():
        ratios = [t / mine for t, mine in zip(times["torch"], taken, strict=True)]
        print(
            f"{name:9} {statistics.median(taken):7.1f} ms (best {min(taken):.1f}), "
            f"{statistics.median(ratios):.2f} × torch"
        )


if __name__ == "__main__":
    main()
