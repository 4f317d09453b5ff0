"""Llama 1 to 3.x, and all that took its shape whole (Falcon 3, SmolLM 2, Yi, DeepSeek distills).

Pre-norm with RMS, rotary positions, grouped key/value heads, SwiGLU. The other descriptions say
what differs from this one.
"""

from __future__ import annotations

from tinyllm.families.family import Family, Fields, biases, decoder
from tinyllm.families.keys import Keys


def read(keys: Keys) -> Fields:
    """Llama's keys; two of them switch on biases that no Llama of Meta's has."""
    return decoder(keys) | {
        "biases": biases(keys, attention_bias="q k v o", mlp_bias="gate up down"),
    }


LLAMA = Family(
    "Llama", "llama", "LlamaForCausalLM", read,
    paper="https://arxiv.org/abs/2302.13971, https://arxiv.org/abs/2407.21783",
)  # fmt: skip
