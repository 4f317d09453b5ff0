"""StableLM 2: layer norms with biases, a quarter of each head turns; attention and MLP side by side
in the larger ones, every head with a norm of its own."""

from __future__ import annotations

from tinyllm.families.family import Family, Fields, biases, decoder
from tinyllm.families.keys import Keys
from tinyllm.families.tensors import Names


def read(keys: Keys) -> Fields:
    """Llama's keys, layer norms, and two switches."""
    side_by_side = keys.get("use_parallel_residual", bool, False)
    return decoder(keys, eps="layer_norm_eps", share=0.25, has_head_dim=False) | {
        "norm": "layer",
        "qk_norm": "every head its own" if keys.get("qk_layernorm", bool, False) else "no",
        "parallel": "one norm" if side_by_side else "no",
        "biases": biases(keys, use_qkv_bias="q k v") | {"norm"},
    }


STABLELM = Family(
    "StableLM", "stablelm", "StableLmForCausalLM", read,
    defaults={"num_key_value_heads": 32, "max_position_embeddings": 4096, "layer_norm_eps": 1e-5},
    names=Names(tensors={
        "self_attn.q_norm": "self_attn.q_layernorm.norms.{}",
        "self_attn.k_norm": "self_attn.k_layernorm.norms.{}",
    }),
    paper="https://arxiv.org/abs/2402.17834",
)  # fmt: skip
