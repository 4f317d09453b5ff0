"""GLM-4: half of each head turns, neighbours together; gate and up are one matrix.

The 2024 one (`glm`) has Llama's norms, the 2025 one (`glm4`) norms behind each sublayer, too.
"""

from __future__ import annotations

from tinyllm.families.family import Family, Fields, biases, decoder
from tinyllm.families.keys import Keys
from tinyllm.families.tensors import GATE_UP, Names, split

DEFAULTS = {"num_key_value_heads": 2, "head_dim": 128, "max_position_embeddings": 131_072,
            "rms_norm_eps": 1.5625e-07, "attention_bias": True}  # fmt: skip


def read(keys: Keys) -> Fields:
    """Llama's keys; the bias is of q, k and v alone."""
    return decoder(keys, share=0.5) | {
        "rope_pairs": "neighbours",
        "biases": biases(keys, attention_bias="q k v"),
    }


def read4(keys: Keys) -> Fields:
    """The same, and norms behind."""
    return read(keys) | {"norm_after": True}


GLM = Family(
    "GLM-4 (2024)", "glm", "GlmForCausalLM", read, defaults=DEFAULTS,
    names=Names(tensors=split("mlp.gate_up_proj", GATE_UP)),
    paper="https://arxiv.org/abs/2406.12793",
)  # fmt: skip
GLM4 = Family(
    "GLM-4 (2025)", "glm4", "Glm4ForCausalLM", read4, defaults=DEFAULTS,
    names=Names(tensors={
        **split("mlp.gate_up_proj", GATE_UP),
        "attention_output_norm": "post_self_attn_layernorm",
        "mlp_output_norm": "post_mlp_layernorm",
    }),
)  # fmt: skip
