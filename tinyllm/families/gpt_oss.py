"""gpt-oss: experts with biases and a clamped gate, sinks, a window in every other layer, yarn.

A sink is a score of its own in every head: it takes part in the softmax and gives nothing, so that
a head may look at nothing. The gate is x · sigmoid(1.702 x), cut above; the up projection is cut on
both sides and raised by one. Released weights are MXFP4: 4-bit floats, 32 to a power of two.
"""

from __future__ import annotations

from typing import Any

from tinyllm.families.family import Family, Fields, biases, decoder, layers_of
from tinyllm.families.keys import Keys
from tinyllm.families.parts import Experts, Layer
from tinyllm.families.tensors import Names, Taken

YARN: dict[str, Any] = {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0,
                        "truncate": False, "original_max_position_embeddings": 4096}  # fmt: skip
PAIR = ("gate", "up")


def read(keys: Keys) -> Fields:
    """Llama's keys, the experts', and the clamp's."""
    keys.must_be("hidden_act", "silu")  # the reference doesn't read it
    keys.pass_over("initial_context_length", "experts_per_token", "swiglu_beta")
    fields = decoder(keys, theta=150_000.0)
    n = keys.optional("num_local_experts", int) or keys.optional("num_experts", int) or 128
    keys.pass_over("num_experts")
    experts = Experts(n, keys.get("num_experts_per_tok", int), fields["hidden_dim"], "normalised")
    window = keys.optional("sliding_window", int)
    layers = layers_of(keys, fields["n_layers"], window, lambda i: (i + 1) % 2 != 0)
    return fields | {
        "sinks": True,
        "act_alpha": keys.get("swiglu_alpha", float),
        "act_limit": keys.get("swiglu_limit", float),
        "experts": experts,
        "layers": tuple(Layer(layer.window, experts=True) for layer in layers),
        "biases": biases(keys, attention_bias="q k v o") | {"router", "gate", "up", "down"},
    }


GPT_OSS = Family(
    "gpt-oss", "gpt_oss", "GptOssForCausalLM", read,
    defaults={"num_key_value_heads": 8, "head_dim": 64, "max_position_embeddings": 131_072,
              "rms_norm_eps": 1e-5, "sliding_window": 128, "num_experts_per_tok": 4,
              "swiglu_alpha": 1.702, "swiglu_limit": 7.0, "attention_bias": True,
              "rope_parameters": YARN},
    # A "!" ends a name that has no .weight behind it.
    names=Names(tensors={
        "mlp.experts.N.gate_proj.weight": Taken("mlp.experts.gate_up_proj!", 0,
                                                "alternating columns", PAIR),
        "mlp.experts.N.up_proj.weight": Taken("mlp.experts.gate_up_proj!", 1,
                                              "alternating columns", PAIR),
        "mlp.experts.N.gate_proj.bias": Taken("mlp.experts.gate_up_proj_bias!", 0,
                                              "alternating columns", PAIR),
        "mlp.experts.N.up_proj.bias": Taken("mlp.experts.gate_up_proj_bias!", 1,
                                            "alternating columns", PAIR),
        "mlp.experts.N.down_proj.weight": Taken("mlp.experts.down_proj!", 0, "columns"),
        "mlp.experts.N.down_proj.bias": Taken("mlp.experts.down_proj_bias!", 0, "columns"),
    }),
    paper="https://arxiv.org/abs/2508.10925",
)  # fmt: skip
