"""Phi-1, 1.5, 2: attention and MLP side by side behind one layer norm; biases everywhere."""

from __future__ import annotations

from tinyllm.families.family import Family, Fields, decoder
from tinyllm.families.keys import Keys
from tinyllm.families.tensors import Names


def read(keys: Keys) -> Fields:
    """Llama's keys; half of a head turns."""
    normed = keys.get("qk_layernorm", bool, False)
    return decoder(keys, eps="layer_norm_eps", share=0.5) | {
        "norm": "layer",
        "gated": False,
        "parallel": "one norm",
        "qk_norm": "each head" if normed else "no",
        "biases": frozenset(["q", "k", "v", "o", "up", "down", "norm", "qk_norm", "head"]),
    }


PHI = Family(
    "Phi", "phi", "PhiForCausalLM", read,
    defaults={"hidden_act": "gelu_new", "layer_norm_eps": 1e-5},
    names=Names(
        top={"norm": "model.final_layernorm"},
        tensors={
            "self_attn.o_proj": "self_attn.dense",
            "self_attn.q_norm": "self_attn.q_layernorm",
            "self_attn.k_norm": "self_attn.k_layernorm",
            "mlp.up_proj": "mlp.fc1",
            "mlp.down_proj": "mlp.fc2",
        },
    ),
    paper="https://arxiv.org/abs/2309.05463",
)  # fmt: skip
