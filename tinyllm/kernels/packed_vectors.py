"""A checkpoint's vectors (norms, biases, sinks) as the kernels take them: one array a kind.

Factors that can go into a vector at no cost are put there: the logits' scale into the last norm,
that of what sublayers add into their norms or biases (and into their matrices, in `packed.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyllm.config import ModelConfig
from tinyllm.kernels.layout import BLOCK
from tinyllm.kernels.parts import head_order

Array = NDArray[Any]
Weights = Mapping[str, NDArray[np.float32]]

ADDED = ("out_bias", "down_bias", "expert_down_bias")  # of what sublayers add to the stream


def qkv_order(config: ModelConfig) -> NDArray[np.intp] | None:
    """The rows of q, k and v in the kernels' order; None: as they are."""
    order = head_order(config)
    if order is None:
        return None
    turned = (config.n_heads + config.n_kv_heads) * config.head_dim
    heads = np.arange(turned).reshape(-1, config.head_dim)[:, order].reshape(-1)
    rest = np.arange(config.n_kv_heads * config.head_dim)
    return np.concatenate([heads, turned + rest])


def up_names(config: ModelConfig) -> tuple[str, ...]:
    """The MLP's first matrices."""
    return ("gate", "up") if config.gated else ("up",)


def up_order(config: ModelConfig, width: int) -> NDArray[np.intp] | None:
    """16 rows of gate, the same 16 of up, and so on; of an MLP of that width."""
    if not config.gated:
        return None
    hidden = np.arange(width).reshape(-1, 1, BLOCK)
    return np.concatenate([hidden, hidden + width], axis=1).reshape(-1)


def plain_mlps(config: ModelConfig) -> list[str]:
    """Where the MLPs of layers without experts stand, in order."""
    layers = range(config.n_layers)
    return [f"model.layers.{i}.mlp" for i in layers if not config.layer(i).experts]


def routers(config: ModelConfig) -> list[str]:
    """Where routers and experts stand, a place a layer that has them."""
    return [f"model.layers.{i}.mlp" for i in range(config.n_layers) if config.layer(i).experts]


def expert_mlps(config: ModelConfig) -> list[str]:
    """Where experts stand, layer by layer."""
    n = config.experts.n if config.experts else 0
    return [f"{mlp}.experts.{e}" for mlp in routers(config) for e in range(n)]


def vectors(config: ModelConfig, weights: Weights) -> dict[str, Array]:
    """Norms, and the tensors of `parts.TENSORS` that the model has."""
    layers = [f"model.layers.{i}" for i in range(config.n_layers)]
    found: dict[str, Array] = {}

    def stacked(make: Callable[[str], Array], places: Sequence[str] = layers) -> Array:
        return np.ascontiguousarray(np.stack([make(place) for place in places]), np.float32)

    def biases(
        ours: str,
        names: Mapping[str, str],
        order: NDArray[np.intp] | None,
        places: Sequence[str] = layers,
    ) -> None:
        """One array of several projections' biases; zeros for those that have none."""
        if not places or not any(bias in config.biases for bias in names.values()):
            return

        def one(layer: str) -> Array:
            parts = [
                weights[f"{layer}.{name}.bias"]
                if bias in config.biases
                else np.zeros(len(weights[f"{layer}.{name}.weight"]), np.float32)
                for name, bias in names.items()
            ]
            whole = np.concatenate(parts)
            if ours in ADDED and not config.norm_after:
                whole = whole * np.float32(config.residual_scale)
            return whole if order is None else whole[order]

        found[ours] = stacked(one, places)

    qkv = {f"self_attn.{n}_proj": n for n in "qkv"}
    biases("qkv_bias", qkv, qkv_order(config))
    biases("out_bias", {"self_attn.o_proj": "o"}, None)
    ups, mlps, experts = (
        {f"{n}_proj": n for n in up_names(config)},
        plain_mlps(config),
        config.experts,
    )
    biases("up_bias", ups, up_order(config, config.hidden_dim), mlps)
    biases("down_bias", {"down_proj": "down"}, None, mlps)
    if experts is not None:
        of_experts = expert_mlps(config)
        biases("router_bias", {"router": "router"}, None, routers(config))
        biases("expert_up_bias", ups, up_order(config, experts.hidden_dim), of_experts)
        biases("expert_down_bias", {"down_proj": "down"}, None, of_experts)

    def norm(ours: str, bias: str, get: Callable[[str], Array | None]) -> None:
        """A norm of all layers, with a bias if it is a layer norm."""
        ones, zeros = np.ones(config.dim, np.float32), np.zeros(config.dim, np.float32)

        def or_else(value: Array | None, default: Array) -> Array:
            return default if value is None else value

        found[ours] = stacked(lambda layer: or_else(get(f"{layer}|weight"), ones))
        if config.norm != "rms":
            found[bias] = stacked(lambda layer: or_else(get(f"{layer}|bias"), zeros))

    def of(stem: str) -> Callable[[str], Array | None]:
        def get(place: str) -> Array | None:
            layer, suffix = place.split("|")
            return weights.get(f"{layer}.{stem}.{suffix}")

        return get

    if config.norm_before:
        norm("attn_norm", "attn_bias", of("input_layernorm"))
        if config.parallel != "one norm":
            norm("mlp_norm", "mlp_bias", of("post_attention_layernorm"))
    if config.norm_after:
        norm("after_attn", "", of("attention_output_norm"))
        norm("after_mlp", "", of("mlp_output_norm"))
        for ours in ("after_attn", "after_mlp"):
            found[ours] *= np.float32(config.residual_scale)
    norm("final_norm", "final_bias", lambda place: weights.get(f"model.norm.{place[-6:]}")
         if place.endswith("weight") else weights.get("model.norm.bias"))  # fmt: skip
    for ours in ("final_norm", "final_bias"):
        if ours in found:
            scale = np.float32(config.logit_scale)
            found[ours] = found[ours][:1] if scale == 1 else found[ours][:1] * scale

    if config.qk_norm != "no":
        order = head_order(config)
        for n in "qk":
            name = f"{n}_whole" if config.qk_norm == "whole" else f"{n}_norm"
            for suffix, ours in (("weight", name), ("bias", f"{n}_norm_bias")):
                if suffix == "bias" and config.norm == "rms":
                    continue

                def heads(layer: str, n: str = n, suffix: str = suffix) -> Array:
                    value = weights.get(f"{layer}.self_attn.{n}_norm.{suffix}")
                    if value is None:
                        value = np.zeros(config.head_dim, np.float32)
                    value = value.reshape(-1, config.head_dim)
                    return value if order is None else value[:, order]

                found[ours] = stacked(heads)
    if config.sinks:
        found["sinks"] = stacked(lambda layer: weights[f"{layer}.self_attn.sinks"])
    if config.activation == "xielu":

        def slopes(layer: str) -> Array:
            above, below = (weights[f"{layer}.mlp.act.alpha_{n}"] for n in "pn")
            return np.concatenate([np.logaddexp(0, above), 0.5 + np.logaddexp(0, below)])

        found["act"] = stacked(slopes)
    if config.learned_positions:
        found["positions"] = np.array(weights["model.embed_positions.weight"])
    if "head" in config.biases:
        bias = weights["lm_head.bias"]
        found["head_bias"] = np.pad(bias, (0, -len(bias) % BLOCK))[None]
    return found
