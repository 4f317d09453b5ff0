"""Nemotron, Minitron: layer norms stored as w - 1, relu² without a gate, half a head turns."""

from __future__ import annotations

from tinyllm.families.family import Family, Fields, biases, decoder
from tinyllm.families.keys import Keys
from tinyllm.families.tensors import Names


def read(keys: Keys) -> Fields:
    """Llama's keys."""
    return decoder(keys, eps="norm_eps", share=0.5) | {
        "norm": "layer",
        "gated": False,
        "biases": biases(keys, attention_bias="q k v o", mlp_bias="up down") | {"norm"},
    }


NEMOTRON = Family(
    "Nemotron", "nemotron", "NemotronForCausalLM", read,
    defaults={"hidden_act": "relu2", "max_position_embeddings": 4096, "norm_eps": 1e-5},
    names=Names(norms_less_one=True),
    paper="https://arxiv.org/abs/2407.14679",
)  # fmt: skip
