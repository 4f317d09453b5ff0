"""Mixtral: Mistral whose MLPs are eight experts, two a token, their weights normalised."""

from __future__ import annotations

from tinyllm.families.family import Family, Fields, decoder
from tinyllm.families.keys import Keys
from tinyllm.families.parts import Experts, Layer
from tinyllm.families.tensors import Names


def read(keys: Keys) -> Fields:
    """Llama's keys, the experts, and one window for all layers if any."""
    fields = decoder(keys, theta=1e6)
    n = keys.optional("num_local_experts", int) or keys.optional("num_experts", int) or 8
    keys.pass_over("num_experts")
    experts = Experts(n, keys.get("num_experts_per_tok", int), fields["hidden_dim"], "normalised")
    window = keys.optional("sliding_window", int)
    return fields | {
        "experts": experts,
        "layers": (Layer(window, experts=True),) * fields["n_layers"],
    }


MIXTRAL = Family(
    "Mixtral", "mixtral", "MixtralForCausalLM", read,
    defaults={"num_key_value_heads": 8, "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5,
              "num_experts_per_tok": 2},
    names=Names(tensors={
        "mlp.router": "block_sparse_moe.gate",
        "mlp.experts.N.gate_proj": "block_sparse_moe.experts.N.w1",
        "mlp.experts.N.up_proj": "block_sparse_moe.experts.N.w3",
        "mlp.experts.N.down_proj": "block_sparse_moe.experts.N.w2",
    }),
    paper="https://arxiv.org/abs/2401.04088",
)  # fmt: skip
