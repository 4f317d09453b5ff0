"""ERNIE 4.5: Llama whose neighbours turn together, with biases everywhere or nowhere."""

from __future__ import annotations

from tinyllm.families.family import Family, Fields, biases, decoder
from tinyllm.families.keys import Keys


def read(keys: Keys) -> Fields:
    """Llama's keys."""
    return decoder(keys, theta=500_000.0) | {
        "rope_pairs": "neighbours",
        "biases": biases(keys, use_bias="q k v o gate up down"),
    }


ERNIE4_5 = Family(
    "ERNIE 4.5", "ernie4_5", "Ernie4_5ForCausalLM", read,
    defaults={"num_key_value_heads": 2, "head_dim": 128, "max_position_embeddings": 131_072,
              "rms_norm_eps": 1e-5, "tie_word_embeddings": True},
)  # fmt: skip
