"""Command R: attention and MLP side by side behind one norm; neighbours turn together.

The norm is a layer norm without biases; logits are multiplied by a small `logit_scale`.
"""

from __future__ import annotations

from tinyllm.families.family import Family, Fields, biases, decoder
from tinyllm.families.keys import Keys


def common(keys: Keys, theta: float) -> Fields:
    """What Command R and Command R7B share; theta: the rotary base where the file has none."""
    keys.must_be("use_parallel_block", True)
    keys.must_be("use_parallel_embedding", True, False)
    keys.pass_over("use_embedding_sharing", "use_gated_activation", "rotary_pct",
                   "position_embedding_type")  # fmt: skip
    return decoder(keys, eps="layer_norm_eps", theta=theta) | {
        "norm": "layer",
        "parallel": "one norm",
        "rope_pairs": "neighbours",
        "logit_scale": keys.get("logit_scale", float),
        "biases": biases(keys, attention_bias="q k v o"),
    }


def read(keys: Keys) -> Fields:
    """With or without norms of q and k, every head its own."""
    normed = keys.get("use_qk_norm", bool, False)
    return common(keys, 500_000.0) | {"qk_norm": "every head its own" if normed else "no"}


DEFAULTS = {"max_position_embeddings": 8192, "layer_norm_eps": 1e-5, "logit_scale": 0.0625,
            "tie_word_embeddings": True}  # fmt: skip
COHERE = Family("Command R", "cohere", "CohereForCausalLM", read, defaults=DEFAULTS)
