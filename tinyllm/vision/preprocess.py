"""RGB pixels → what a vision encoder was trained on: resize, crop or pad, rescale, normalise.

Every number comes from the checkpoint's `preprocessor_config.json`. Resizing is Pillow's, whose
filters the checkpoints were trained with; the size rules are those of the reference processors
(transformers' Pillow-based ones: BiT for DINOv2, CLIP, SigLIP, Idefics3).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tinyllm.config import read_json_object
from tinyllm.errors import ConfigError

Pixels = NDArray[np.uint8]  # (height, width, 3) RGB

MAX_SIDE = 4096  # Idefics3 never resizes to more
MAX_RESIZED = 16_000_000  # pixels; a strip of 1 × 60,000 would become 256 × 15,360,000

_IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
_CLIP = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
_HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
_SHORTEST_AND_CROP = {
    "size": {"shortest_edge": 224},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
}
_TILES = {
    "size": {"longest_edge": 1456},
    "resample": 1,
    "do_image_splitting": True,
    "max_image_size": {"longest_edge": 364},
}
# A processor's file may leave out what its class has as a default.
DEFAULTS: dict[str, dict[str, Any]] = {
    "BitImageProcessor": _SHORTEST_AND_CROP | _CLIP,
    "CLIPImageProcessor": _SHORTEST_AND_CROP | _CLIP,
    "SiglipImageProcessor": {"size": {"height": 224, "width": 224}, "resample": 3} | _HALF,
    "Gemma3ImageProcessor": {"size": {"height": 224, "width": 224}, "resample": 2} | _HALF,
    "Idefics3ImageProcessor": _TILES | _HALF,
    "SmolVLMImageProcessor": _TILES | _HALF,
}


@dataclass(frozen=True)
class Tiles:
    """An image as a tiling encoder sees it: the tiles row by row, then the whole; all square."""

    pixels: NDArray[np.float32]  # (rows * cols + 1, 3, side, side), or (1, 3, side, side) untiled
    rows: int  # 0 when the image is not split
    cols: int


@dataclass(frozen=True)
class ImageProcessor:
    """How one checkpoint wants its images. Sizes are in pixels, colours in RGB order.

    `size` holds "shortest_edge", or "height" and "width", or "longest_edge" (tiling processors).
    """

    size: Mapping[str, int]
    resample: Image.Resampling
    mean: tuple[float, ...]
    std: tuple[float, ...]
    rescale_factor: float = 1 / 255
    crop: tuple[int, int] | None = None  # (height, width)
    pad: tuple[int, int] | None = None  # (height, width); fills right and bottom
    resize: bool = True
    tile: int | None = None  # side of a tile, for processors that split images
    split: bool = False

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> ImageProcessor:
        """Read the keys of a hub `preprocessor_config.json`.

        Raises:
            ConfigError: an unknown processor, or a key with a value that makes no sense.
        """
        kind = str(raw.get("image_processor_type", "")).removesuffix("Fast").removesuffix("Pil")
        if kind not in DEFAULTS:
            raise ConfigError(
                f"image_processor_type is {raw.get('image_processor_type')!r}; "
                f"tinyllm has {', '.join(DEFAULTS)}"
            )
        if raw.get("do_pan_and_scan"):
            raise ConfigError("do_pan_and_scan is set; images go in whole here: set it to false")
        raw = DEFAULTS[kind] | {k: v for k, v in raw.items() if v is not None}
        tiled = "max_image_size" in DEFAULTS[kind]
        try:
            normalise = bool(raw.get("do_normalize", True))
            size = _edges(raw["size"], "size", "longest_edge" if tiled else "shortest_edge")
            if tiled and "longest_edge" not in size:
                raise ConfigError("size must hold longest_edge, from which the tiles are cut")
            return cls(
                size=size,
                resample=Image.Resampling(int(raw["resample"])),
                mean=_colours(raw, "image_mean") if normalise else (0.0, 0.0, 0.0),
                std=_colours(raw, "image_std") if normalise else (1.0, 1.0, 1.0),
                rescale_factor=(
                    float(raw.get("rescale_factor", 1 / 255))
                    if raw.get("do_rescale", True)
                    else 1.0
                ),
                crop=_box(raw["crop_size"], "crop_size") if raw.get("do_center_crop") else None,
                pad=(
                    _box(raw["pad_size"], "pad_size")
                    if raw.get("do_pad") and raw.get("pad_size") and not tiled
                    else None
                ),
                resize=bool(raw.get("do_resize", True)),
                tile=(
                    _edges(raw["max_image_size"], "max_image_size", "longest_edge")["longest_edge"]
                    if tiled
                    else None
                ),
                split=tiled and bool(raw.get("do_image_splitting")),
            )
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"the image processor's settings don't make sense: {error}") from None

    @classmethod
    def from_folder(cls, folder: Path) -> ImageProcessor:
        """Read `preprocessor_config.json`, or the `image_processor` of `processor_config.json`."""
        path = folder / "preprocessor_config.json"
        if not path.is_file() and (folder / "processor_config.json").is_file():
            path = folder / "processor_config.json"
        raw = read_json_object(path)
        nested = raw.get("image_processor", raw)
        try:
            return cls.from_hf(nested if isinstance(nested, dict) else raw)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None

    def __call__(self, image: Pixels) -> NDArray[np.float32]:
        """One image (H, W, 3) uint8 → (3, height, width) float32, for an encoder without tiles."""
        if self.resize:
            target = self._target(*image.shape[:2])
            if self.crop and math.prod(target) > MAX_RESIZED:
                image = resize_middle(image, target, self.crop, self.resample)
            else:
                image = resize(image, target, self.resample)
        if self.crop:
            image = centre_crop(image, *self.crop)
        pixels = self.normalise(image)
        if self.pad:
            height, width = pixels.shape[1:]
            if height > self.pad[0] or width > self.pad[1]:
                raise ConfigError(f"pad_size {self.pad} is smaller than the image {height, width}")
            # After normalising, so that zero is the mean colour: as the reference does.
            pixels = np.pad(pixels, ((0, 0), (0, self.pad[0] - height), (0, self.pad[1] - width)))
        return pixels

    def tiles(self, image: Pixels) -> Tiles:
        """One image (H, W, 3) uint8 → square tiles and the whole image, all of side `tile`."""
        side = self.tile
        assert side is not None, "only tiling processors have tiles"
        height, width = image.shape[:2]
        if self.resize:
            image = resize(image, longest_edge_size(height, width, self.size), self.resample)
        rows = cols = 0
        if self.split:
            height, width = _whole_tiles(image.shape[0], image.shape[1], side)
            image = resize(image, (height, width), self.resample)
            views = [image]
            if max(height, width) > side:
                rows, cols = height // side, width // side
                views = [
                    image[r * side : (r + 1) * side, c * side : (c + 1) * side]
                    for r in range(rows)
                    for c in range(cols)
                ]
                views.append(resize(image, (side, side), self.resample))
        else:
            views = [resize(image, (side, side), self.resample)]
        return Tiles(np.stack([self.normalise(view) for view in views]), rows, cols)

    def normalise(self, image: Pixels) -> NDArray[np.float32]:
        """(H, W, 3) uint8 → (3, H, W) float32: (pixel · rescale_factor - mean) / std."""
        # In float64, then rounded, because that is how the reference rescales.
        scaled = (image.astype(np.float64) * self.rescale_factor).astype(np.float32)
        normal = (scaled - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return np.ascontiguousarray(normal.transpose(2, 0, 1))

    def _target(self, height: int, width: int) -> tuple[int, int]:
        if "shortest_edge" in self.size:
            short = self.size["shortest_edge"]
            long = int(short * max(height, width) / min(height, width))
            return (long, short) if width <= height else (short, long)
        return self.size["height"], self.size["width"]


def resize(image: Pixels, size: tuple[int, int], resample: Image.Resampling) -> Pixels:
    """Resize (H, W, 3) to `size` (height, width) with Pillow's filter; shrinking is antialiased."""
    height, width = size
    return np.asarray(Image.fromarray(image).resize((width, height), resample))


