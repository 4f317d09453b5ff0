"""What becomes of an image on its way into a prompt: its patches, and the rows that stand for it.

An encoder cuts what it is given into patches; a connector hands rows of the language model's width
over. Two things can be shown of such a row: which part of the image it stands for, where it stands
for one, and which of the model's own words it is nearest to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tinyllm.kernels.blas import few_threads

Box = tuple[float, float, float, float]  # left, top, right, bottom, as shares of the image
WHOLE_IMAGE: Box = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class Seen:
    """One image as its encoder and its connector have it.

    Attributes:
        parts: what the encoder was given, one after the other.
        patches: of such a part, rows and columns.
        places: of each row that goes to the language model, the part of the image that it stands
            for; the whole where it stands for no part alone.
        caption: the connector's words, where it has some.
        names: what it took the image, and parts of it, for: part → (name, probability), best first.
        looked: where it looked for that: name of a slot → (n, n) weights over the whole image.
    """

    parts: tuple[Box, ...]
    patches: tuple[int, int]
    places: tuple[Box, ...]
    caption: str = ""
    names: Sequence[tuple[str, Sequence[tuple[str, float]]]] = ()
    looked: Sequence[tuple[str, NDArray[np.float32]]] = ()


def grid(box: Box, rows: int, cols: int) -> list[Box]:
    """A box cut into rows × cols, row by row."""
    left, top, right, bottom = box
    x, y = np.linspace(left, right, cols + 1), np.linspace(top, bottom, rows + 1)
    return [(float(x[c]), float(y[r]), float(x[c + 1]), float(y[r + 1]))
            for r in range(rows) for c in range(cols)]  # fmt: skip


@few_threads()
def nearest_words(
    rows: NDArray[np.float32], table: NDArray[np.float32], k: int = 3
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The tokens whose embeddings point most nearly where each row points.

    Args:
        rows: (M, dim), as a connector hands them over.
        table: (vocab_size, dim), the language model's embeddings.
        k: how many of a row.

    Returns:
        ids (M, k), nearest first, and their cosines (M, k). A row of zeros is like none: 0.
    """
    rows = rows[:, : table.shape[1]]  # what some families add further on isn't an embedding
    lengths = np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.float32(1e-12))
    sizes = np.maximum(np.linalg.norm(table, axis=1), np.float32(1e-12))
    likeness = (rows / lengths) @ table.T / sizes  # (M, vocab_size)
    best = np.argpartition(-likeness, k - 1, axis=1)[:, :k]
    found = np.take_along_axis(likeness, best, axis=1)
    order = np.argsort(-found, axis=1, kind="stable")
    return np.take_along_axis(best, order, 1), np.take_along_axis(found, order, 1)
