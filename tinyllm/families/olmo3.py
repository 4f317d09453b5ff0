"""OLMo 3: OLMo 2 with a window on three layers of four; yarn in the layers that see all."""

from __future__ import annotations

from tinyllm.families.by_kind import rotary_by_kind
from tinyllm.families.family import Family, Fields, biases, decoder, layers_of
from tinyllm.families.keys import Keys
from tinyllm.families.olmo2 import NAMES

THETA = 500_000.0


def read(keys: Keys) -> Fields:
    """OLMo 2's keys, and two kinds of layers."""
    fields = decoder(keys, rope=False)
    fields |= rotary_by_kind(
        keys, fields["head_dim"], fields["max_seq_len"],
        full=keys.get("rope_theta", float, THETA), sliding=THETA,
    )  # fmt: skip
    window = keys.optional("sliding_window", int)
    return fields | {
        "norm_before": False,
        "norm_after": True,
        "qk_norm": "whole",
        "biases": biases(keys, attention_bias="q k v o"),
        "layers": layers_of(
            keys, fields["n_layers"], window, lambda i: (i + 1) % 4 != 0, local="local"
        ),
    }


OLMO3 = Family(
    "OLMo 3", "olmo3", "Olmo3ForCausalLM", read,
    defaults={"rms_norm_eps": 1e-5, "sliding_window": 4096}, names=NAMES,
    paper="https://arxiv.org/abs/2512.13961",
)  # fmt: skip
