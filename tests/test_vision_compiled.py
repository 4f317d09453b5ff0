"""The fast image encoder is held to the readable one, its kernels to their definitions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.vision_models import SIZES, SMALL, seeded_pixels, seeded_weights, write_folder
from tinyllm.kernels import reference, reference_vit
from tinyllm.kernels import vit as kernels
from tinyllm.vision import VisionModel, load_encoder
from tinyllm.vision_compiled import ACTIVATIONS, CompiledVisionModel
from tinyllm.vision_config import VisionConfig

KINDS = list(SMALL)


def both(kind: str, **change: object) -> tuple[VisionModel, CompiledVisionModel]:
    config = VisionConfig.from_hf(SMALL[kind] | change)
    weights = seeded_weights(config)
    return VisionModel(config, weights), CompiledVisionModel(config, weights)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_it_gives_the_readable_numbers(kind: str, size: tuple[int, int]) -> None:
    readable, fast = both(kind)
    for seed in range(2):  # the second image of a size takes what the first one left
        pixels = seeded_pixels(*size, seed=seed)
        assert np.abs(fast.encode(pixels) - readable.encode(pixels)).max() <= 2e-5


@pytest.mark.parametrize("act", ["gelu", "gelu_pytorch_tanh", "quick_gelu"])
def test_every_activation(act: str) -> None:
    readable, fast = both("siglip", hidden_act=act)
    pixels = seeded_pixels(56, 56)
    assert np.abs(fast.encode(pixels) - readable.encode(pixels)).max() <= 2e-5


def test_queries_without_a_bias() -> None:
    readable, fast = both("dinov2", qkv_bias=False)
    pixels = seeded_pixels(56, 56)
    assert np.abs(fast.encode(pixels) - readable.encode(pixels)).max() <= 2e-5


@pytest.mark.parametrize("kind", KINDS)
def test_layers_are_the_readable_ones(kind: str) -> None:
    readable, fast = both(kind)
    pixels = seeded_pixels(56, 84)
    expected, actual = (model.encode(pixels, layers=(0, 1, 3)) for model in (readable, fast))
    assert list(actual) == [0, 1, 3]
    for layer, stream in expected.items():
        assert np.abs(actual[layer] - stream).max() <= 2e-5
    with pytest.raises(ValueError, match="layers must be 0 … 3, not -1"):
        fast.encode(pixels, layers=(-1,))


def test_an_image_gives_the_same_bits_again_and_leaves_others_alone() -> None:
    _, fast = both("clip")
    images = [seeded_pixels(56, 84, seed) for seed in range(10)]
    first = [fast.encode(pixels) for pixels in images]
    kept = [rows.copy() for rows in first]
    for size in [(56, 56), (70, 56), (84, 56), (98, 56), (56, 70), (56, 98), (56, 112), (112, 56)]:
        fast.encode(seeded_pixels(*size))
    again = [fast.encode(pixels) for pixels in reversed(images)]
    for rows, before, after in zip(first, kept, reversed(again), strict=True):
        assert np.array_equal(rows, before)
        assert np.array_equal(rows, after)


def test_real_dinov2_agrees(dinov2_folder: Path) -> None:
    readable = load_encoder(dinov2_folder, compiled=False)
    fast = load_encoder(dinov2_folder)
    for size in [(224, 224), (140, 322)]:
        pixels = seeded_pixels(*size)
        assert np.abs(fast.encode(pixels) - readable.encode(pixels)).max() <= 1e-4


def test_an_encoder_is_loaded_on_either_path(tmp_path: Path) -> None:
    write_folder("clip", tmp_path)
    assert isinstance(load_encoder(tmp_path), CompiledVisionModel)
    assert isinstance(load_encoder(tmp_path, compiled=False), VisionModel)


def rows(n: int, width: int, scale: float = 3.0) -> np.ndarray:
    rng = np.random.default_rng([n, width])
    return (rng.standard_normal((n, width)) * scale).astype(np.float32)


@pytest.mark.parametrize("width", [1, 15, 16, 17, 64, 384])
def test_layer_norm_and_softmax_of_any_width(width: int) -> None:
    x, weight, bias = rows(5, width), rows(1, width)[0], rows(2, width)[1]
    out = np.empty_like(x)
    kernels.layer_norm(x, weight, bias, 1e-6, out)
    exact = reference_vit.layer_norm(x.astype(np.float64), weight, bias, 1e-6)
    assert np.abs(out - exact).max() <= 1e-5
    kernels.softmax(x)
    assert np.allclose(x, reference.softmax(rows(5, width)), atol=1e-6)


@pytest.mark.parametrize("top", [-80.0, 0.0, 80.0])
def test_softmax_of_scores_far_apart(top: float) -> None:
    x = np.array([[top, top - 200, top - 5, -1e30] * 5], np.float32)
    expected = reference.softmax(x)
    kernels.softmax(x)
    assert np.allclose(x, expected, atol=1e-7)


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh", "quick_gelu"])
def test_activations_from_end_to_end(name: str) -> None:
    exact: Callable[[np.ndarray], np.ndarray] = getattr(reference_vit, name)
    x = np.concatenate([np.linspace(-12, 12, 4001), [-1e4, -200, 200, 1e4, 0]])
    out = x.astype(np.float32).reshape(2, -1)
    bias = rows(1, out.shape[1], 0.1)[0]
    expected = exact(out.astype(np.float64) + bias)
    ACTIVATIONS[name](out, bias)
    assert np.abs((out - expected) / np.maximum(np.abs(expected), 1)).max() <= 1e-6


def test_biases_and_residuals() -> None:
    x, y, bias = rows(3, 20), rows(4, 20)[:3], rows(1, 20)[0]
    out = x.copy()
    kernels.add_residual(out, y, bias)
    assert np.array_equal(out, x + (y + bias))
    kernels.add_bias(out, bias)
    assert np.array_equal(out, x + (y + bias) + bias)
