"""What a model is asked: token ids and, where there are images, the rows that stand in for some."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tinyllm.runner import images_between
from tinyllm.text.characters import TokenTexts


@dataclass(frozen=True)
class ImageSpan:
    """Where one image stands in a prompt, and what it looks like."""

    start: int  # its first token's position
    stop: int  # the one behind its last
    thumbnail: bytes = b""  # a small PNG, where somebody will want to see it


@dataclass(frozen=True)
class Prompt:
    """Token ids and, for prompts with images, the embedding rows that stand in for some."""

    tokens: NDArray[np.int32]  # (T,)
    image_positions: NDArray[np.int64] | None = None  # (M,) ascending
    image_rows: NDArray[np.float32] | None = None  # (M, dim)
    image_keys: NDArray[np.int64] | None = None  # (M,) negative content hashes, for prefix matching
    images: tuple[ImageSpan, ...] = ()
    whole_images: bool = False  # an image's positions see one another: one forward takes them all

    def match_ids(self) -> NDArray[np.int64]:
        """What two prompts are compared by: token ids, with image positions by their content."""
        ids = self.tokens.astype(np.int64)
        if self.image_positions is not None and self.image_keys is not None:
            ids[self.image_positions] = self.image_keys
        return ids

    def first(self, n: int) -> Prompt:
        """The first `n` tokens, with the rows of images that stand there."""
        if self.image_positions is None or self.image_rows is None:
            return Prompt(self.tokens[:n])
        some = int(np.searchsorted(self.image_positions, n))
        if not some:
            return Prompt(self.tokens[:n])
        return Prompt(
            self.tokens[:n],
            self.image_positions[:some],
            self.image_rows[:some],
            None if self.image_keys is None else self.image_keys[:some],
            tuple(span for span in self.images if span.stop <= n),
        )

    def images_between(
        self, start: int, stop: int
    ) -> tuple[NDArray[np.int64] | None, NDArray[np.float32] | None]:
        """The image positions from `start` to before `stop`, counted from `start`, and their rows;
        None twice where there is no image."""
        return images_between(self.image_positions, self.image_rows, start, stop)


def texts_of(
    tokenizer: TokenTexts, tokens: Sequence[int], image_positions: NDArray[np.int64] | None = None
) -> list[str]:
    """Tokens for display: parts of a character as such, and what stands for an image as its rows.

    Args:
        tokenizer: theirs.
        tokens: (T,) ids.
        image_positions: (M,) where image rows stand in; those beyond T are left out.
    """
    texts = tokenizer.token_texts(tokens)
    for row, position in enumerate([] if image_positions is None else image_positions.tolist()):
        if position < len(texts):
            texts[position] = f"image row {row}"
    return texts
