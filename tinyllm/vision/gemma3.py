"""Gemma 3 with eyes: SigLIP's patches, averaged to 256 rows, normed, and one matrix.

    image → encoder → means of squares of patches → RMS norm → one matrix → rows

However large an image is, it becomes 896 × 896 pixels and 256 rows. In the language model the rows
of one image see one another, the later ones too. Gemma Team 2025,
https://arxiv.org/abs/2503.19786; SigLIP: https://arxiv.org/abs/2303.15343.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tinyllm.config import ModelConfig, read_json_object
from tinyllm.errors import ConfigError, ImageError
from tinyllm.families.keys import value_of as get_key
from tinyllm.kernels.reference import rms_norm
from tinyllm.tokenizer import Tokenizer
from tinyllm.vision.config import VisionConfig
from tinyllm.vision.encoder import Encoder, tensor_of
from tinyllm.vision.load import load_encoder
from tinyllm.vision.preprocess import ImageProcessor
from tinyllm.vision.seen import WHOLE_IMAGE, Seen, grid
from tinyllm.weights import read_folder

PROJECTOR = "multi_modal_projector."
PROJECTION, NORM = "mm_input_projection_weight", "mm_soft_emb_norm.weight"


class Gemma3Eyes:
    """The image side of a Gemma 3 checkpoint.

    Args:
        encoder: pixels → a row a patch.
        processor: image → pixels.
        projection: (dim of the encoder, dim of the language model).
        norm: (dim of the encoder,) the weight of the norm before it.
        side: rows of an image along each side.
        tokens: what stands before an image, for a row of it, and behind it.
        tokenizer: has these.
    """

    around, whole = "\n\n", True

    def __init__(
        self,
        encoder: Encoder,
        processor: ImageProcessor,
        projection: NDArray[np.float32],
        norm: NDArray[np.float32],
        side: int,
        tokens: tuple[str, str, str],
        tokenizer: Tokenizer,
    ) -> None:
        self.encoder, self.processor = encoder, processor
        self.projection, self.norm, self.side = projection, norm, side
        self.image_token, self.row_token, self._end = tokens
        ids = tokenizer.special_tokens
        row = (ids[self.row_token],) * side**2
        self.layout = (ids[self.image_token], *row, ids[self._end])

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        tokenizer: Tokenizer,
        *,
        compiled: bool = False,
        threads: int | None = None,
    ) -> Gemma3Eyes:
        """Read the image side of a hub-layout folder; `compiled` chooses the encoder's fast path.

        Raises:
            ConfigError, WeightsError: naming the file, and the key or tensor.
        """
        path = folder / "config.json"
        raw = read_json_object(path)
        encoder = load_encoder(folder, compiled=compiled, threads=threads)
        n_rows = get_key(raw, "mm_tokens_per_image", int, 256)
        side = _side(encoder.config, n_rows, path)
        by_id = {token: name for name, token in tokenizer.special_tokens.items()}
        names = []
        for key, default in (("boi_token_index", 255_999), ("image_token_index", 262_144),
                             ("eoi_token_index", 256_000)):  # fmt: skip
            token = get_key(raw, key, int, default)
            if token not in by_id:
                raise ConfigError(
                    f"{path}: {key} is {token}, which is no control token of this tokenizer; take "
                    "tokenizer.json from the same checkpoint"
                )
            names.append(by_id[token])
        found = read_folder(folder, keep=lambda name: PROJECTOR in name)
        prefix = next((name.partition(PROJECTOR)[0] for name in found), "") + PROJECTOR
        width, dim = encoder.config.dim, ModelConfig.from_folder(folder).dim
        return cls(
            encoder,
            ImageProcessor.from_folder(folder),
            tensor_of(found, prefix + PROJECTION, (width, dim), folder),
            1 + tensor_of(found, prefix + NORM, (width,), folder),  # stored less one
            side,
            (names[0], names[1], names[2]),
            tokenizer,
        )

    def encode(self, image: NDArray[np.uint8]) -> tuple[tuple[int, ...], NDArray[np.float32]]:
        """(H, W, 3) RGB → the tokens it takes in a prompt, and the rows of its image tokens.

        Raises:
            ImageError: the image has no pixels.
        """
        if image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ImageError(f"pixels must be (height, width, 3), not {image.shape}")
        return self.layout, self.connect(self.encoder.encode(self.processor(image)))

    def seen(self, image: NDArray[np.uint8]) -> Seen:
        """(H, W, 3) RGB → the whole of it; a row stands for a square of patches."""
        side = self.encoder.config.native_grid
        return Seen((WHOLE_IMAGE,), (side, side), tuple(grid(WHOLE_IMAGE, self.side, self.side)))

    def connect(self, patches: NDArray[np.float32]) -> NDArray[np.float32]:
        """(patches, dim) → (side², dim of the language model)."""
        grid = int(len(patches) ** 0.5)
        f, dim = grid // self.side, patches.shape[1]
        squares = patches.reshape(self.side, f, self.side, f, dim).mean(axis=(1, 3))
        rows = squares.reshape(-1, dim)
        normed = rms_norm(rows, self.norm, self.encoder.config.norm_eps)
        return np.asarray(normed @ self.projection, np.float32)


def _side(config: VisionConfig, n_rows: int, path: Path) -> int:
    side = int(n_rows**0.5)
    if n_rows < 1 or side**2 != n_rows or config.native_grid % side:
        raise ConfigError(
            f"{path}: mm_tokens_per_image is {n_rows}; {config.native_grid} × {config.native_grid} "
            "patches must be averaged to a square of so many rows"
        )
    return side
