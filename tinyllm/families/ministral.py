"""Ministral 8B: Mistral whose layers slide or don't, one by one."""

from __future__ import annotations

from tinyllm.families.family import Family, Fields, decoder, layers_of
from tinyllm.families.keys import Keys


def read(keys: Keys) -> Fields:
    """Llama's keys; `layer_types` says which layers have the window."""
    fields = decoder(keys)
    window = keys.optional("sliding_window", int)
    layers = layers_of(keys, fields["n_layers"], window, lambda i: window is not None)
    return fields | {"layers": layers}


MINISTRAL = Family(
    "Ministral", "ministral", "MinistralForCausalLM", read,
    defaults={"num_key_value_heads": 8, "max_position_embeddings": 131_072,
              "sliding_window": 4096},
)  # fmt: skip
