"""OLMo 1: Llama with layer norms that have no weights, and q, k and v cut at a bound."""

from __future__ import annotations

from tinyllm.families.family import Family, Fields, biases, decoder
from tinyllm.families.keys import Keys


def read(keys: Keys) -> Fields:
    """Llama's keys; the norms' epsilon is fixed."""
    keys.pass_over("rms_norm_eps")
    return decoder(keys, eps="no such key") | {
        "norm": "plain",
        "norm_eps": 1e-5,
        "qkv_clip": keys.optional("clip_qkv", float),
        "biases": biases(keys, attention_bias="q k v o"),
    }


OLMO = Family("OLMo", "olmo", "OlmoForCausalLM", read, paper="https://arxiv.org/abs/2402.00838")
