"""The wrong forms: mistakes that people have made in a transformer of their own, a function each.

Each is what the right one is, but for the line that is wrong. What a family has on top of a Llama
is read off its configuration, as `model.py` does it; a mistake that needs a part which a family
lacks says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np

from tinyllm.config import ModelConfig
from tinyllm.families.catalogue import BY_TYPE
from tinyllm.inside.breakage import Breakage, Scene
from tinyllm.kernels import reference as ops
from tinyllm.runner import Array

Wrong = Callable[[Scene], Array]
# What a part that chose another activation would have taken.
OTHER = {"silu": "gelu_tanh", "gelu": "silu", "gelu_tanh": "silu", "relu": "gelu", "relu2": "relu",
         "xielu": "silu"}  # fmt: skip


# Positions --------------------------------------------------------------------------------------


def _table(at: Scene) -> ModelConfig:
    """The shape that a layer's angles are made from."""
    assert at.layer is not None
    own = at.config.local() if at.config.layer(at.layer).rotary == "local" else at.config
    return own.for_context(getattr(at.cache, "context", at.cache.capacity))


def _turn(config: ModelConfig) -> Callable[[Array, Array, Array], Array]:
    neighbours = config.rope_pairs == "neighbours"
    return ops.apply_rope_neighbours if neighbours else ops.apply_rope


def _at_rotary(wrong: Callable[[Scene, Array], Array]) -> Mapping[str, Wrong]:
    """The same mistake for queries and for keys: what they are before they turn is given."""

    def of(letter: str, point: str) -> Wrong:
        return lambda at: wrong(at, at.heads(letter, point))

    return {f"attn.hook_rot_{x}": of(x, f"attn.hook_rot_{x}") for x in "qk"}


def _rope_pairing(at: Scene, x: Array) -> Array:
    other = replace(at.config, rope_pairs="halves" if at.config.rope_pairs == "neighbours"
                    else "neighbours")  # fmt: skip
    return _turn(other)(x, *ops.rope_tables(_table(at), at.positions, x.dtype))


def _rope_theta(at: Scene, x: Array) -> Array:
    own = _table(at)
    theta = 10_000.0 if own.rope_theta != 10_000.0 else 500_000.0
    tables = ops.rope_tables(replace(own, rope_theta=theta), at.positions, x.dtype)
    return _turn(at.config)(x, *tables)


def _positions_lag(at: Scene, x: Array) -> Array:
    cached = at.positions[0] > 0
    positions = at.positions - 1 if cached else at.positions
    return _turn(at.config)(x, *ops.rope_tables(_table(at), positions, x.dtype))


def _learned_positions_lag(at: Scene) -> Array:
    if at.layer != 0 or not at.config.learned_positions or at.positions[0] == 0:
        return at.right
    table = at.weights["model.embed_positions.weight"]
    return at.right - table[at.positions] + table[at.positions - 1]


def _rope_unscaled(at: Scene, x: Array) -> Array:
    own = replace(_table(at), rope_scaling=None)
    return _turn(at.config)(x, *ops.rope_tables(own, at.positions, x.dtype))


def _rope_whole(at: Scene, x: Array) -> Array:
    own = replace(_table(at), rotary_dim=None, rope_scaling=None)
    return _turn(at.config)(x, *ops.rope_tables(own, at.positions, x.dtype))


def _rope_one_base(at: Scene, x: Array) -> Array:
    own = at.config.for_context(getattr(at.cache, "context", at.cache.capacity))
    return _turn(at.config)(x, *ops.rope_tables(own, at.positions, x.dtype))


# Attention --------------------------------------------------------------------------------------


