"""Write `smolvlm.npz`: the reference's ids and logits of the seeded SmolVLM's chats.

    python -m tests.golden.make_smolvlm FOLDER_OF_SMOLLM2

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

from tests.smolvlm_folder import CHATS, TEMPLATE, write_smolvlm
from tests.vision_models import picture

HERE = Path(__file__).parent
LAST, EVERY = 12, 97


def reference_inputs(
    folder: Path, messages: list[dict[str, Any]], sizes: list[tuple[int, int]]
) -> Any:
    """input_ids and pixels as the reference's processor makes them."""
    from transformers import PreTrainedTokenizerFast
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
    from transformers.models.idefics3.processing_idefics3 import Idefics3Processor

    processor = Idefics3Processor(
        Idefics3ImageProcessorPil.from_pretrained(folder),
        PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json")),
        image_seq_len=16,
        chat_template=TEMPLATE,
    )
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    images = [[Image.fromarray(picture(*size)) for size in sizes]] if sizes else None
    return processor(text=[text], images=images, return_tensors="pt", add_special_tokens=False)


@torch.no_grad()
def reference_logits(folder: Path, inputs: Any) -> np.ndarray:
    """(T, vocab_size)."""
    from transformers import Idefics3ForConditionalGeneration

    model = Idefics3ForConditionalGeneration.from_pretrained(folder, attn_implementation="eager")
    inputs.pop("token_type_ids", None)
    logits: np.ndarray = model.eval()(**inputs).logits[0].numpy()
    return logits


def main() -> None:
    golden = {}
    with tempfile.TemporaryDirectory() as tmp:
        write_smolvlm(Path(tmp), Path(sys.argv[1]))
        for name, (messages, sizes) in CHATS.items():
            inputs = reference_inputs(Path(tmp), messages, sizes)
            golden[f"{name}/ids"] = inputs["input_ids"][0].numpy().astype(np.int32)
            golden[f"{name}/logits"] = reference_logits(Path(tmp), inputs)[-LAST:, ::EVERY]
    np.savez_compressed(HERE / "smolvlm.npz", **golden)


if __name__ == "__main__":
    main()
