"""GPT-NeoX and Pythia: attention and MLP side by side, each behind its own norm; a part turns.

The layers of a token then are as deep in sums, but half as deep in products: both read the stream
as it entered the layer.
"""

from __future__ import annotations

from tinyllm.errors import ConfigError
from tinyllm.families.family import Family, Fields, biases, decoder
from tinyllm.families.keys import Keys
from tinyllm.families.rotary import rotary
from tinyllm.families.tensors import QKV, Names, split


def read(keys: Keys) -> Fields:
    """Llama's keys, NeoX's names for the rotary ones."""
    fields = decoder(keys, eps="layer_norm_eps", has_head_dim=False, rope=False)
    if fields["n_kv_heads"] != fields["n_heads"]:
        raise ConfigError("num_key_value_heads isn't a key of this family: every head has its own")
    fields |= rotary(
        keys, fields["head_dim"], share=0.25, max_len=fields["max_seq_len"],
        base_key="rotary_emb_base", share_key="rotary_pct",
    )  # fmt: skip
    side_by_side = keys.get("use_parallel_residual", bool, True)
    return fields | {
        "norm": "layer",
        "gated": False,
        "parallel": "two norms" if side_by_side else "no",
        "biases": biases(keys, attention_bias="q k v o") | {"up", "down", "norm"},
    }


GPT_NEOX = Family(
    "GPT-NeoX", "gpt_neox", "GPTNeoXForCausalLM", read,
    defaults={"hidden_act": "gelu", "layer_norm_eps": 1e-5, "attention_bias": True},
    names=Names(
        layer="gpt_neox.layers.{}",
        top={"embed": "gpt_neox.embed_in", "norm": "gpt_neox.final_layer_norm",
             "head": "embed_out|lm_head"},
        tensors={
            **split("attention.query_key_value", QKV, "by head"),
            "self_attn.o_proj": "attention.dense",
            "mlp.up_proj": "mlp.dense_h_to_4h",
            "mlp.down_proj": "mlp.dense_4h_to_h",
        },
        ignored=r"\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)$",
    ),
    paper="https://arxiv.org/abs/2204.06745, https://arxiv.org/abs/2304.01373",
)  # fmt: skip
