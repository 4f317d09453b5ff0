"""Apertus: q and k normed, and an MLP without a gate whose activation, xIELU, is learned.

xIELU grows with x² above zero and with eˣ below it, each with a slope of its own a layer.
"""

from __future__ import annotations

from typing import Any

from tinyllm.families.family import Family, Fields, biases, decoder
from tinyllm.families.keys import Keys
from tinyllm.families.tensors import Names

LLAMA3: dict[str, Any] = {"rope_type": "llama3", "rope_theta": 12_000_000.0, "factor": 8.0,
                          "original_max_position_embeddings": 8192, "low_freq_factor": 1.0,
                          "high_freq_factor": 4.0}  # fmt: skip


def read(keys: Keys) -> Fields:
    """Llama's keys."""
    keys.must_be("qk_norm", True)
    keys.must_be("post_norm", False)
    keys.must_be("mlp_bias", False)
    return decoder(keys, theta=12_000_000.0) | {
        "gated": False,
        "qk_norm": "each head",
        "biases": biases(keys, attention_bias="q k v o"),
    }


APERTUS = Family(
    "Apertus", "apertus", "ApertusForCausalLM", read,
    defaults={"hidden_act": "xielu", "max_position_embeddings": 65_536, "rms_norm_eps": 1e-5,
              "rope_parameters": LLAMA3},
    names=Names(
        tensors={
            "input_layernorm": "attention_layernorm",
            "post_attention_layernorm": "feedforward_layernorm",
            "mlp.act.alpha_p": "mlp.act_fn.alpha_p",
            "mlp.act.alpha_n": "mlp.act_fn.alpha_n",
        },
        ignored=r"\.(rotary_emb\.inv_freq|mlp\.act_fn\.(beta|eps))$",
    ),
    paper="https://arxiv.org/abs/2509.14233",
)  # fmt: skip
