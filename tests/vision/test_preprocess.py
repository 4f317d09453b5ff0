"""Preprocessing against the reference processors: goldens here, live where torch is installed."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from PIL import Image

from tests.vision_models import picture
from tinyllm.errors import ConfigError
from tinyllm.vision.image import decode_image
from tinyllm.vision.preprocess import ImageProcessor, centre_crop, resize, resize_middle

GOLDEN = Path(__file__).parents[1] / "golden" / "vision.npz"

PROCESSORS: dict[str, dict[str, Any]] = {
    "dinov2": {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": 256},
        "crop_size": {"height": 224, "width": 224},
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    },
    "clip": {"image_processor_type": "CLIPImageProcessor"},
    "clip-padded-crop": {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 100},
        "crop_size": {"height": 131, "width": 120},
    },
    "siglip": {"image_processor_type": "SiglipImageProcessor"},
}
TILED: dict[str, dict[str, Any]] = {
    "tiles": {
        "image_processor_type": "Idefics3ImageProcessor",
        "size": {"longest_edge": 256},
        "max_image_size": {"longest_edge": 64},
    },
    "whole": {
        "image_processor_type": "Idefics3ImageProcessor",
        "size": {"longest_edge": 256},
        "max_image_size": {"longest_edge": 64},
        "do_image_splitting": False,
    },
    "one-tile": {
        "image_processor_type": "Idefics3ImageProcessor",
        "size": {"longest_edge": 64},
        "max_image_size": {"longest_edge": 64},
    },
}
PICTURES = [(224, 224), (333, 517), (401, 37), (37, 400), (1, 1)]


def run(label: str, image: np.ndarray) -> np.ndarray:
    processor = ImageProcessor.from_hf((PROCESSORS | TILED)[label])
    return processor.tiles(image).pixels if label in TILED else processor(image)


def one_grey_level(label: str) -> float:
    """In normalised units. Pillow 12, the last for Python 3.10, resamples up to five levels off."""
    levels = 1 if int(PIL.__version__.split(".")[0]) >= 13 else 5
    return 1.001 * levels / 255 / min(ImageProcessor.from_hf((PROCESSORS | TILED)[label]).std)


@pytest.mark.parametrize("size", PICTURES, ids=str)
@pytest.mark.parametrize("label", PROCESSORS | TILED)
def test_agrees_with_the_reference_to_one_grey_level(label: str, size: tuple[int, int]) -> None:
    with np.load(GOLDEN) as golden:
        expected = golden[f"{label}/{size[0]}x{size[1]}"]
    actual = run(label, picture(*size))[..., ::16, ::16]
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= one_grey_level(label)


@pytest.mark.reference
@pytest.mark.parametrize("encoding", ["PNG", "JPEG"])
@pytest.mark.parametrize("label", PROCESSORS | TILED)
def test_agrees_with_the_live_reference_in_every_pixel(label: str, encoding: str) -> None:
    from tests.golden.make_vision import processor_class

    settings = dict((PROCESSORS | TILED)[label])
    reference = processor_class(settings.pop("image_processor_type"))(**settings)
    for size in [*PICTURES, (640, 479), (8, 2000)]:
        file = io.BytesIO()
        Image.fromarray(picture(*size)).save(file, encoding)
        theirs = Image.open(file).convert("RGB")
        images = [[theirs]] if label in TILED else theirs
        expected = reference(images, return_tensors="np")["pixel_values"][0]
        actual = run(label, decode_image(file.getvalue()))
        assert actual.shape == expected.shape
        assert np.abs(actual - expected).max() <= one_grey_level(label)


@pytest.mark.parametrize(
    ("size", "rows", "cols"),
    [
        ((512, 512), 4, 4),
        ((100, 400), 1, 4),
        ((400, 100), 4, 1),
        ((300, 400), 3, 4),
        ((10, 8000), 1, 4),
    ],
)
def test_tiles_follow_the_aspect_ratio(size: tuple[int, int], rows: int, cols: int) -> None:
    tiles = ImageProcessor.from_hf(TILED["tiles"]).tiles(picture(*size))
    assert (tiles.rows, tiles.cols) == (rows, cols)
    assert tiles.pixels.shape == (rows * cols + 1, 3, 64, 64)
    assert tiles.pixels.dtype == np.float32


def test_a_strip_is_resized_only_where_the_crop_needs_it() -> None:
    rng = np.random.default_rng(0)
    for height, width in [(37, 1000), (1000, 37), (3, 999), (400, 300)]:
        image = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
        short = min(height, width)
        size = (256 * height // short, 256 * width // short)
        whole = centre_crop(resize(image, size, Image.Resampling.BICUBIC), 224, 224)
        part = centre_crop(
            resize_middle(image, size, (224, 224), Image.Resampling.BICUBIC), 224, 224
        )
        assert np.abs(whole.astype(int) - part).max() <= 1


def test_the_longest_strip_stays_small() -> None:
    strip = np.full((1, 60_000, 3), 128, np.uint8)
    pixels = ImageProcessor.from_hf(PROCESSORS["dinov2"])(strip)
    assert pixels.shape == (3, 224, 224)
    assert np.ptp(pixels[0]) == 0


def test_padding_comes_after_normalising() -> None:
    raw = PROCESSORS["siglip"] | {
        "size": {"height": 8, "width": 8},
        "do_pad": True,
        "pad_size": {"height": 10, "width": 12},
    }
    pixels = ImageProcessor.from_hf(raw)(np.full((4, 4, 3), 255, np.uint8))
    assert pixels.shape == (3, 10, 12)
    assert (pixels[:, :8, :8] == 1.0).all()
    assert not pixels[:, 8:].any() and not pixels[:, :, 8:].any()


def test_settings_are_read_from_either_file(tmp_path: Path) -> None:
    (tmp_path / "processor_config.json").write_text(
        json.dumps({"image_processor": PROCESSORS["clip"], "processor_class": "X"})
    )
    assert ImageProcessor.from_folder(tmp_path) == ImageProcessor.from_hf(PROCESSORS["clip"])
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSORS["dinov2"]))
    assert ImageProcessor.from_folder(tmp_path) == ImageProcessor.from_hf(PROCESSORS["dinov2"])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"image_processor_type": "WeirdImageProcessor"}, "image_processor_type"),
        ({"image_processor_type": None}, "image_processor_type"),
        ({"size": {"shortest": 3}}, "size"),
        ({"size": {"height": 0, "width": 4}}, "size"),
        ({"size": "large"}, "size"),
        ({"crop_size": {"shortest_edge": 4}}, "crop_size"),
        ({"image_mean": [0.5, 0.5]}, "image_mean"),
        ({"image_std": [0.5, 0, 0.5]}, "image_std"),
        ({"image_std": "x"}, "settings"),
        ({"resample": 99}, "settings"),
        ({"rescale_factor": "tiny"}, "settings"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_named(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        ImageProcessor.from_hf(PROCESSORS["dinov2"] | change)
