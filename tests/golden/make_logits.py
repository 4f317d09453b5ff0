"""Write `logits.npz`: what torch and transformers make of the prompts, in float64.

    python -m tests.golden.make_logits FOLDER     # of smollm2-135m-instruct

Per prompt: its token ids; at up to 6 positions, the last among them, the 32 largest logits and a
random 64 others; and 64 greedy tokens with the gap between the two best logits at each.
"""

from __future__ import annotations

import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tests.golden.logits import GOLDEN_FILE, N_GREEDY, N_OTHERS, N_POSITIONS, N_TOP
from tests.golden.prompts import token_ids
from tests.reference.llama import Reference


def main(folder: Path) -> None:
    torch.manual_seed(0)
    reference = Reference(folder)
    arrays: dict[str, NDArray[Any]] = {}
    for number, (name, ids) in enumerate(token_ids(folder).items()):
        # Seeded by the name, so that a prompt that is added or dropped leaves the others alone.
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        logits, greedy, gaps = reference.logits_and_greedy(ids, N_GREEDY)
        earlier = rng.choice(len(ids) - 1, min(N_POSITIONS, len(ids)) - 1, replace=False)
        positions = np.sort(np.append(earlier, len(ids) - 1))
        columns = np.array([_columns(row, rng) for row in logits[positions]])
        key = f"{number:02}"
        arrays |= {
            f"{key}/name": np.array(name),
            f"{key}/ids": np.array(ids, np.uint16),
            f"{key}/positions": positions.astype(np.uint16),
            f"{key}/columns": columns.astype(np.uint16),
            f"{key}/logits": np.take_along_axis(logits[positions], columns, 1),
            f"{key}/greedy": np.array(greedy, np.uint16),
            f"{key}/gaps": np.array(gaps, np.float32),
        }
        print(f"{name}: {len(ids)} tokens, smallest greedy gap {min(gaps):.4f}", flush=True)
    np.savez_compressed(GOLDEN_FILE, **arrays)
    print(f"{GOLDEN_FILE}: {GOLDEN_FILE.stat().st_size:,} bytes")


def _columns(row: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.int64]:
    """The ids of the largest logits, and of as many others as are kept beside them."""
    order = np.argsort(-row, kind="stable")
    others = rng.choice(order[N_TOP:], N_OTHERS, replace=False)
    return np.concatenate([order[:N_TOP], others])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
