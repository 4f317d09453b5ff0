"""SmolLM3: Llama with no positions in every fourth layer.

A layer without rotary sees what stands before a token, but not how far back, and so can't be led
astray by distances longer than trained on (NoPE).
"""

from __future__ import annotations

from tinyllm.errors import ConfigError
from tinyllm.families.family import Family, Fields, biases, decoder
from tinyllm.families.keys import Keys
from tinyllm.families.parts import Layer


def read(keys: Keys) -> Fields:
    """Llama's keys; `no_rope_layers` has a 1 where a layer does turn."""
    fields = decoder(keys, theta=2_000_000.0)
    n = fields["n_layers"]
    every = keys.get("no_rope_layer_interval", int, 4)
    turns = keys.integers("no_rope_layers")
    if turns is None:
        if every < 1:
            raise ConfigError(f"no_rope_layer_interval must be at least 1, not {every}")
        turns = [int((i + 1) % every != 0) for i in range(n)]
    if len(turns) != n:
        raise ConfigError(f"no_rope_layers has {len(turns)} entries for {n} layers")
    window = keys.optional("sliding_window", int)
    if not keys.get("use_sliding_window", bool, False):
        window = None
    kinds = keys.strings("layer_types", n)
    if kinds is None:
        kinds = ["full_attention" if turn else "sliding_attention" for turn in turns]
    elif window is None and "sliding_attention" in kinds:
        raise ConfigError("layer_types has sliding_attention, but use_sliding_window is off")
    layers = tuple(
        Layer(
            window if kind == "sliding_attention" else None,
            "global" if turn else "none",
        )
        for turn, kind in zip(turns, kinds, strict=True)
    )
    return fields | {
        "biases": biases(keys, attention_bias="q k v o", mlp_bias="gate up down"),
        "layers": layers,
    }


SMOLLM3 = Family(
    "SmolLM3", "smollm3", "SmolLM3ForCausalLM", read,
    defaults={"num_key_value_heads": 4, "max_position_embeddings": 32_768,
              "tie_word_embeddings": True},
    paper="https://huggingface.co/blog/smollm3",
)  # fmt: skip
