"""Gemma 3, text: five windowed layers, then one that sees all; q and k normed instead of capped.

Windowed layers turn by a base of 10,000, the others by a million: a small base tells near positions
apart, a large one far ones.
"""

from __future__ import annotations

from tinyllm.errors import ConfigError
from tinyllm.families.by_kind import rotary_by_kind
from tinyllm.families.family import Family, Fields, layers_of
from tinyllm.families.gemma import common
from tinyllm.families.gemma2 import SANDWICH, scale
from tinyllm.families.keys import Keys


def read(keys: Keys) -> Fields:
    """Gemma 2's keys, and two kinds of layers."""
    keys.pass_over("hidden_act", "use_bidirectional_attention")
    fields = common(keys, act="hidden_activation", rope=False)
    fields |= rotary_by_kind(
        keys, fields["head_dim"], fields["max_seq_len"],
        full=keys.get("rope_theta", float, 1e6),
        sliding=keys.get("rope_local_base_freq", float, 1e4),
    )  # fmt: skip
    keys.must_be("attn_logit_softcapping", None)  # the reference has the key and does nothing
    window, every = keys.optional("sliding_window", int), keys.get("sliding_window_pattern", int, 6)
    if every < 1:
        raise ConfigError(f"sliding_window_pattern must be at least 1, not {every}")
    return fields | {
        "norm_after": True,
        "qk_norm": "each head",
        "attention_scale": scale(keys),
        "logit_cap": keys.optional("final_logit_softcapping", float),
        "layers": layers_of(
            keys, fields["n_layers"], window, lambda i: (i + 1) % every != 0, local="local"
        ),
    }


GEMMA3 = Family(
    "Gemma 3 (text)", "gemma3_text", "Gemma3ForCausalLM", read,
    defaults={"vocab_size": 262_208, "num_attention_heads": 8, "num_key_value_heads": 4,
              "head_dim": 256, "max_position_embeddings": 131_072,
              "hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": True,
              "query_pre_attn_scalar": 256, "sliding_window": 4096},
    names=SANDWICH,
    paper="https://arxiv.org/abs/2503.19786",
)  # fmt: skip
