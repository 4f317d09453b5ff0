"""OLMoE: Llama with 64 small experts, eight a token, and whole queries and keys normed."""

from __future__ import annotations

from tinyllm.families.family import Family, Fields, biases, decoder
from tinyllm.families.keys import Keys
from tinyllm.families.parts import Experts, Layer
from tinyllm.families.tensors import Names


def read(keys: Keys) -> Fields:
    """Llama's keys and the experts'."""
    fields = decoder(keys)
    n = keys.optional("num_experts", int) or keys.optional("num_local_experts", int) or 64
    keys.pass_over("num_local_experts")
    experts = Experts(
        n,
        keys.get("num_experts_per_tok", int),
        fields["hidden_dim"],
        "normalised" if keys.get("norm_topk_prob", bool, False) else "softmax",
    )
    return fields | {
        "qk_norm": "whole",
        "qkv_clip": keys.optional("clip_qkv", float),
        "biases": biases(keys, attention_bias="q k v o"),
        "experts": experts,
        "layers": (Layer(experts=True),) * fields["n_layers"],
    }


OLMOE = Family(
    "OLMoE", "olmoe", "OlmoeForCausalLM", read,
    defaults={"max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "num_experts_per_tok": 8},
    names=Names(tensors={"mlp.router": "mlp.gate"}),
    paper="https://arxiv.org/abs/2409.02060",
)  # fmt: skip