def resize_middle(
    image: Pixels, size: tuple[int, int], crop: tuple[int, int], resample: Image.Resampling
) -> Pixels:
    """`resize` to `size`; only what the middle `crop` (height, width) needs is computed."""
    start, wanted, begin, end = [0, 0], [0, 0], [0.0, 0.0], [0.0, 0.0]
    for axis in (0, 1):
        scale = image.shape[axis] / size[axis]
        wanted[axis] = min(crop[axis], size[axis])
        start[axis] = (size[axis] - wanted[axis]) // 2
        begin[axis] = scale * start[axis]
        end[axis] = min(scale * (start[axis] + wanted[axis]), image.shape[axis])
    # Across, then down, as Pillow does for a whole image: grey levels are clipped in between.
    height = image.shape[0]
    across = Image.fromarray(image).resize(
        (wanted[1], height), resample, box=(begin[1], 0, end[1], height)
    )
    down = across.resize((wanted[1], wanted[0]), resample, box=(0, begin[0], wanted[1], end[0]))
    return np.asarray(down)


def centre_crop(image: Pixels, height: int, width: int) -> Pixels:
    """The middle (height, width) of (H, W, 3); black is added around an image that is smaller."""
    short = max(height - image.shape[0], 0), max(width - image.shape[1], 0)
    # The odd row or column of padding goes to the top or left, as in the reference.
    before = (short[0] + 1) // 2, (short[1] + 1) // 2
    image = np.pad(
        image, ((before[0], short[0] - before[0]), (before[1], short[1] - before[1]), (0, 0))
    )
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width]


