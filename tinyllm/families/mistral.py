"""Mistral: Llama with a sliding window in every layer.

A token sees the last `sliding_window` positions, itself included. The reference's default is 4096
where the file says nothing; only a null switches it off, as Mistral 7B v0.2 and later have it.
"""

from __future__ import annotations

from tinyllm.families.family import Family, Fields, decoder
from tinyllm.families.keys import Keys
from tinyllm.families.parts import Layer


def read(keys: Keys) -> Fields:
    """Llama's keys and one window for all layers."""
    fields = decoder(keys)
    window = keys.optional("sliding_window", int)
    return fields | {"layers": (Layer(window),) * fields["n_layers"] if window else ()}


MISTRAL = Family(
    "Mistral", "mistral", "MistralForCausalLM", read,
    defaults={"num_key_value_heads": 8, "max_position_embeddings": 131_072,
              "sliding_window": 4096},
    paper="https://arxiv.org/abs/2310.06825",
)  # fmt: skip
