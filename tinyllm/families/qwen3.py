"""Qwen3: queries and keys are normed, head by head, before they turn; no biases.

With normed queries and keys no score can grow without bound, which steadies training. The heads'
width is a key of its own: in Qwen3-0.6B 16 heads of 128 stand on a stream of 1,024.
"""

from __future__ import annotations

from tinyllm.families.family import Family, Fields, biases, decoder
from tinyllm.families.keys import Keys
from tinyllm.families.qwen2 import windows


def read(keys: Keys) -> Fields:
    """Llama's keys, Qwen's windows, norms of q and k."""
    fields = decoder(keys)
    return fields | {
        "qk_norm": "each head",
        "biases": biases(keys, attention_bias="q k v o"),
        "layers": windows(keys, fields["n_layers"]),
    }


QWEN3 = Family(
    "Qwen3", "qwen3", "Qwen3ForCausalLM", read,
    defaults={"num_key_value_heads": 32, "head_dim": 128, "max_position_embeddings": 32_768,
              "sliding_window": 4096},
    paper="https://arxiv.org/abs/2505.09388",
)  # fmt: skip
