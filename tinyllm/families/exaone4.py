"""EXAONE 4: norms behind each sublayer only, q and k normed; windowed layers turn, others don't.

The small one has no windows, and then all layers turn.
"""

from __future__ import annotations

from tinyllm.families.family import Family, Fields, decoder, layers_of
from tinyllm.families.keys import Keys
from tinyllm.families.olmo2 import NAMES


def read(keys: Keys) -> Fields:
    """Llama's keys, the norms' places, and the layers' kinds."""
    fields = decoder(keys)
    window = keys.optional("sliding_window", int)
    pattern = keys.any("sliding_window_pattern")
    every = pattern if isinstance(pattern, int) and pattern > 0 else 0
    layers = layers_of(
        keys,
        fields["n_layers"],
        window,
        lambda i: bool(window and every and (i + 1) % every != 0),
        full="none" if window else "global",
    )
    return fields | {
        "norm_before": False,
        "norm_after": True,
        "qk_norm": "each head",
        "layers": layers,
    }


EXAONE4 = Family(
    "EXAONE 4", "exaone4", "Exaone4ForCausalLM", read,
    defaults={"num_key_value_heads": 32, "rms_norm_eps": 1e-5, "sliding_window": 4096,
              "sliding_window_pattern": 4},
    names=NAMES,
    paper="https://arxiv.org/abs/2507.11407",
)  # fmt: skip
