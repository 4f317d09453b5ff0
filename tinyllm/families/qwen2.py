"""Qwen2 and Qwen2.5: Llama with biases on q, k and v.

A window is there only with `use_sliding_window`, and then in layers from `max_window_layers` on;
the files carry a `sliding_window` that isn't used.
"""

from __future__ import annotations

from tinyllm.families.family import Family, Fields, decoder, layers_of
from tinyllm.families.keys import Keys
from tinyllm.families.parts import Layer


def windows(keys: Keys, n_layers: int) -> tuple[Layer, ...]:
    """Qwen's rule for which layers slide."""
    uses, window = keys.get("use_sliding_window", bool, False), None
    length = keys.optional("sliding_window", int)
    if uses:
        window = length
    first = keys.get("max_window_layers", int, 28)
    layers = layers_of(keys, n_layers, window, lambda i: window is not None and i >= first)
    return layers if window else ()


def read(keys: Keys) -> Fields:
    """Llama's keys, Qwen's windows."""
    fields = decoder(keys)
    return fields | {"biases": frozenset("qkv"), "layers": windows(keys, fields["n_layers"])}


QWEN2 = Family(
    "Qwen2", "qwen2", "Qwen2ForCausalLM", read,
    defaults={"num_key_value_heads": 32, "max_position_embeddings": 32_768,
              "sliding_window": 4096},
    paper="https://arxiv.org/abs/2412.15115",
)  # fmt: skip
