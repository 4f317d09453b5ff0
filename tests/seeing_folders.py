"""Seeded models of images and text in hub-layout folders: tiny, but with a real tokenizer."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer

from tests.smolvlm_folder import N_TEXT_TOKENS
from tests.vision_models import seeded_weights
from tinyllm.config import ModelConfig
from tinyllm.vision.config import VisionConfig
from tinyllm.vision.qwen3vl import Shape
from tinyllm.weights import expected_shapes

GEMMA_TOKENS = ("<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>",
                "<image_soft_token>")  # fmt: skip
GEMMA: dict[str, Any] = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "model_type": "gemma3",
    "boi_token_index": N_TEXT_TOKENS + 2,
    "eoi_token_index": N_TEXT_TOKENS + 3,
    "image_token_index": N_TEXT_TOKENS + 4,
    "mm_tokens_per_image": 16,
    "text_config": {
        "model_type": "gemma3_text",
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "vocab_size": N_TEXT_TOKENS + 64, "max_position_embeddings": 512,
        "query_pre_attn_scalar": 24, "sliding_window": 7,  # less than an image's rows
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    },
    "vision_config": {
        "model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 64, "patch_size": 8,
        "vision_use_head": False,
    },
}  # fmt: skip
GEMMA_PREPROCESSOR: dict[str, Any] = {
    "image_processor_type": "Gemma3ImageProcessor", "do_convert_rgb": None,
    "do_normalize": True, "do_pan_and_scan": None, "do_rescale": True, "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "image_seq_length": 16,
    "resample": 2, "rescale_factor": 1 / 255, "size": {"height": 64, "width": 64},
}  # fmt: skip
# As Gemma 3's own lays a chat out.
GEMMA_TEMPLATE = (
    "<|im_start|>{% for message in messages %}<start_of_turn>"
    "{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
    "{% for item in message['content'] %}{% if item['type'] == 'image' %}{{ '<start_of_image>' }}"
    "{% elif item['type'] == 'text' %}{{ item['text'] | trim }}{% endif %}{% endfor %}"
    "<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)


def write_gemma(folder: Path, language_model: Path) -> None:
    """Write the folder; the tokenizer is `language_model`'s with the tokens around images."""
    _write_tokenizer(folder, language_model, GEMMA_TOKENS)
    for name, content in {
        "config.json": GEMMA,
        "preprocessor_config.json": GEMMA_PREPROCESSOR,
        "chat_template.json": {"chat_template": GEMMA_TEMPLATE},
        "tokenizer_config.json": {"bos_token": "<|im_start|>", "eos_token": "<end_of_turn>"},
    }.items():
        (folder / name).write_text(json.dumps(content))
    text, vision = ModelConfig.from_hf(GEMMA), VisionConfig.from_hf(GEMMA)
    tensors = {
        f"model.vision_tower.vision_model.{name}": array
        for name, array in seeded_weights(vision, 0).items()
    }
    theirs = {
        "attention_output_norm": "post_attention_layernorm",
        "post_attention_layernorm": "pre_feedforward_layernorm",
        "mlp_output_norm": "post_feedforward_layernorm",
    }
    for ours, shape in expected_shapes(text).items():
        name = ours.replace("model.", "model.language_model.", 1)
        for old, new in theirs.items():
            if f".{old}." in name:
                name = name.replace(old, new)
                break
        tensors[name] = drawn(name, shape)
    projector = "model.multi_modal_projector."
    tensors[f"{projector}mm_input_projection_weight"] = drawn("projection", (vision.dim, text.dim))
    tensors[f"{projector}mm_soft_emb_norm.weight"] = drawn("soft norm", (vision.dim,))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


