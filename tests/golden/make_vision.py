"""Write `vision.npz`: what torch and transformers make of the encoders and processors.

    python -m tests.golden.make_vision [folder of dinov2-small]

Small encoders: the whole last hidden state of every size. The real DINOv2: some rows of it, and of
the residual stream behind layers 9 and 11. Processors: every 16th pixel of what they make.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image

from tests import vision_models as models
from tests.vision.test_preprocess import PICTURES, PROCESSORS, TILED

HERE = Path(__file__).parent


@torch.no_grad()
def reference_encode(kind: str, folder: Path, pixels: np.ndarray) -> object:
    """The reference's outputs for one image, hidden states included."""
    if kind == "idefics3":
        from transformers.models.idefics3.modeling_idefics3 import Idefics3VisionTransformer

        model_class = Idefics3VisionTransformer
    else:
        model_class = getattr(transformers, models.SMALL[kind]["architectures"][0])
    model = model_class.from_pretrained(folder, attn_implementation="eager").eval()
    more = {"interpolate_pos_encoding": True} if kind in ("clip", "siglip") else {}
    return model(torch.from_numpy(pixels[None]), output_hidden_states=True, **more)


def processor_class(name: str) -> type:
    """The reference's Pillow-based processor."""
    module = {"Bit": "bit", "CLIP": "clip", "Siglip": "siglip", "Idefics3": "idefics3"}
    stem = name.removesuffix("ImageProcessor")
    path = f"transformers.models.{module[stem]}.image_processing_pil_{module[stem]}"
    return getattr(__import__(path, fromlist=["x"]), f"{name}Pil")


def main() -> None:
    golden: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as tmp:
        for kind in models.SMALL:
            models.write_folder(kind, Path(tmp) / kind)
            for height, width in models.SIZES:
                out = reference_encode(kind, Path(tmp) / kind, models.seeded_pixels(height, width))
                golden[f"{kind}/{height}x{width}"] = out.last_hidden_state[0].numpy()
    if len(sys.argv) > 1:
        for height, width in models.DINOV2_SIZES:
            out = reference_encode("dinov2", Path(sys.argv[1]), models.seeded_pixels(height, width))
            rows = out.last_hidden_state[0].numpy()[models.DINOV2_ROWS]
            golden[f"dinov2-small/{height}x{width}"] = rows
            for layer in (9, 11):
                rows = out.hidden_states[layer][0].numpy()[models.DINOV2_ROWS]
                golden[f"dinov2-small/{height}x{width}/layer{layer}"] = rows
    for label, raw in (PROCESSORS | TILED).items():
        settings = dict(raw)
        processor = processor_class(settings.pop("image_processor_type"))(**settings)
        for height, width in PICTURES:
            image = Image.fromarray(models.picture(height, width))
            images = [[image]] if label in TILED else image
            pixels = processor(images, return_tensors="np")["pixel_values"][0]
            golden[f"{label}/{height}x{width}"] = pixels[..., ::16, ::16].astype(np.float32)
    np.savez_compressed(HERE / "vision.npz", **golden)


if __name__ == "__main__":
    main()
