"""Granite: Llama with four multipliers, of embeddings, attention scores, sublayers and logits.

They are those of maximal update parametrisation (µP): a width's best learning rate then is that of
a small model.
"""

from __future__ import annotations

from tinyllm.errors import ConfigError
from tinyllm.families.family import Family, Fields, biases, decoder
from tinyllm.families.keys import Keys


def read(keys: Keys) -> Fields:
    """Llama's keys and the multipliers; logits are divided by theirs."""
    divisor = keys.get("logits_scaling", float, 1.0)
    if divisor == 0:
        raise ConfigError("logits_scaling must not be 0")
    return decoder(keys) | {
        "embedding_scale": keys.get("embedding_multiplier", float, 1.0),
        "attention_scale": keys.get("attention_multiplier", float, 1.0),
        "residual_scale": keys.get("residual_multiplier", float, 1.0),
        "logit_scale": 1.0 / divisor,
        "biases": biases(keys, attention_bias="q k v o", mlp_bias="gate up down"),
    }


GRANITE = Family(
    "Granite", "granite", "GraniteForCausalLM", read,
    paper="https://arxiv.org/abs/2408.13359",
)  # fmt: skip
