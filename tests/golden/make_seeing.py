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

from tests.seeing_folders import (
    GEMMA_TEMPLATE,
    QWEN_TEMPLATE,
    write_gemma,
    write_qwen,
    write_qwen_moe,
)
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


def qwen_inputs(folder: Path, messages: list[dict[str, Any]], sizes: list[tuple[int, int]]) -> Any:
    """The same of Qwen3-VL; its processor wants torchvision for videos, so parts are used alone."""
    from transformers import PreTrainedTokenizerFast
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    tokenizer.chat_template = QWEN_TEMPLATE
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    inputs: dict[str, Any] = {}
    if sizes:
        images = [Image.fromarray(picture(*size)) for size in sizes]
        inputs = dict(
            Qwen2VLImageProcessorPil.from_pretrained(folder)(images=images, return_tensors="pt")
        )
        for grid in inputs["image_grid_thw"]:
            n_rows = int(grid.prod()) // 4
            text = text.replace("<|image_pad|>", "<|placeholder|>" * n_rows, 1)
        text = text.replace("<|placeholder|>", "<|image_pad|>")
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
    pad = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    return {**inputs, "input_ids": ids, "mm_token_type_ids": (ids == pad).int()}


@torch.no_grad()
def qwen_logits(folder: Path, inputs: Any) -> np.ndarray:
    """(T, vocab_size), of the model with experts or without."""
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="eager")
    logits: np.ndarray = model.eval()(**inputs).logits[0].numpy()
    return logits


FAMILIES = {
    "gemma": (write_gemma, gemma_inputs, gemma_logits),
    "qwen": (write_qwen, qwen_inputs, qwen_logits),
    "qwen_moe": (write_qwen_moe, qwen_inputs, qwen_logits),
}


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
                if sizes and family == "gemma":  # of the last image; a grey level is 2 / 255
                    golden[f"{family}/{name}/pixels"] = inputs["pixel_values"][-1, :, ::5, ::5]
                elif sizes:  # patches of all images, their first frames, thinned
                    patches = inputs["pixel_values"].reshape(-1, 3, 2, 8, 8)[:, :, 0]
                    golden[f"{family}/{name}/pixels"] = patches[::3, :, ::4, ::4]
    np.savez_compressed(HERE / "seeing.npz", **golden)


if __name__ == "__main__":
    main()
