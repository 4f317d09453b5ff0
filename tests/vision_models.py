"""Small image encoders with seeded weights, and pictures drawn by formula, for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from tinyllm.vision.config import VisionConfig, expected_shapes

_SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 56,
    "patch_size": 14,
    "num_channels": 3,
}
SMALL: dict[str, dict[str, Any]] = {
    "dinov2": {
        "model_type": "dinov2",
        "architectures": ["Dinov2Model"],
        **_SHAPE,
        "mlp_ratio": 2,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "use_mask_token": False,
    },
    "siglip": {
        "model_type": "siglip_vision_model",
        "architectures": ["SiglipVisionModel"],
        **_SHAPE,
        "intermediate_size": 64,
        "vision_use_head": False,
    },
    "clip": {
        "model_type": "clip_vision_model",
        "architectures": ["CLIPVisionModel"],
        **_SHAPE,
        "intermediate_size": 64,
    },
    "idefics3": {
        "model_type": "idefics3_vision",
        "architectures": ["Idefics3VisionTransformer"],
        **_SHAPE,
        "intermediate_size": 64,
    },
}
SIZES = [(56, 56), (56, 84), (98, 61), (28, 112)]  # (height, width); the first is native
DINOV2_SIZES = [(224, 224), (140, 322)]  # for the real weights, of which only some rows are kept
DINOV2_ROWS = [0, 1, 2, 77, 128, 200, -1]


def seeded_weights(config: VisionConfig, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Weights of the usual magnitudes, the same for everyone."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in expected_shapes(config).items():
        array = rng.standard_normal(shape) * 0.15
        if "norm" in name and name.endswith("weight"):
            array += 1.0
        weights[name] = array.astype(np.float32)
    return weights


def write_folder(kind: str, folder: Path, prefix: str = "") -> VisionConfig:
    """A hub-layout folder of a small seeded encoder."""
    raw = SMALL[kind]
    config = VisionConfig.from_hf(raw)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(raw))
    weights = {prefix + name: array for name, array in seeded_weights(config).items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return config


def seeded_pixels(height: int, width: int, seed: int = 0) -> NDArray[np.float32]:
    """(3, height, width), about as large as normalised pixels are."""
    rng = np.random.default_rng([seed, height, width])
    return rng.standard_normal((3, height, width)).astype(np.float32)


def picture(height: int, width: int) -> NDArray[np.uint8]:
    """(height, width, 3): waves, a fine grid and hard edges, so that every filter has work."""
    y, x = np.mgrid[0:height, 0:width]
    red = np.sin(x / 7) * 127 + 128
    green = np.cos(y / 11) * 127 + 128
    blue = (x * y) % 256
    image = np.stack([red, green, blue], axis=-1).astype(np.uint8)
    image[height // 3 : height // 2, width // 3 : width // 2] = (255, 0, 40)
    return image
