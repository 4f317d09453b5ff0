"""A seeded SmolVLM in a hub-layout folder: tiny, but with a real tokenizer and template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer

from tests.vision_models import seeded_weights
from tinyllm.config import ModelConfig
from tinyllm.vision.config import VisionConfig
from tinyllm.vision.smolvlm import PROJECTION
from tinyllm.weights import expected_shapes

N_TEXT_TOKENS = 49_152  # SmolLM2's
IMAGE_TOKENS = [
    "<fake_token_around_image>",
    "<image>",
    "<end_of_utterance>",
    "<global-img>",
    *[f"<row_{r}_col_{c}>" for r in range(1, 7) for c in range(1, 7)],
]
CONFIG: dict[str, Any] = {
    "architectures": ["Idefics3ForConditionalGeneration"],
    "model_type": "idefics3",
    "image_token_id": N_TEXT_TOKENS + 1,
    "scale_factor": 2,
    "tie_word_embeddings": False,
    "text_config": {
        "architectures": ["VLlama3ForCausalLM"],
        "model_type": "llama",
        "hidden_size": 24,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": N_TEXT_TOKENS + 128,
        "max_position_embeddings": 2048,
        "rope_theta": 100_000,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    },
    "vision_config": {
        "model_type": "idefics3",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 64,
        "patch_size": 8,
    },
}
PREPROCESSOR: dict[str, Any] = {
    "image_processor_type": "Idefics3ImageProcessor",
    "do_convert_rgb": True,
    "do_image_splitting": True,
    "do_normalize": True,
    "do_pad": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "max_image_size": {"longest_edge": 64},
    "resample": 1,
    "rescale_factor": 1 / 255,
    "size": {"longest_edge": 256},
}
# As SmolVLM's own template lays a chat out.
TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
CHATS: dict[str, tuple[list[dict[str, Any]], list[tuple[int, int]]]] = {
    "one image": (
        [
            {
                "role": "user",
                "content": [{"type": "image"}, {"type": "text", "text": "What's in it?"}],
            }
        ],
        [(200, 300)],
    ),
    "two turns": (
        [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "Compare 12 cats 🐈 with"},
                    {"type": "image"},
                    {"type": "text", "text": "and"},
                    {"type": "image"},
                ],
            },
            {"role": "assistant", "content": [{"type": "text", "text": "Done.\n"}]},
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "\n\nNow?"}]},
        ],
        [(40, 90), (64, 64), (300, 20)],
    ),
    "text alone": ([{"role": "user", "content": [{"type": "text", "text": "Hi, 2025!"}]}], []),
}


def write_smolvlm(folder: Path, language_model: Path) -> None:
    """Write the folder; the tokenizer is `language_model`'s with the tokens around images."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.from_file(str(language_model / "tokenizer.json"))
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in IMAGE_TOKENS]
    )
    assert tokenizer.token_to_id("<image>") == CONFIG["image_token_id"]
    tokenizer.save(str(folder / "tokenizer.json"))
    for name, content in {
        "config.json": CONFIG,
        "generation_config.json": {"eos_token_id": tokenizer.token_to_id("<end_of_utterance>")},
        "preprocessor_config.json": PREPROCESSOR,
        "processor_config.json": {"image_seq_len": 16, "processor_class": "Idefics3Processor"},
        "chat_template.json": {"chat_template": TEMPLATE},
        "tokenizer_config.json": {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"},
    }.items():
        (folder / name).write_text(json.dumps(content))
    save_file(smolvlm_tensors(), folder / "model.safetensors", metadata={"format": "pt"})


def smolvlm_tensors(seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Every tensor under the hub's names."""
    rng = np.random.default_rng(seed)
    text = ModelConfig.from_hf(CONFIG)
    vision = VisionConfig.from_hf(CONFIG)
    tensors = {
        f"model.vision_model.{name}": array for name, array in seeded_weights(vision, seed).items()
    }
    for name, shape in expected_shapes(text).items():
        array = rng.standard_normal(shape) * 0.2 + (1.0 if "norm" in name else 0.0)
        full = name if name == "lm_head.weight" else name.replace("model.", "model.text_model.", 1)
        tensors[full] = array.astype(np.float32)
    width = vision.dim * CONFIG["scale_factor"] ** 2
    tensors[PROJECTION] = (rng.standard_normal((text.dim, width)) * 0.1).astype(np.float32)
    return tensors
