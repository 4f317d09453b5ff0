"""Hunyuan, dense: q and k are normed after they turned, not before.

Its rotary base may be stretched by a fixed `alpha`, to base · alpha^(d / (d - 2)), which its files
call "dynamic".
"""

from __future__ import annotations

from tinyllm.errors import ConfigError
from tinyllm.families.family import Family, Fields, biases, decoder
from tinyllm.families.keys import Keys, typed
from tinyllm.families.rotary import parameters
from tinyllm.families.tensors import Names


def read(keys: Keys) -> Fields:
    """Llama's keys, and alpha."""
    also = frozenset({"alpha", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"})
    fields = decoder(keys, rope_also=also)
    alpha = typed(parameters(keys).get("alpha"), "alpha", float)
    scaling = fields["rope_scaling"]
    if alpha and scaling is not None and scaling.kind == "dynamic":
        if alpha < 0:
            raise ConfigError(f"alpha must be positive, not {alpha}")
        dim = fields["rotary_dim"] or fields["head_dim"]
        stretched = fields["rope_theta"] * alpha ** (dim / max(dim - 2, 1))
        fields |= {"rope_theta": stretched, "rope_scaling": None}
    return fields | {
        "qk_norm": "each head",
        "qk_norm_last": True,
        "biases": biases(keys, attention_bias="q k v o"),
    }


HUNYUAN = Family(
    "Hunyuan (dense)", "hunyuan_v1_dense", "HunYuanDenseV1ForCausalLM", read,
    defaults={"rms_norm_eps": 1e-5},
    names=Names(tensors={
        "self_attn.q_norm": "self_attn.query_layernorm",
        "self_attn.k_norm": "self_attn.key_layernorm",
    }),
)  # fmt: skip
