"""Phi-3 and Phi-4: Llama whose q, k, v are one matrix, and whose gate and up are one; longrope.

Phi-4-mini turns three quarters of a head.
"""

from __future__ import annotations

from tinyllm.errors import ConfigError
from tinyllm.families.family import Family, Fields, decoder
from tinyllm.families.keys import Keys
from tinyllm.families.parts import Layer
from tinyllm.families.rotary import parameters, table
from tinyllm.families.tensors import GATE_UP, QKV, Names, split


def read(keys: Keys) -> Fields:
    """Llama's keys; "su" and "yarn" are old names of longrope here."""
    fields = decoder(keys, rope=False)
    original = keys.optional("original_max_position_embeddings", int)
    rope = parameters(keys)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "su", "yarn", "longrope"):
        raise ConfigError(f"rope type {kind!r} isn't one of this family's: default and longrope")
    if kind != "default":
        rope = {**rope, "rope_type": "longrope"}
    fields |= table(
        rope, fields["head_dim"], keys.get("rope_theta", float, 10_000.0),
        keys.get("partial_rotary_factor", float, 1.0), fields["max_seq_len"], original,
    )  # fmt: skip
    window = keys.optional("sliding_window", int)
    return fields | {"layers": (Layer(window),) * fields["n_layers"] if window else ()}


PHI3 = Family(
    "Phi-3", "phi3", "Phi3ForCausalLM", read,
    defaults={"max_position_embeddings": 4096, "original_max_position_embeddings": 4096,
              "rms_norm_eps": 1e-5},
    names=Names(tensors=split("self_attn.qkv_proj", QKV) | split("mlp.gate_up_proj", GATE_UP)),
    paper="https://arxiv.org/abs/2404.14219, https://arxiv.org/abs/2503.01743",
)  # fmt: skip
