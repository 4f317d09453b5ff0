"""A seeded checkpoint of 1.1 billion parameters in bf16: `python -m tests.scripts.make_large DIR`.

TinyLlama's shape, for measuring how loading streams. Never committed: 2.2 GB.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from tests.llama_folders import write_tokenizer
from tinyllm.config import ModelConfig
from tinyllm.families.tensors import expected

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 2048,
    "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32,
    "num_key_value_heads": 4, "vocab_size": 32_000, "max_position_embeddings": 2048,
    "rope_theta": 10000.0, "rms_norm_eps": 1e-5, "hidden_act": "silu",
    "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def main(folder: Path) -> None:
    """config.json, tokenizer.json and model.safetensors, a tensor at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    write_tokenizer(folder, int(str(CONFIG["vocab_size"])))
    shapes = expected(ModelConfig.from_hf(CONFIG))
    header: dict[str, object] = {}
    at = 0
    for name, shape in shapes.items():
        nbytes = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + nbytes]}
        at += nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    rng = np.random.default_rng(0)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape in shapes.values():
            values = rng.standard_normal(shape, np.float32)
            values = 1 + 0.1 * values if len(shape) == 1 else values / np.sqrt(shape[1])
            (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).tofile(file)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
