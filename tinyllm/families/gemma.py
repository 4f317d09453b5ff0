"""Gemma 1: embeddings times √dim, norms stored as w - 1, a GELU gate, wide heads.

The embedding is also the head; the factor lets one table serve both, small for logits and of the
stream's size where it enters.
"""

from __future__ import annotations

import math

from tinyllm.families.family import Family, Fields, biases, decoder
from tinyllm.families.keys import Keys
from tinyllm.families.tensors import Names


def common(keys: Keys, *, act: str, rope: bool = True) -> Fields:
    """What every Gemma is."""
    keys.must_be("use_bidirectional_attention", False)
    fields = decoder(keys, act=act, rope=rope)
    return fields | {
        "embedding_scale": math.sqrt(fields["dim"]),
        "biases": biases(keys, attention_bias="q k v o"),
    }


def read(keys: Keys) -> Fields:
    """Llama's keys; early files say "gelu" and mean its tanh form."""
    keys.pass_over("hidden_activation")  # only `hidden_act` is read
    fields = common(keys, act="hidden_act")
    is_gelu = fields["activation"] == "gelu"
    return fields | ({"activation": "gelu_tanh"} if is_gelu else {})


GEMMA = Family(
    "Gemma", "gemma", "GemmaForCausalLM", read,
    defaults={"num_key_value_heads": 16, "head_dim": 256, "max_position_embeddings": 8192,
              "hidden_act": "gelu_pytorch_tanh", "tie_word_embeddings": True},
    names=Names(norms_less_one=True),
    paper="https://arxiv.org/abs/2403.08295",
)  # fmt: skip