def _scores(at: Scene, keys: Array, scale: float | None = None, capped: bool = True) -> Array:
    """q·k · scale with nothing hidden, (n_heads, T, S); keys (S, n_kv_heads, head_dim)."""
    q, config = at.heads("q"), at.config
    if (grows := config.temperature) is not None:
        grown = ops.temperature(at.positions, grows.beta, grows.length)
        q = q * grown.astype(q.dtype)[:, None, None]
    by_head = np.repeat(keys, q.shape[1] // keys.shape[1], axis=1)
    scores: Array = np.einsum("thd,shd->hts", q, by_head, dtype=q.dtype)
    scores = scores * scores.dtype.type(config.score_scale if scale is None else scale)
    if capped and config.score_cap is not None:
        scores = ops.soft_cap(scores, config.score_cap)
    return scores


def _as_hidden(at: Scene, scores: Array) -> Array:
    return np.where(np.isneginf(at.right), at.right, scores)


def _no_mask(at: Scene) -> Array:
    n_tokens, n_visible = at.right.shape[1:]
    ahead = ~ops.causal_mask(n_tokens, n_visible)
    return np.where(ahead, _scores(at, at.keys()), at.right)


def _no_mask_behind_cache(at: Scene) -> Array:
    # "The cache is used for decoding, where there is one query."
    return _no_mask(at) if at.right.shape[1] != at.right.shape[2] else at.right


def _no_window(at: Scene) -> Array:
    n_tokens, n_visible = at.right.shape[1:]
    seen = ops.causal_mask(n_tokens, n_visible)
    return np.where(seen & np.isneginf(at.right), _scores(at, at.keys()), at.right)


def _striped(at: Scene, heads: Array) -> Array:
    """Keys or values dealt out as h % n_kv_heads, not h // group: one for each query head."""
    return heads[:, np.arange(at.config.n_heads) % at.config.n_kv_heads]


def _striped_scores(at: Scene) -> Array:
    return _as_hidden(at, _scores(at, _striped(at, at.keys())))


def _striped_mix(at: Scene) -> Array:
    return ops.attention_mix(at.seen["attn.hook_pattern"], _striped(at, at.values()))


def _unscaled_scores(at: Scene) -> Array:
    return _as_hidden(at, _scores(at, at.keys(), scale=1.0))


def _uncapped_scores(at: Scene) -> Array:
    return _as_hidden(at, _scores(at, at.keys(), capped=False))


def _no_sink(at: Scene) -> Array:
    return ops.softmax(at.seen["attn.hook_attn_scores"])


def _heads_not_normed(letter: str) -> Wrong:
    return lambda at: at.heads(letter, f"attn.{letter}_norm.hook_normalized")


def _no_bias(letter: str) -> Wrong:
    def wrong(at: Scene) -> Array:
        bias = at.weights.get(f"model.layers.{at.layer}.self_attn.{letter}_proj.bias")
        return at.right if bias is None else at.right - bias.reshape(at.right.shape[1:])

    return wrong


# Norms ------------------------------------------------------------------------------------------


def _at_norms(wrong: Callable[[Scene, Array, Array | None, Array | None], Array]) -> Any:
    """The same mistake at each norm of the stream: what it reads, its weight and bias are given."""

    def of(source: str) -> Wrong:
        def broken(at: Scene) -> Array:
            side_by_side = at.config.parallel != "no" and source == "hook_resid_mid"
            x = at.seen["hook_resid_pre" if side_by_side else source][-len(at.right) :]
            bias = at.weights.get(f"{at.tensor.removesuffix('.weight')}.bias")
            return wrong(at, x, at.weights.get(at.tensor), bias)

        return broken

    return {
        "ln1.hook_normalized": of("hook_resid_pre"),
        "ln2.hook_normalized": of("hook_resid_mid"),
        "ln_final.hook_normalized": of("hook_resid_post"),
    }


def _norm(
    config: ModelConfig, x: Array, weight: Array | None, bias: Array | None, eps: float
) -> Array:
    if config.norm == "rms":
        return ops.rms_norm(x, cast(Array, weight), eps)
    return ops.layer_norm(x, weight, bias, eps)


def _small_eps(at: Scene, x: Array, weight: Array | None, bias: Array | None) -> Array:
    return _norm(at.config, x, weight, bias, at.config.norm_eps * 0.1)


def _layer_norm(at: Scene, x: Array, weight: Array | None, bias: Array | None) -> Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    return ops.rms_norm(centred, cast(Array, weight), at.config.norm_eps)


def _rms_norm(at: Scene, x: Array, weight: Array | None, bias: Array | None) -> Array:
    normed = x * ops.rms_scale(x, at.config.norm_eps)
    normed = normed if weight is None else normed * weight
    return normed if bias is None else normed + bias


def _less_one(at: Scene, x: Array, weight: Array | None, bias: Array | None) -> Array:
    return _norm(at.config, x, cast(Array, weight) - 1, bias, at.config.norm_eps)


# MLPs and the stream ----------------------------------------------------------------------------


def _at_activations(wrong: Callable[[Scene, Array, Array | None], Array]) -> Mapping[str, Wrong]:
    """The same mistake in MLPs and in experts: what the activation reads is given."""

    def of(prefix: str) -> Wrong:
        return lambda at: wrong(
            at, at.seen[f"{prefix}.hook_pre"],
            at.seen[f"{prefix}.hook_pre_linear"] if at.config.gated else None,
        )  # fmt: skip

    return {f"{prefix}.hook_post": of(prefix) for prefix in ("mlp", "mlp.experts")}


def _swapped(at: Scene, gate: Array, up: Array | None) -> Array:
    config = at.config
    up = cast(Array, up)
    if config.act_alpha is not None and config.act_limit is not None:
        return ops.clamped_swiglu(up, gate, config.act_alpha, config.act_limit)
    return cast(Array, getattr(ops, config.activation)(up)) * gate


def _other_activation(at: Scene, pre: Array, up: Array | None) -> Array:
    config = at.config
    if config.act_limit is not None:  # the clamped gate's usual form
        return ops.swiglu(pre, cast(Array, up))
    act = cast(Array, getattr(ops, OTHER[config.activation])(pre))
    return act if up is None else act * up


def _other_weights(at: Scene) -> Array:
    experts = at.config.experts
    assert experts is not None
    normalised = experts.weights == "normalised"
    return ops.expert_weights(at.seen["mlp.hook_router"], experts.k, not normalised)


def _not_scaled(at: Scene) -> Array:
    return at.right / at.right.dtype.type(at.config.embedding_scale)


# What a family must have for a mistake to be one ------------------------------------------------

Lacking = Callable[[ModelConfig], str]


def _unless(there: Callable[[ModelConfig], bool], why: str) -> Lacking:
    return lambda config: "" if there(config) else why


def _layers(config: ModelConfig) -> list[Any]:
    return [config.layer(i) for i in range(config.n_layers)]


_TURNS = _unless(lambda c: not c.learned_positions, "its positions are learned, and nothing turns")
_RMS = _unless(lambda c: c.norm == "rms", "its norms are layer norms")

BREAKAGES: dict[str, Breakage] = {
    breakage.name: breakage
    for breakage in (
        Breakage(
            "rope-pairing",
            "rotary turns element i with i + 1 instead of i + head_dim/2, or the other way round",
            _at_rotary(_rope_pairing),
            _TURNS,
        ),
        Breakage(
            "rope-theta",
            "rotary uses the paper's base of 10,000 instead of the checkpoint's",
            _at_rotary(_rope_theta),
            _TURNS,
        ),
        Breakage(
            "rope-scaling",
            "rotary frequencies are not scaled as the checkpoint's config asks",
            _at_rotary(_rope_unscaled),
            # dynamic changes nothing within the model's own context
            _unless(
                lambda c: c.rope_scaling is not None and c.rope_scaling.kind != "dynamic",
                "its frequencies aren't scaled",
            ),
        ),
        Breakage(
            "rope-partial",
            "the whole of each head turns instead of its first part",
            _at_rotary(_rope_whole),
            _unless(lambda c: c.turned < c.head_dim, "the whole of its heads turns, or nothing"),
        ),
        Breakage(
            "rope-one-base",
            "windowed layers turn by the angles of the layers that see all",
            _at_rotary(_rope_one_base),
            _unless(
                lambda c: any(layer.rotary == "local" for layer in _layers(c)),
                "all its layers turn by the same angles",
            ),
        ),
        Breakage(
            "position-off-by-one",
            "behind a cache, positions are counted one too low",
            {**_at_rotary(_positions_lag), "hook_resid_pre": _learned_positions_lag},
        ),
        Breakage(
            "causal-mask",
            "no mask: in the prompt, every token sees those after it",
            {"attn.hook_attn_scores": _no_mask},
        ),
        Breakage(
            "mask-behind-cache",
            "no mask once something is cached: a prompt in two chunks sees ahead in the second",
            {"attn.hook_attn_scores": _no_mask_behind_cache},
        ),
        Breakage(
            "window",
            "windowed layers see everything",
            {"attn.hook_attn_scores": _no_window},
            _unless(
                lambda c: any(layer.window is not None for layer in _layers(c)),
                "no layer has a window",
            ),
        ),
        Breakage(
            "kv-head-map",
            "query head h reads key head h % n_kv_heads instead of h // group",
            {"attn.hook_attn_scores": _striped_scores, "attn.hook_z": _striped_mix},
            _unless(
                lambda c: 1 < c.n_kv_heads < c.n_heads,
                "it has one key head, or one for each query head",
            ),
        ),
        Breakage(
            "softmax-scale",
            "scores are not divided by sqrt(head_dim)",
            {"attn.hook_attn_scores": _unscaled_scores},
            _unless(lambda c: c.score_scale != 1.0, "its scores aren't scaled"),
        ),
        Breakage(
            "soft-cap",
            "scores are not capped",
            {"attn.hook_attn_scores": _uncapped_scores},
            _unless(lambda c: c.score_cap is not None, "its scores have no cap"),
        ),
        Breakage(
            "sinks",
            "the softmax forgets the heads' sinks: every head must look at something",
            {"attn.hook_pattern": _no_sink},
            _unless(lambda c: c.sinks, "its heads have no sinks"),
        ),
        Breakage(
            "qk-norm",
            "queries and keys are not normed",
            {f"attn.{x}_norm.hook_normalized": _heads_not_normed(x) for x in "qk"},
            _unless(lambda c: c.qk_norm != "no", "its queries and keys aren't normed"),
        ),
        Breakage(
            "qkv-bias",
            "the biases of queries, keys and values are left out",
            {f"attn.hook_{x}": _no_bias(x) for x in "qkv"},
            _unless(lambda c: not {"q", "k", "v"}.isdisjoint(c.biases), "it has no such biases"),
        ),
        Breakage(
            "norm-eps",
            "the norm's eps is a tenth of the checkpoint's",
            _at_norms(_small_eps),
            _unless(lambda c: c.norm_eps > 0, "its norms have no eps"),
        ),
        Breakage(
            "layer-norm",
            "the norm subtracts the mean, as LayerNorm does",
            _at_norms(_layer_norm),
            _RMS,
        ),
        Breakage(
            "rms-norm",
            "the norm doesn't subtract the mean, as RMSNorm doesn't",
            _at_norms(_rms_norm),
            _unless(lambda c: c.norm != "rms", "its norms are RMS norms"),
        ),
        Breakage(
            "norm-offset",
            "norms are scaled by what the checkpoint holds, which is the weight less one",
            _at_norms(_less_one),
            _unless(
                lambda c: BY_TYPE[c.family].names.norms_less_one,
                "its checkpoints hold the weights themselves",
            ),
        ),
        Breakage(
            "gate-up-swap",
            "SiLU is applied to the up projection instead of the gate",
            _at_activations(_swapped),
            _unless(lambda c: c.gated, "its MLPs have no gate"),
        ),
        Breakage(
            "activation",
            "the gate goes through GELU instead of SiLU, or SiLU instead of GELU",
            _at_activations(_other_activation),
        ),
        Breakage(
            "expert-weights",
            "experts' weights are divided by their sum where they aren't to be, or the other way",
            {"mlp.hook_expert_weights": _other_weights},
            _unless(lambda c: c.experts is not None, "it has no experts"),
        ),
        Breakage(
            "embedding-scale",
            "embeddings go in without their multiplier",
            {"hook_embed": _not_scaled},
            _unless(lambda c: c.embedding_scale != 1.0, "its embeddings aren't scaled"),
        ),
    )
}
