"""Write `seeing.npz`: the reference's ids and logits of seeded models of images and text.

    python -m tests.golden.make_seeing FOLDER_OF_SMOLLM2

Kept are all ids, and the last 12 positions' logits of every 97th token.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tests.seeing_folders import GEMMA_TEMPLATE, write_gemma
from tests.smolvlm_folder import CHATS
from tests.vision_models import picture

HERE = Path(__file__).parent
LAST, EVERY = 12, 97


def gemma_inputs(folder: Path, messages: list[dict[str, Any]], sizes: list[tuple[int, int]]) -> Any:
    """input_ids, pixels and token types as the reference's processor makes them."""
    from transformers import PreTrainedTokenizerFast
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
    from transformers.models.gemma3.processing_gemma3 import Gemma3Processor

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        extra_special_tokens={
            "image_token": "<image_soft_token>",
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
        },
    )
    processor = Gemma3Processor(
        Gemma3ImageProcessorPil.from_pretrained(folder),
        tokenizer,
        image_seq_length=16,
        chat_template=GEMMA_TEMPLATE,
    )
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    images = [[Image.fromarray(picture(*size)) for size in sizes]] if sizes else None
    return processor(text=[text], images=images, return_tensors="pt", add_special_tokens=False)


@torch.no_grad()
def gemma_logits(folder: Path, inputs: Any) -> np.ndarray:
    """(T, vocab_size)."""
    from transformers import Gemma3ForConditionalGeneration

    model = Gemma3ForConditionalGeneration.from_pretrained(folder, attn_implementation="eager")
    logits: np.ndarray = model.eval()(**inputs).logits[0].numpy()
    return logits


FAMILIES = {"gemma": (write_gemma, gemma_inputs, gemma_logits)}


def main() -> None:
    golden = {}
    for family, (write, inputs_of, logits_of) in FAMILIES.items():
        with tempfile.TemporaryDirectory() as tmp:
            write(Path(tmp), Path(sys.argv[1]))
            for name, (messages, sizes) in CHATS.items():
                inputs = inputs_of(Path(tmp), messages, sizes)
                golden[f"{family}/{name}/ids"] = inputs["input_ids"][0].numpy().astype(np.int32)
                logits = logits_of(Path(tmp), inputs)
                golden[f"{family}/{name}/logits"] = logits[-LAST:, ::EVERY]
                if sizes:  # the pixels of the last image, one grey level is 2 / 255
                    golden[f"{family}/{name}/pixels"] = inputs["pixel_values"][-1, :, ::5, ::5]
    np.savez_compressed(HERE / "seeing.npz", **golden)


if __name__ == "__main__":
    main()
