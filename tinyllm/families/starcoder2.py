"""StarCoder2: layer norms, biases everywhere, a plain GELU MLP, a window in every layer if any."""

from __future__ import annotations

from tinyllm.families.family import Family, Fields, biases, decoder
from tinyllm.families.keys import Keys
from tinyllm.families.parts import Layer
from tinyllm.families.tensors import Names


def read(keys: Keys) -> Fields:
    """Llama's keys, without a gate."""
    fields = decoder(keys, eps="norm_epsilon")
    window = keys.optional("sliding_window", int)
    keys.pass_over("norm_type", "mlp_type", "attention_bias", "layer_norm_epsilon",
                   "activation_function", "scale_attention_softmax_in_fp32",
                   "scale_attn_weights", "attention_softmax_in_fp32")  # fmt: skip
    return fields | {
        "norm": "layer",
        "gated": False,
        "biases": biases(keys, use_bias="q k v o up down") | {"norm"},
        "layers": (Layer(window),) * fields["n_layers"] if window else (),
    }


STARCODER2 = Family(
    "StarCoder2", "starcoder2", "Starcoder2ForCausalLM", read,
    defaults={"num_key_value_heads": 2, "max_position_embeddings": 4096, "norm_epsilon": 1e-5,
              "hidden_act": "gelu_pytorch_tanh", "tie_word_embeddings": True, "use_bias": True},
    names=Names(tensors={"mlp.up_proj": "mlp.c_fc", "mlp.down_proj": "mlp.c_proj"}),
    paper="https://arxiv.org/abs/2402.19173",
)  # fmt: skip
