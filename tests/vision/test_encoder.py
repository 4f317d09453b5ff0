"""The readable image encoder: against the reference, and against what must hold by itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.vision_models import (
    DINOV2_ROWS,
    DINOV2_SIZES,
    SIZES,
    SMALL,
    seeded_pixels,
    seeded_weights,
    write_folder,
)
from tinyllm.errors import ConfigError, WeightsError
from tinyllm.kernels import reference_vit as vit
from tinyllm.vision.config import VisionConfig
from tinyllm.vision.encoder import VisionModel, bucket

GOLDEN = Path(__file__).parents[1] / "golden" / "vision.npz"
KINDS = list(SMALL)


def small(kind: str) -> VisionModel:
    config = VisionConfig.from_hf(SMALL[kind])
    return VisionModel(config, seeded_weights(config))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_last_hidden_state_is_the_references(kind: str, size: tuple[int, int]) -> None:
    with np.load(GOLDEN) as golden:
        expected = golden[f"{kind}/{size[0]}x{size[1]}"]
    actual = small(kind).encode(seeded_pixels(*size))
    assert actual.dtype == np.float32
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= 1e-5


@pytest.mark.reference
@pytest.mark.parametrize("kind", KINDS)
def test_last_hidden_state_is_the_live_references(kind: str, tmp_path: Path) -> None:
    from tests.golden.make_vision import reference_encode

    write_folder(kind, tmp_path)
    model = VisionModel.from_folder(tmp_path)
    for height, width in [(56, 56), (70, 42), (126, 154)]:
        pixels = seeded_pixels(height, width, seed=1)
        expected: Any = reference_encode(kind, tmp_path, pixels)
        gap = np.abs(model.encode(pixels) - expected.last_hidden_state[0].numpy()).max()
        assert gap <= 1e-5


def test_real_dinov2_is_the_references(dinov2_folder: Path) -> None:
    model = VisionModel.from_folder(dinov2_folder)
    with np.load(GOLDEN) as golden:
        for height, width in DINOV2_SIZES:
            pixels, key = seeded_pixels(height, width), f"dinov2-small/{height}x{width}"
            gap = np.abs(model.encode(pixels)[DINOV2_ROWS] - golden[key]).max()
            assert gap <= 1e-4
            for layer, stream in model.encode(pixels, layers=(9, 11)).items():
                gap = np.abs(stream[DINOV2_ROWS] - golden[f"{key}/layer{layer}"]).max()
                assert gap <= 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_float64_agrees_with_float32(kind: str) -> None:
    model = small(kind)
    twice = VisionModel(model.config, {k: v.astype(np.float64) for k, v in model.weights.items()})
    pixels = seeded_pixels(56, 84)
    exact = twice.encode(pixels.astype(np.float64))
    assert exact.dtype == np.float64
    assert np.abs(exact - model.encode(pixels)).max() <= 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_layers_are_the_residual_stream(kind: str) -> None:
    model, pixels = small(kind), seeded_pixels(56, 56)
    seen: dict[str, np.ndarray] = {}
    model.encode(pixels, tap=lambda name, array: seen.setdefault(name, array))
    streams = model.encode(pixels, layers=(0, 2, 3))
    assert list(streams) == [0, 2, 3]
    assert np.array_equal(streams[0], seen["blocks.0.hook_resid_pre"])
    assert np.array_equal(streams[2], seen["blocks.1.hook_resid_post"])
    assert np.array_equal(streams[3], seen["blocks.2.hook_resid_post"])
    with pytest.raises(ValueError, match="layers must be 0 … 3, not 4"):
        model.encode(pixels, layers=(4,))


def test_hook_points_see_and_change() -> None:
    model, pixels = small("dinov2"), seeded_pixels(56, 56)
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str, array: np.ndarray) -> np.ndarray:
        shapes[name] = array.shape
        return array

    plain = model.encode(pixels, tap=note)
    assert shapes["hook_embed"] == shapes["hook_pos_embed"] == (17, 32)
    assert shapes["blocks.1.attn.hook_q"] == shapes["blocks.1.attn.hook_z"] == (17, 4, 8)
    assert shapes["blocks.1.attn.hook_attn_scores"] == (4, 17, 17)
    assert shapes["blocks.1.attn.hook_pattern"] == (4, 17, 17)
    assert shapes["blocks.2.mlp.hook_pre"] == shapes["blocks.2.mlp.hook_post"] == (17, 64)
    assert shapes["ln_final.hook_normalized"] == (17, 32)

    def silence(name: str, array: np.ndarray) -> np.ndarray:
        return array * 0 if name.endswith(("hook_attn_out", "hook_mlp_out")) else array

    assert not np.allclose(plain, model.encode(pixels, tap=silence))
    streams = model.encode(pixels, layers=(0, 3), tap=silence)
    assert np.array_equal(streams[0], streams[3])  # nothing was added on the way


def test_attention_rows_sum_to_one() -> None:
    patterns = []

    def keep(name: str, array: np.ndarray) -> np.ndarray:
        if name.endswith("hook_pattern"):
            patterns.append(array)
        return array

    small("siglip").encode(seeded_pixels(56, 84), tap=keep)
    assert len(patterns) == 3
    for pattern in patterns:
        assert np.allclose(pattern.sum(-1), 1, atol=1e-6)


def test_pixels_that_fill_no_patch_are_left_out() -> None:
    model, pixels = small("clip"), seeded_pixels(60, 90)
    assert np.array_equal(model.encode(pixels), model.encode(pixels[:, :56, :84]))


@pytest.mark.parametrize("shape", [(3, 13, 56), (1, 56, 56), (56, 56), (4, 56, 56)], ids=str)
def test_pixels_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="pixels"):
        small("dinov2").encode(np.zeros(shape, np.float32))


def test_patches_by_hand() -> None:
    pixels = np.arange(3 * 4 * 5, dtype=np.float32).reshape(3, 4, 5)
    cut = vit.patches(pixels, 2)
    assert cut.shape == (4, 12)
    assert np.array_equal(cut[1], pixels[:, 0:2, 2:4].reshape(-1))
    assert np.array_equal(cut[2], pixels[:, 2:4, 0:2].reshape(-1))


def test_erf_is_within_its_bound() -> None:
    import math

    x = np.linspace(-5, 5, 2001)
    exact = np.array([math.erf(v) for v in x])
    assert np.abs(vit.erf(x) - exact).max() <= 1.5e-7


def test_cubic_weights_by_hand() -> None:
    assert np.allclose(vit.cubic_weights(4, 4), np.eye(4))
    assert np.allclose(vit.cubic_weights(5, 8).sum(axis=1), 1)
    # Halfway between two samples: -3/32, 19/32, 19/32, -3/32 for a = -0.75.
    assert np.allclose(vit.cubic_weights(8, 4)[1], [0, -3 / 32, 19 / 32, 19 / 32, -3 / 32, 0, 0, 0])


def test_idefics3_positions_by_hand() -> None:
    assert bucket(4, 4).tolist() == [0, 1, 2, 3]
    assert bucket(2, 4).tolist() == [0, 2]
    assert bucket(8, 4).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert bucket(1, 7).tolist() == [0]


@pytest.mark.reference
def test_idefics3_positions_round_like_the_reference() -> None:
    import torch

    for side in range(2, 60):
        for n in range(1, 70):
            boundaries = torch.arange(1 / side, 1.0, 1 / side)
            start = torch.arange(n, dtype=torch.float32) * (1.0 / torch.tensor(n))
            start = torch.clamp(start, max=1.0 - 1e-6)
            expected = torch.bucketize(start, boundaries, right=True).tolist()
            assert bucket(n, side).tolist() == expected, (side, n)


@pytest.mark.parametrize("prefix", ["", "vision_model.", "model.vision_model."])
def test_an_encoder_is_found_inside_a_larger_checkpoint(prefix: str, tmp_path: Path) -> None:
    config = write_folder("siglip", tmp_path, prefix)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    tensors["text_model.embeddings.position_embedding.weight"] = np.zeros((4, 2), np.float32)
    save_file(tensors, path)
    raw = {"model_type": "siglip", "vision_config": SMALL["siglip"], "text_config": {}}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    model = VisionModel.from_folder(tmp_path)
    assert model.config == config
    pixels = seeded_pixels(56, 56)
    assert np.array_equal(model.encode(pixels), small("siglip").encode(pixels))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "resnet"}, "model_type"),
        ({"use_swiglu_ffn": True}, "use_swiglu_ffn"),
        ({"hidden_act": "relu"}, "hidden_act"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"num_attention_heads": 5}, "n_heads"),
        ({"num_hidden_layers": 0}, "n_layers"),
        ({"num_channels": 4}, "num_channels"),
        ({"image_size": 8}, "image_size"),
        ({"image_size": [56, 28]}, "image_size"),
        ({"vision_config": 3}, "vision_config"),
    ],
    ids=str,
)
def test_a_config_that_makes_no_sense_is_named(
    change: dict[str, Any], named: str, tmp_path: Path
) -> None:
    write_folder("dinov2", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(SMALL["dinov2"] | change))
    with pytest.raises(ConfigError, match=rf"config\.json.*{named}"):
        VisionModel.from_folder(tmp_path)


def test_tensors_that_do_not_fit_are_named(tmp_path: Path) -> None:
    write_folder("dinov2", tmp_path)
    path = tmp_path / "model.safetensors"
    whole = load_file(path)

    save_file({k: v for k, v in whole.items() if "layer.1.mlp.fc2.bias" not in k}, path)
    with pytest.raises(WeightsError, match=r"encoder\.layer\.1\.mlp\.fc2\.bias.*missing"):
        VisionModel.from_folder(tmp_path)

    name = "encoder.layer.0.attention.attention.key.weight"
    save_file(whole | {name: np.zeros((32, 16), np.float32)}, path)
    with pytest.raises(WeightsError, match=r"key\.weight has shape \(32, 16\)"):
        VisionModel.from_folder(tmp_path)

    save_file({"something.else": np.zeros(3, np.float32)}, path)
    with pytest.raises(WeightsError, match="no image encoder"):
        VisionModel.from_folder(tmp_path)

    twin = {f"twin.{k}": v for k, v in whole.items()}
    save_file(whole | twin, path)
    with pytest.raises(WeightsError, match="2 times"):
        VisionModel.from_folder(tmp_path)
