"""What a description says, and what most descriptions have in common: Llama's keys and names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tinyllm.errors import ConfigError
from tinyllm.families.keys import Keys
from tinyllm.families.parts import Activation, Layer, Rotary
from tinyllm.families.rotary import DEFAULT_THETA, rotary
from tinyllm.families.tensors import LLAMA_NAMES, Names

Fields = dict[str, Any]  # of `config.ModelConfig`

ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh", "relu": "relu",
    "relu2": "relu2", "xielu": "xielu",
}  # fmt: skip


@dataclass(frozen=True)
class Family:
    """One family of models: how its configuration and its tensors become ours.

    Attributes:
        name: as people say it.
        model_type: the configuration's; what the reference goes by.
        architecture: the class that checkpoints name.
        read: the configuration's keys → fields of `ModelConfig`.
        defaults: what the reference takes for a key that is left out. Lengths have none here.
        names: the checkpoint's tensors → ours.
        paper: where it is described.
        aliases: other model types that are the same description.
    """

    name: str
    model_type: str
    architecture: str
    read: Callable[[Keys], Fields]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    names: Names = LLAMA_NAMES
    paper: str = ""
    aliases: tuple[str, ...] = ()
    other_architectures: tuple[str, ...] = ()

    @property
    def architectures(self) -> tuple[str, ...]:
        """Every class name under which its checkpoints come."""
        return (self.architecture, *self.other_architectures)


def decoder(
    keys: Keys,
    *,
    eps: str = "rms_norm_eps",
    act: str = "hidden_act",
    theta: float = DEFAULT_THETA,
    share: float | None = None,
    has_head_dim: bool = True,
    rope: bool = True,
    rope_also: frozenset[str] = frozenset(),
) -> Fields:
    """The fields that a decoder with Llama's key names has; a description changes some of them.

    Args:
        eps, act: what the family calls the norms' epsilon and the MLP's activation.
        theta, share: rotary base and share of a head that turns, where the file says nothing.
        has_head_dim: whether the reference reads `head_dim`.
        rope: whether there are rotary keys to read.
    """
    dim = keys.get("hidden_size", int)
    n_heads = keys.get("num_attention_heads", int)
    if n_heads < 1:
        raise ConfigError(f"num_attention_heads must be at least 1, not {n_heads}")
    head_dim = keys.optional("head_dim", int) if has_head_dim else None
    if head_dim is None:
        head_dim = dim // n_heads
    max_len = keys.get("max_position_embeddings", int, 2048)
    n_kv_heads = keys.optional("num_key_value_heads", int)
    fields: Fields = {
        "dim": dim,
        "hidden_dim": keys.get("intermediate_size", int),
        "n_layers": keys.get("num_hidden_layers", int),
        "n_heads": n_heads,
        "n_kv_heads": n_heads if n_kv_heads is None else n_kv_heads,
        "head_dim": head_dim,
        "vocab_size": keys.get("vocab_size", int),
        "max_seq_len": max_len,
        "norm_eps": keys.get(eps, float, 1e-6),
        "tie_embeddings": keys.get("tie_word_embeddings", bool, False),
        "bos_id": next(iter(keys.token_ids("bos_token_id")), None),
        "eos_ids": keys.token_ids("eos_token_id"),
        "activation": activation(keys, act),
    }
    if rope:
        fields |= rotary(keys, head_dim, theta=theta, share=share, max_len=max_len, also=rope_also)
    return fields


def activation(keys: Keys, key: str = "hidden_act", default: str = "silu") -> Activation:
    """The MLP's activation by its name in the reference."""
    name = keys.get(key, str, default)
    if name not in ACTIVATIONS:
        raise ConfigError(f"{key} is {name!r}; tinyllm knows {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def biases(keys: Keys, **tensors: str) -> frozenset[str]:
    """The tensors that have a bias: key of the file → "q k v", the projections it switches on."""
    chosen: set[str] = set()
    for key, names in tensors.items():
        if keys.get(key, bool, False):
            chosen.update(names.split())
    return frozenset(chosen)


def layers_of(
    keys: Keys,
    n_layers: int,
    window: int | None,
    slides: Callable[[int], bool],
    *,
    local: Rotary = "global",
    full: Rotary = "global",
) -> tuple[Layer, ...]:
    """Every layer's window and rotary table, by `layer_types` or by the family's own rule.

    Args:
        window: the length of a sliding layer's window.
        slides: whether layer i slides, where the file has no `layer_types`.
        local, full: the rotary table of sliding layers and of the others.
    """
    kinds = keys.strings("layer_types", n_layers)
    if kinds is None:
        kinds = ["sliding_attention" if slides(i) else "full_attention" for i in range(n_layers)]
    for kind in kinds:
        if kind not in ("sliding_attention", "full_attention"):
            raise ConfigError(
                f"layer_types has {kind!r}; tinyllm runs sliding_attention and full_attention"
            )
    if "sliding_attention" in kinds and window is None:
        raise ConfigError("layer_types has sliding_attention, but sliding_window isn't set")
    sliding, whole = Layer(window, local), Layer(None, full)
    return tuple(sliding if kind == "sliding_attention" else whole for kind in kinds)
