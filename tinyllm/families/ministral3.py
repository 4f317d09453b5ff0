"""Ministral 3: Mistral without a window; yarn, and queries that grow with their position.

The growth is Llama 4's: 1 + beta · log(1 + floor(position / original context)), so that attention
over hundreds of thousands of keys stays as sharp as over a few.
"""

from __future__ import annotations

from typing import Any

from tinyllm.errors import ConfigError
from tinyllm.families.family import Family, Fields, decoder
from tinyllm.families.keys import Keys, typed
from tinyllm.families.parts import Layer, Temperature
from tinyllm.families.rotary import parameters

BETA = "llama_4_scaling_beta"
YARN: dict[str, Any] = {
    "type": "yarn", "rope_theta": 1e6, "factor": 16.0, "original_max_position_embeddings": 16384,
    "beta_fast": 32.0, "beta_slow": 1.0, "mscale_all_dim": 1.0, "mscale": 1.0, BETA: 0.1,
}  # fmt: skip


def read(keys: Keys) -> Fields:
    """Llama's keys, and the growth beside the rotary parameters."""
    also = frozenset({BETA, "max_position_embeddings"})
    fields = decoder(keys, rope_also=also)
    rope = parameters(keys)
    beta = typed(rope.get(BETA), BETA, float)
    length = typed(rope.get("original_max_position_embeddings"), "original_max", int)
    if beta is None or not length:
        raise ConfigError(f"rope_parameters: {BETA} or original_max_position_embeddings is missing")
    window = keys.optional("sliding_window", int)
    return fields | {
        "temperature": Temperature(beta, length),
        "layers": (Layer(window),) * fields["n_layers"] if window else (),
    }


MINISTRAL3 = Family(
    "Ministral 3", "ministral3", "Ministral3ForCausalLM", read,
    defaults={"num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 262_144,
              "rms_norm_eps": 1e-5, "rope_parameters": YARN},
)  # fmt: skip