def longest_edge_size(height: int, width: int, size: Mapping[str, int]) -> tuple[int, int]:
    """Idefics3's first resize: the longer side becomes `longest_edge`, the other one even."""
    longest, aspect = size["longest_edge"], width / height
    if width >= height:
        width, height = longest, int(longest / aspect)
        height += height % 2
    else:
        height, width = longest, int(longest * aspect)
        width += width % 2
    height, width = max(height, 1), max(width, 1)
    aspect = width / height
    if width >= height and width > MAX_SIDE:
        width, height = MAX_SIDE, int(MAX_SIDE / aspect)
    elif height > width and height > MAX_SIDE:
        height, width = MAX_SIDE, int(MAX_SIDE * aspect)
    return max(height, 1), max(width, 1)


def _whole_tiles(height: int, width: int, side: int) -> tuple[int, int]:
    """Idefics3's second resize: both sides up to whole tiles, the shorter by the aspect ratio."""
    aspect = width / height
    if width >= height:
        width = math.ceil(width / side) * side
        height = math.ceil(int(width / aspect) / side) * side
    else:
        height = math.ceil(height / side) * side
        width = math.ceil(int(height * aspect) / side) * side
    # An extreme strip rounds down to no pixels at all: it still needs one row of tiles.
    return max(height, side), max(width, side)


def _edges(value: Any, name: str, single: str) -> dict[str, int]:
    """A size: a number (an edge, by old files' shorthand) or an object of edges."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = {single: value}
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name} must be a number or an object, not {value!r}")
    edges = {k: v for k, v in value.items() if v is not None}
    known = ({"shortest_edge"}, {"longest_edge"}, {"height", "width"})
    if set(edges) not in known or not all(isinstance(v, int) and v > 0 for v in edges.values()):
        raise ConfigError(
            f"{name} must hold shortest_edge, longest_edge, or height and width; not {value!r}"
        )
    return edges


def _box(value: Any, name: str) -> tuple[int, int]:
    if isinstance(value, int):
        value = {"height": value, "width": value}
    edges = _edges(value, name, "height")
    if set(edges) != {"height", "width"}:
        raise ConfigError(f"{name} must hold height and width; not {value!r}")
    return edges["height"], edges["width"]


def _colours(raw: Mapping[str, Any], key: str) -> tuple[float, ...]:
    values = tuple(float(v) for v in raw[key])
    if len(values) != 3 or (key == "image_std" and 0 in values):
        raise ConfigError(f"{key} must hold three numbers, one a colour; not {raw[key]!r}")
    return values
