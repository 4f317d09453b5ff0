"""GPT-2: learned positions, layer norms, biases, a plain GELU MLP; matrices stored transposed."""

from __future__ import annotations

from tinyllm.errors import ConfigError
from tinyllm.families.family import Family, Fields, activation
from tinyllm.families.keys import Keys
from tinyllm.families.tensors import QKV, Names, Taken, split


def read(keys: Keys) -> Fields:
    """GPT-2's own names for everything."""

    def length(own: str, usual: str) -> int:
        value, other = keys.optional(own, int), keys.optional(usual, int)
        if value is None or (other is not None and not keys.given(own)):
            value = other
        if value is None:
            raise ConfigError(f"{own} is missing")
        if other not in (None, value):
            raise ConfigError(f"{own} is {value} and {usual} {other}: two names of one length")
        return value

    keys.must_be("scale_attn_weights", True)
    keys.must_be("scale_attn_by_inverse_layer_idx", False)
    keys.must_be("add_cross_attention", False)
    dim, n_heads = length("n_embd", "hidden_size"), length("n_head", "num_attention_heads")
    if n_heads < 1 or dim % n_heads:
        raise ConfigError(f"n_embd ({dim}) must be a multiple of n_head ({n_heads})")
    return {
        "dim": dim,
        "hidden_dim": keys.optional("n_inner", int) or 4 * dim,
        "n_layers": length("n_layer", "num_hidden_layers"),
        "n_heads": n_heads,
        "n_kv_heads": n_heads,
        "head_dim": dim // n_heads,
        "vocab_size": keys.get("vocab_size", int),
        "max_seq_len": length("n_positions", "max_position_embeddings"),
        "rope_theta": 10_000.0,  # unused: no layer turns
        "norm_eps": keys.get("layer_norm_epsilon", float, 1e-5),
        "tie_embeddings": keys.get("tie_word_embeddings", bool, True),
        "bos_id": next(iter(keys.token_ids("bos_token_id")), None),
        "eos_ids": keys.token_ids("eos_token_id"),
        "activation": activation(keys, "activation_function", "gelu_new"),
        "gated": False,
        "norm": "layer",
        "learned_positions": True,
        "biases": frozenset(["q", "k", "v", "o", "up", "down", "norm"]),
    }


GPT2 = Family(
    "GPT-2", "gpt2", "GPT2LMHeadModel", read,
    defaults={"n_positions": 1024},
    names=Names(
        layer="h.{}",
        prefixes=("transformer.",),
        top={"embed": "wte", "positions": "wpe", "norm": "ln_f", "head": "lm_head"},
        tensors={
            **split("attn.c_attn", QKV, "columns"),
            "self_attn.o_proj": Taken("attn.c_proj", layout="columns"),
            "mlp.up_proj": Taken("mlp.c_fc", layout="columns"),
            "mlp.down_proj": Taken("mlp.c_proj", layout="columns"),
            "input_layernorm": "ln_1",
            "post_attention_layernorm": "ln_2",
        },
        ignored=r"\.attn\.(masked_)?bias$",
    ),
    paper="https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf",
)  # fmt: skip
