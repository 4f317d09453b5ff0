"""Qwen3 with experts: most layers' MLP is a router and many small MLPs, of which a token takes few.

`decoder_sparse_step` and `mlp_only_layers` say which layers have experts.
"""

from __future__ import annotations

from tinyllm.errors import ConfigError
from tinyllm.families.family import Family, Fields, biases, decoder
from tinyllm.families.keys import Keys
from tinyllm.families.parts import Experts, Layer
from tinyllm.families.tensors import Names


def read(keys: Keys) -> Fields:
    """Qwen3's keys, the experts, and one window for all layers if any."""
    fields = decoder(keys)
    n = keys.optional("num_experts", int) or keys.optional("num_local_experts", int) or 128
    keys.pass_over("num_local_experts", "max_window_layers")
    experts = Experts(
        n,
        keys.get("num_experts_per_tok", int),
        keys.get("moe_intermediate_size", int),
        "normalised" if keys.get("norm_topk_prob", bool, False) else "softmax",
    )
    step, plain = keys.get("decoder_sparse_step", int, 1), keys.integers("mlp_only_layers") or []
    if step < 1:
        raise ConfigError(f"decoder_sparse_step must be at least 1, not {step}")
    length = keys.optional("sliding_window", int)
    window = length if keys.get("use_sliding_window", bool, False) else None
    layers = tuple(
        Layer(window, experts=i not in plain and (i + 1) % step == 0)
        for i in range(fields["n_layers"])
    )
    return fields | {
        "qk_norm": "each head",
        "biases": biases(keys, attention_bias="q k v o"),
        "experts": experts,
        "layers": layers,
    }


QWEN3_MOE = Family(
    "Qwen3 with experts", "qwen3_moe", "Qwen3MoeForCausalLM", read,
    defaults={"num_key_value_heads": 4, "max_position_embeddings": 32_768, "sliding_window": 4096,
              "num_experts_per_tok": 8, "moe_intermediate_size": 768},
    names=Names(tensors={"mlp.router": "mlp.gate"}),
    paper="https://arxiv.org/abs/2505.09388",
)  # fmt: skip
