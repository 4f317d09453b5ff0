"""OLMo 2: norms after attention and MLP instead of before, and whole queries and keys normed.

What a sublayer adds is normed, what it reads isn't: the stream itself stays as it is.
"""

from __future__ import annotations

from tinyllm.families.family import Family, Fields, biases, decoder
from tinyllm.families.keys import Keys
from tinyllm.families.tensors import Names

NAMES = Names(tensors={
    "attention_output_norm": "post_attention_layernorm",
    "mlp_output_norm": "post_feedforward_layernorm",
})  # fmt: skip


def read(keys: Keys) -> Fields:
    """Llama's keys; the norms' places."""
    return decoder(keys) | {
        "norm_before": False,
        "norm_after": True,
        "qk_norm": "whole",
        "biases": biases(keys, attention_bias="q k v o"),
    }


OLMO2 = Family(
    "OLMo 2", "olmo2", "Olmo2ForCausalLM", read, defaults={"rms_norm_eps": 1e-5}, names=NAMES,
    paper="https://arxiv.org/abs/2501.00656",
)  # fmt: skip
