"""Gemma 2: norms before and after each sublayer, soft caps, a window in every other layer.

A soft cap, cap · tanh(x / cap), keeps attention scores within ±50 and logits within ±30. The
scores' scale is a key of its own, not 1 / √head_dim.
"""

from __future__ import annotations

import math

from tinyllm.errors import ConfigError
from tinyllm.families.family import Family, Fields, layers_of
from tinyllm.families.gemma import common
from tinyllm.families.keys import Keys
from tinyllm.families.tensors import Names

# Llama's "post_attention_layernorm" stands before the MLP; Gemma's stands behind attention.
SANDWICH = Names(norms_less_one=True, tensors={
    "attention_output_norm": "post_attention_layernorm",
    "post_attention_layernorm": "pre_feedforward_layernorm",
    "mlp_output_norm": "post_feedforward_layernorm",
})  # fmt: skip


def scale(keys: Keys) -> float:
    """What q·k is multiplied by."""
    scalar = keys.get("query_pre_attn_scalar", float)
    if scalar <= 0:
        raise ConfigError(f"query_pre_attn_scalar must be positive, not {scalar}")
    return 1.0 / math.sqrt(scalar)


def read(keys: Keys) -> Fields:
    """Gemma's keys, the norms' places, caps and windows."""
    keys.pass_over("hidden_act")  # only `hidden_activation` is read
    fields = common(keys, act="hidden_activation")
    window = keys.optional("sliding_window", int)
    return fields | {
        "norm_after": True,
        "attention_scale": scale(keys),
        "score_cap": keys.optional("attn_logit_softcapping", float),
        "logit_cap": keys.optional("final_logit_softcapping", float),
        "layers": layers_of(keys, fields["n_layers"], window, lambda i: (i + 1) % 2 != 0),
    }


GEMMA2 = Family(
    "Gemma 2", "gemma2", "Gemma2ForCausalLM", read,
    defaults={"num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 8192,
              "hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": True,
              "query_pre_attn_scalar": 256, "sliding_window": 4096,
              "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    names=SANDWICH,
    paper="https://arxiv.org/abs/2408.00118",
)  # fmt: skip
