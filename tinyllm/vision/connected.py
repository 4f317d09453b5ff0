"""A frozen language model that is told what a frozen encoder sees: rows in place of an image.

    image → square of 224 pixels → encoder → connector → n_rows rows for the language model

The connector (`connector.py`) is all that was trained. What it hands over always takes the same
number of rows, so an image costs the same in every prompt, whatever its size.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tinyllm.errors import ImageError
from tinyllm.vision.connector import (
    GRID,
    LEFT,
    RIGHT,
    SLOTS,
    WHOLE,
    Array,
    Connector,
    Reading,
)
from tinyllm.vision.encoder import Encoder
from tinyllm.vision.preprocess import ImageProcessor
from tinyllm.vision.seen import WHOLE_IMAGE, Box, Seen

# The whole picture, squeezed into a square: what lies at its edges counts too.
PROCESSOR = ImageProcessor(
    size={"height": 224, "width": 224},
    resample=Image.Resampling.BICUBIC,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)


class ConnectedEncoder:
    """The image side of an assembled model (`parts.py`).

    Args:
        encoder: pixels → the residual streams behind some of its layers.
        connector: those streams → a reading → rows.
        image_token, image_id: a control token that chat templates never write; the rows stand where
            it stands.
    """

    def __init__(
        self, encoder: Encoder, connector: Connector, image_token: str, image_id: int
    ) -> None:
        self.encoder = encoder
        self.connector = connector
        self.image_token = self.row_token = image_token
        self.around, self.whole = "", False
        self._layout = (image_id,) * connector.n_rows

    def encode(self, image: NDArray[np.uint8]) -> tuple[tuple[int, ...], NDArray[np.float32]]:
        """(H, W, 3) RGB → the tokens it takes in a prompt, and a row (dim,) for each.

        Raises:
            ImageError: the image has no pixels.
        """
        return self._layout, self.connector.rows(self.read(image))

    def read(self, image: NDArray[np.uint8]) -> Reading:
        """(H, W, 3) RGB → what the connector makes of it: probabilities, and a caption."""
        if image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ImageError(f"pixels must be (height, width, 3), not {image.shape}")
        reading = self.connector.read(self._states(image))
        squares = self.connector.halves(reading)  # none, but where there are two things
        closer = {slot: self._states(cut(image, box)) for slot, box in squares.items()}
        return self.connector.look_closer(reading, closer) if closer else reading

    def seen(self, image: NDArray[np.uint8]) -> Seen:
        """(H, W, 3) RGB → its patches; every row stands for the whole: the rows are a sentence."""
        reading = self.read(image)
        side = PROCESSOR.size["height"] // self.encoder.config.patch_size
        return Seen(
            parts=(WHOLE_IMAGE,),
            patches=(side, side),
            places=(WHOLE_IMAGE,) * self.connector.n_rows,
            caption=reading.caption,
            names=[(SLOTS[slot], reading.top(slot, 4)) for slot in (WHOLE, LEFT, RIGHT)],
            looked=[(name, reading.attention[i].reshape(GRID, GRID))
                    for i, name in enumerate(SLOTS)],
        )  # fmt: skip

    def _states(self, image: NDArray[np.uint8]) -> dict[int, Array]:
        return self.encoder.encode(PROCESSOR(image), layers=self.connector.layers)


def cut(image: NDArray[np.uint8], box: Box) -> NDArray[np.uint8]:
    """The part of (H, W, 3) that a box of shares covers, at least a pixel."""
    height, width = image.shape[:2]
    left, top = min(int(box[0] * width), width - 1), min(int(box[1] * height), height - 1)
    right, bottom = max(round(box[2] * width), left + 1), max(round(box[3] * height), top + 1)
    return np.ascontiguousarray(image[top:bottom, left:right])
