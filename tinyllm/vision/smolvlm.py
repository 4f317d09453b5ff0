"""SmolVLM's family (Idefics3): an image as tiles, tiles as tokens, tokens among the text's.

    image → tiles and the whole → encoder → pixel shuffle → one matrix → rows for the language model

An image is cut into square tiles, and the whole of it, shrunk to one tile, comes last. The encoder
gives a row a patch; `pixel_shuffle` lays squares of neighbouring patches end to end, so that fewer,
longer rows go on; a matrix takes them to the language model's width. In the prompt every tile's
rows stand behind a token that says which tile it is. Laurençon et al. 2024,
https://arxiv.org/abs/2408.12637; Marafioti et al. 2025, https://arxiv.org/abs/2504.05299.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tinyllm.config import ModelConfig, read_json_object
from tinyllm.errors import ConfigError, ImageError
from tinyllm.tokenizer import Tokenizer
from tinyllm.vision.config import VisionConfig
from tinyllm.vision.encoder import Encoder, tensor_of
from tinyllm.vision.load import load_encoder
from tinyllm.vision.preprocess import ImageProcessor
from tinyllm.vision.seen import WHOLE_IMAGE, Seen, grid
from tinyllm.weights import read_folder

PROJECTION = "model.connector.modality_projection.proj.weight"
FAKE_TOKEN = "<fake_token_around_image>"  # stands on both sides of every tile's rows
GLOBAL_TOKEN = "<global-img>"  # the whole image comes next


class SmolVLM:
    """The image side of an Idefics3 checkpoint; its language side is an ordinary Llama.

    Args:
        encoder: pixels → a row a patch.
        processor: image → tiles.
        projection: (dim of the language model, dim of the encoder · scale_factor²).
        scale_factor: side, in patches, of the squares that become one row.
        tokenizer: has the tokens around images.
    """

    image_token = row_token = "<image>"
    around, whole = "", False

    def __init__(
        self,
        encoder: Encoder,
        processor: ImageProcessor,
        projection: NDArray[np.float32],
        scale_factor: int,
        tokenizer: Tokenizer,
    ) -> None:
        self.encoder = encoder
        self.processor = processor
        self.projection = projection
        self.scale_factor = scale_factor
        self.tokenizer = tokenizer
        self.rows_a_tile = _rows_a_tile(processor, encoder.config, scale_factor)

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        tokenizer: Tokenizer,
        *,
        compiled: bool = False,
        threads: int | None = None,
    ) -> SmolVLM:
        """Read the image side of a hub-layout folder; `compiled` chooses the encoder's fast path.

        Raises:
            ConfigError, WeightsError: naming the file, and the key or tensor.
        """
        raw = read_json_object(folder / "config.json")
        encoder = load_encoder(folder, compiled=compiled, threads=threads)
        scale = raw.get("scale_factor", 2)
        if not isinstance(scale, int) or isinstance(scale, bool):
            raise ConfigError(f"{folder / 'config.json'}: scale_factor must be int, not {scale!r}")
        processor = ImageProcessor.from_folder(folder)
        _rows_a_tile(processor, encoder.config, scale)  # before a shape is computed from it
        shape = (ModelConfig.from_folder(folder).dim, encoder.config.dim * scale**2)
        found = read_folder(folder, keep=PROJECTION.__eq__)
        projection = tensor_of(found, PROJECTION, shape, folder)
        return cls(encoder, processor, projection, scale, tokenizer)

    def encode(self, image: NDArray[np.uint8]) -> tuple[tuple[int, ...], NDArray[np.float32]]:
        """(H, W, 3) RGB → the tokens it takes in a prompt, and the rows of its image tokens.

        Raises:
            ImageError: the image has no pixels.
        """
        if image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ImageError(f"pixels must be (height, width, 3), not {image.shape}")
        tiles = self.processor.tiles(image)
        rows = [self.connect(self.encoder.encode(pixels)) for pixels in tiles.pixels]
        return self.layout(tiles.rows, tiles.cols), np.concatenate(rows)

    def connect(self, patches: NDArray[np.float32]) -> NDArray[np.float32]:
        """One tile's patches, (side², dim) → (rows_a_tile, dim of the language model)."""
        return np.asarray(pixel_shuffle(patches, self.scale_factor) @ self.projection.T)

    def seen(self, image: NDArray[np.uint8]) -> Seen:
        """(H, W, 3) RGB → its tiles, the whole last; a row stands for a square of patches."""
        tiles = self.processor.tiles(image)
        squares = [*grid(WHOLE_IMAGE, tiles.rows, tiles.cols), WHOLE_IMAGE]
        rows = int(self.rows_a_tile**0.5)
        return Seen(
            parts=tuple(squares),
            patches=(rows * self.scale_factor, rows * self.scale_factor),
            places=tuple(place for square in squares for place in grid(square, rows, rows)),
        )

    def layout(self, rows: int, cols: int) -> tuple[int, ...]:
        """The token ids of an image of rows × cols tiles and the whole; (0, 0): the whole alone."""
        image = self.image_token * self.rows_a_tile
        text = "".join(
            "".join(f"{FAKE_TOKEN}<row_{r + 1}_col_{c + 1}>{image}" for c in range(cols)) + "\n"
            for r in range(rows)
        )
        text += ("\n" if rows else "") + FAKE_TOKEN + GLOBAL_TOKEN + image + FAKE_TOKEN
        return tuple(self.tokenizer.encode(text, allow_special=True))


def _rows_a_tile(processor: ImageProcessor, config: VisionConfig, scale_factor: int) -> int:
    if processor.tile is None:
        raise ConfigError("the image processor doesn't cut tiles; SmolVLM's does")
    side = processor.tile // config.patch_size
    if scale_factor < 1 or side % scale_factor:
        raise ConfigError(
            f"scale_factor is {scale_factor}: a tile of {side} × {side} patches can't be "
            "shuffled in squares of that side"
        )
    return (side // scale_factor) ** 2


def pixel_shuffle(patches: NDArray[np.float32], factor: int) -> NDArray[np.float32]:
    """Lay squares of factor × factor patches end to end: (side², dim) → (side²/f², dim · f²).

    Shi et al. 2016, https://arxiv.org/abs/1609.05158, the other way round.
    """
    side, dim = int(len(patches) ** 0.5), patches.shape[1]
    grid = patches.reshape(side // factor, factor, side // factor, factor, dim)
    # Within a square: rows of patches outermost, then patches along a row, then their elements.
    return grid.transpose(0, 2, 1, 3, 4).reshape(-1, factor * factor * dim)
