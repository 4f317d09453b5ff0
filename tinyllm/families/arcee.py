"""Arcee AFM: Llama with a plain MLP, down(relu(up(x))²)."""

from __future__ import annotations

from tinyllm.families.family import Family, Fields, biases, decoder
from tinyllm.families.keys import Keys


def read(keys: Keys) -> Fields:
    """Llama's keys, without a gate."""
    return decoder(keys) | {
        "gated": False,
        "biases": biases(keys, attention_bias="q k v o", mlp_bias="up down"),
    }


ARCEE = Family(
    "Arcee AFM", "arcee", "ArceeForCausalLM", read,
    defaults={"hidden_act": "relu2", "max_position_embeddings": 4096, "rms_norm_eps": 1e-5},
)  # fmt: skip