QWEN_TOKENS = ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<|video_pad|>")
QWEN: dict[str, Any] = {
    "architectures": ["Qwen3VLForConditionalGeneration"],
    "model_type": "qwen3_vl",
    "vision_start_token_id": N_TEXT_TOKENS,
    "image_token_id": N_TEXT_TOKENS + 1,
    "vision_end_token_id": N_TEXT_TOKENS + 2,
    "video_token_id": N_TEXT_TOKENS + 3,
    "tie_word_embeddings": True,
    "text_config": {
        "model_type": "qwen3_vl_text",
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "vocab_size": N_TEXT_TOKENS + 64, "max_position_embeddings": 1024,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4,
                            "mrope_interleaved": True, "mrope_section": [4, 2, 2]},
    },
    "vision_config": {
        "model_type": "qwen3_vl", "hidden_size": 32, "intermediate_size": 48, "depth": 3,
        "num_heads": 2, "patch_size": 8, "spatial_merge_size": 2, "temporal_patch_size": 2,
        "out_hidden_size": 32, "num_position_embeddings": 25, "deepstack_visual_indexes": [0, 2],
        "hidden_act": "gelu_pytorch_tanh",
    },
}  # fmt: skip
QWEN_MOE: dict[str, Any] = QWEN | {
    "architectures": ["Qwen3VLMoeForConditionalGeneration"],
    "model_type": "qwen3_vl_moe",
    "text_config": QWEN["text_config"] | {
        "model_type": "qwen3_vl_moe_text", "num_experts": 5, "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
    },
    "vision_config": QWEN["vision_config"] | {"model_type": "qwen3_vl_moe"},
}  # fmt: skip
QWEN_PREPROCESSOR: dict[str, Any] = {
    "image_processor_type": "Qwen2VLImageProcessorFast", "patch_size": 8, "merge_size": 2,
    "temporal_patch_size": 2, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
    "size": {"shortest_edge": 2048, "longest_edge": 8192},
}  # fmt: skip
# As Qwen3-VL's own lays a chat out.
QWEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for item in message['content'] %}{% if item['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif item['type'] == 'text' %}{{ item['text'] }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_qwen(folder: Path, language_model: Path, config: dict[str, Any] = QWEN) -> None:
    """Write the folder of a Qwen3-VL."""
    _write_tokenizer(folder, language_model, QWEN_TOKENS)
    for name, content in {
        "config.json": config,
        "preprocessor_config.json": QWEN_PREPROCESSOR,
        "chat_template.json": {"chat_template": QWEN_TEMPLATE},
        "tokenizer_config.json": {"eos_token": "<|im_end|>"},
    }.items():
        (folder / name).write_text(json.dumps(content))
    text = ModelConfig.from_hf(config)
    tensors = {
        f"model.visual.{name}": drawn(f"visual {name}", shape)
        for name, shape in Shape.from_hf(config["vision_config"]).tensors().items()
    }
    for ours, shape in expected_shapes(text).items():
        if ".experts." not in ours:
            name = ours.replace("model.", "model.language_model.", 1)
            name = name.replace("mlp.router", "mlp.gate")
            tensors[name] = drawn(name, shape)
    if text.experts is not None:
        n, wide = text.experts.n, text.experts.hidden_dim
        for i in range(text.n_layers):
            at = f"model.language_model.layers.{i}.mlp.experts."
            tensors[f"{at}gate_up_proj"] = drawn(f"{at}up", (n, text.dim, 2 * wide))
            tensors[f"{at}down_proj"] = drawn(f"{at}down", (n, wide, text.dim))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def write_qwen_moe(folder: Path, language_model: Path) -> None:
    """The same with experts."""
    write_qwen(folder, language_model, QWEN_MOE)


def drawn(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Values by a tensor's name; norms are stored less one."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    return (rng.standard_normal(shape) * 0.2).astype(np.float32)


def _write_tokenizer(folder: Path, language_model: Path, added: tuple[str, ...]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.from_file(str(language_model / "tokenizer.json"))
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in added]
    )
    assert tokenizer.token_to_id(added[0]) == N_TEXT_TOKENS
    tokenizer.save(str(folder / "tokenizer.json"))
