"""The fast image encoder is held to the readable one, its kernels to their definitions."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.vision_models import SIZES, SMALL, seeded_pixels, seeded_weights, write_folder
from tinyllm.kernels import reference, reference_vit
from tinyllm.kernels import vit as kernels
from tinyllm.kernels.encode import add_bias_and_activate
from tinyllm.vision.compiled import ACTIVATIONS, CompiledVisionModel
from tinyllm.vision.config import VisionConfig
from tinyllm.vision.encoder import VisionModel
from tinyllm.vision.load import load_encoder

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
    x, norm = rows(5, width), rows(2, width)
    exact = reference_vit.layer_norm(x.astype(np.float64), norm[0], norm[1], 1e-6)
    out = np.full(width + 3, 7, np.float32)
    for row, wanted in zip(x, exact, strict=True):
        kernels.norm_row(row, norm, 1e-6, out, np.empty(16, np.float32))
        assert np.abs(out[:width] - wanted).max() <= 1e-5
        assert (out[width:] == 7).all()
    for row in x.copy():
        expected = reference.softmax(row)
        out[:width] = row
        kernels.softmax_row(out, width, np.empty(16, np.float32))
        assert np.allclose(out[:width], expected, atol=1e-6)
        assert (out[width:] == 7).all()


@pytest.mark.parametrize("top", [-80.0, 0.0, 80.0])
def test_softmax_of_scores_far_apart(top: float) -> None:
    x = np.array([top, top - 200, top - 5, -1e30] * 5, np.float32)
    expected = reference.softmax(x)
    kernels.softmax_row(x, len(x), np.empty(16, np.float32))
    assert np.allclose(x, expected, atol=1e-7)


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh", "quick_gelu"])
def test_activations_from_end_to_end(name: str) -> None:
    exact: Callable[[np.ndarray], np.ndarray] = getattr(reference_vit, name)
    out = np.concatenate([np.linspace(-12, 12, 4001), [-1e4, -200, 200, 1e4, 0]])
    out = out.astype(np.float32)
    bias = rows(1, len(out), 0.1)[0]
    expected = exact(out.astype(np.float64) + bias)
    add_bias_and_activate(out, bias, ACTIVATIONS[name])
    assert np.abs((out - expected) / np.maximum(np.abs(expected), 1)).max() <= 1e-6


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_number_of_threads_changes_no_bit(threads: int) -> None:
    config = VisionConfig.from_hf(SMALL["dinov2"])
    weights, pixels = seeded_weights(config), seeded_pixels(98, 61)
    one = CompiledVisionModel(config, weights, threads=1).encode(pixels)
    assert np.array_equal(CompiledVisionModel(config, weights, threads).encode(pixels), one)


def test_several_callers_at_once() -> None:
    _, fast = both("siglip")
    sizes = [*SIZES, (56, 70), (70, 56)]
    expected = {size: fast.encode(seeded_pixels(*size)) for size in sizes}
    wrong = []

    def ask(size: tuple[int, int]) -> None:
        for _ in range(5):
            if not np.array_equal(fast.encode(seeded_pixels(*size)), expected[size]):
                wrong.append(size)

    callers = [threading.Thread(target=ask, args=(size,)) for size in sizes]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong
