"""The transformer, top to bottom, in the order in which a token meets it.

    tokens → embeddings → n_layers × (attention, MLP) → norm → logits

In float32 numpy. A Llama (https://arxiv.org/abs/2302.13971) is what remains when every `if` is
skipped; each `if` is a part that some family adds, and `families/` says which and why. `tap` is
called at each hook point with a name and an array, and what it returns is used from there on:
`inside/` builds looking and changing on it. The compiled path, `compiled.py`, computes the same
thing faster and is held to this file by tests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from tinyllm.config import ModelConfig
from tinyllm.kernels import reference as ops
from tinyllm.kernels.blas import few_threads
from tinyllm.kv_cache import KVCache
from tinyllm.runner import (
    Array,
    Segment,
    Wanted,
    calls,
    images_between,
    places,
    seen_with_images,
    weights_fingerprint,
)

Tap = Callable[[str, Array], Array]


@dataclass(frozen=True)
class Rotation:
    """How queries and keys of some positions turn: cos and sin (T, d / 2), or None: not at all.

    `seen` is how many keys each query may see, (T,), where that isn't those up to its own.
    """

    cos: Array | None
    sin: Array | None
    temperature: Array | None = None  # (T,): what queries are multiplied by
    neighbours: bool = False  # element 2i turns with 2i + 1, not with its other half
    seen: NDArray[np.int64] | None = None

    @property
    def turns(self) -> bool:
        """Whether the layer has positions at all."""
        return self.cos is not None

    def turn(self, x: Array) -> Array:
        """Each head of each position by its angles, (T, heads, head_dim)."""
        assert self.cos is not None and self.sin is not None
        if self.neighbours:
            return ops.apply_rope_neighbours(x, self.cos, self.sin)
        return ops.apply_rope(x, self.cos, self.sin)

    def scale_queries(self, q: Array) -> Array:
        """Queries, grown with their position where the family does that."""
        if self.temperature is None:
            return q
        return q * self.temperature.astype(q.dtype)[:, None, None]


def scaled(x: Array, factor: float) -> Array:
    """x times a family's multiplier; untouched where it has none."""
    return x if factor == 1.0 else x * x.dtype.type(factor)


PREFILL_CHUNK = 512  # tokens a forward: bounds the (n_heads, T, S) score matrices


class Model:
    """A decoder over a checkpoint's own tensors.

    Args:
        config: the shape.
        weights: our name → float32 array, as `weights.load_weights` returns. Passing float64
            arrays makes the whole computation float64.
    """

    dtype = "f32"
    batch_invariant = False  # numpy's matrix products sum in an order that hangs on the shape

    def __init__(self, config: ModelConfig, weights: Mapping[str, Array]) -> None:
        self.config = config
        self.weights = weights
        self._fingerprint: str | None = None

    @few_threads()
    def forward(
        self,
        tokens: Sequence[int] | NDArray[np.integer[Any]],
        cache: KVCache,
        *,
        logits: Wanted = "all",
        image_positions: NDArray[np.int64] | None = None,
        image_rows: NDArray[np.float32] | None = None,
        tap: Tap | None = None,
    ) -> Array:
        """Run T tokens behind what the cache holds, and append them to it.

        Args:
            tokens: (T,) ids.
            cache: grows by T.
            logits: which rows to compute: "all" T, the "last" one, or "none".
            image_positions, image_rows: (M,) and (M, dim): embeddings that replace the table's.
            tap: called as tap(name, array) at every hook point; returns what to go on with.

        Returns:
            (T | 1 | 0, vocab_size) float32: before the softmax, of the token that follows.

        Raises:
            ValueError: a token id outside the vocabulary.
            CacheFull: the tokens don't fit; the cache is as it was.
        """
        cfg, tap = self.config, tap or _no_tap
        ids = self._check_tokens(tokens)
        if ids.size == 0:
            return np.zeros((0, cfg.vocab_size), np.float32)
        cache.reserve(len(ids))
        x, turn = self._begin(ids, cache, image_positions, image_rows, tap)
        for layer in range(cfg.n_layers):
            x = self._block(layer, x, turn[cfg.layer(layer).rotary], cache, tap)
            if layer < cfg.deep_rows and image_positions is not None and image_rows is not None:
                deep = image_rows[:, cfg.dim * (layer + 1) : cfg.dim * (layer + 2)]
                x = x.copy()  # what the tap was given stays as it was
                x[image_positions] += deep
        cache.advance(len(ids))

        if logits == "none":
            return np.zeros((0, cfg.vocab_size), x.dtype)
        if logits == "last":
            x = x[-1:]
        x = tap("ln_final.hook_normalized", self.norm("model.norm", x))
        return self.unembed(x)  # (T, vocab_size)

    def _begin(
        self,
        ids: NDArray[np.int64],
        cache: KVCache,
        image_positions: NDArray[np.int64] | None,
        image_rows: NDArray[np.float32] | None,
        tap: Tap,
    ) -> tuple[Array, dict[str, Rotation]]:
        """The tokens' embeddings, (T, dim), and how they turn, by a layer's `rotary`."""
        cfg, w = self.config, self.weights
        positions = np.arange(cache.length, cache.length + len(ids))  # absolute, (T,)
        x = scaled(w["model.embed_tokens.weight"][ids], cfg.embedding_scale)  # (T, dim)
        if image_positions is not None and image_rows is not None:
            x[image_positions] = image_rows[:, : cfg.dim]  # the rest is for deeper layers
        x = tap("hook_embed", x)
        if cfg.learned_positions:
            x = x + w["model.embed_positions.weight"][positions]
        seen = None
        if cfg.images_see_ahead and image_positions is not None:
            seen = positions[0] + seen_with_images(len(ids), image_positions)
        if cfg.axes is not None:
            positions, after = places(len(ids), cache.next_place, image_positions, image_rows)
            cache.place(after)
        return x, self._rotations(positions, cache, x.dtype, seen)

    def _block(self, layer: int, x: Array, rotation: Rotation, cache: KVCache, tap: Tap) -> Array:
        """One layer: x + attention(norm(x)), then that + mlp(norm(that)); (T, dim) → (T, dim).

        Where attention and MLP stand side by side (`parallel`), both read x, and both are added.
        """
        cfg = self.config
        block, hook = f"model.layers.{layer}", f"blocks.{layer}"

        x = tap(f"{hook}.hook_resid_pre", x)
        normed = x
        if cfg.norm_before:
            normed = tap(f"{hook}.ln1.hook_normalized", self.norm(f"{block}.input_layernorm", x))
        attn_out = self._attention(layer, normed, rotation, cache, tap)
        if cfg.norm_after:
            attn_out = self.norm(f"{block}.attention_output_norm", attn_out)
        attn_out = tap(f"{hook}.hook_attn_out", scaled(attn_out, cfg.residual_scale))
        if cfg.parallel == "no":
            x = tap(f"{hook}.hook_resid_mid", x + attn_out)

        # What the MLP reads: x behind a norm of its own; x itself where there are no norms before;
        # or, with one norm for both, what attention read.
        if cfg.norm_before and cfg.parallel != "one norm":
            normed = self.norm(f"{block}.post_attention_layernorm", x)
            normed = tap(f"{hook}.ln2.hook_normalized", normed)
        elif cfg.parallel == "no":
            normed = x
        mlp_out = self._mlp(layer, normed, tap)
        if cfg.norm_after:
            mlp_out = self.norm(f"{block}.mlp_output_norm", mlp_out)
        mlp_out = tap(f"{hook}.hook_mlp_out", scaled(mlp_out, cfg.residual_scale))
        if cfg.parallel != "no":
            x = x + attn_out
        return tap(f"{hook}.hook_resid_post", x + mlp_out)

    def _attention(
        self, layer: int, x: Array, rotation: Rotation, cache: KVCache, tap: Tap
    ) -> Array:
        """What each position takes from those before it; x is normed, (T, dim) → (T, dim)."""
        cfg, n_tokens = self.config, len(x)
        proj, hook = f"model.layers.{layer}.self_attn", f"blocks.{layer}.attn"

        q = self.linear(f"{proj}.q_proj", x).reshape(n_tokens, cfg.n_heads, cfg.head_dim)
        k = self.linear(f"{proj}.k_proj", x).reshape(n_tokens, cfg.n_kv_heads, cfg.head_dim)
        v = self.linear(f"{proj}.v_proj", x).reshape(n_tokens, cfg.n_kv_heads, cfg.head_dim)
        q, k, v = tap(f"{hook}.hook_q", q), tap(f"{hook}.hook_k", k), tap(f"{hook}.hook_v", v)

        z = self._attend(layer, q, k, v, rotation, cache, tap)
        return self.linear(f"{proj}.o_proj", z.reshape(n_tokens, -1))

    def _attend(
        self, layer: int, q: Array, k: Array, v: Array, rotation: Rotation, cache: KVCache, tap: Tap
    ) -> Array:
        """What each head mixes of the values it looks at; (T, heads, head_dim) each, and back."""
        cfg, proj, hook = self.config, f"model.layers.{layer}.self_attn", f"blocks.{layer}.attn"
        if cfg.qk_norm != "no" and not cfg.qk_norm_last:
            q, k = self._norm_heads(layer, q, k, tap)
        if cfg.qkv_clip is not None:
            q, k, v = (np.clip(heads, -cfg.qkv_clip, cfg.qkv_clip) for heads in (q, k, v))
        if rotation.turns:
            q = tap(f"{hook}.hook_rot_q", rotation.turn(q))
            k = tap(f"{hook}.hook_rot_k", rotation.turn(k))
        if cfg.qk_norm != "no" and cfg.qk_norm_last:
            q, k = self._norm_heads(layer, q, k, tap)
        keys, values = cache.append(layer, k, v)  # (S, n_kv_heads, head_dim) each

        scores = ops.attention_scores(
            rotation.scale_queries(q), keys, cfg.attention_scale, cfg.score_cap,
            cfg.layer(layer).window, rotation.seen,
        )  # fmt: skip
        scores = tap(f"{hook}.hook_attn_scores", scores)  # (n_heads, T, S)
        if cfg.sinks:
            pattern = ops.softmax_with_sink(scores, self.weights[f"{proj}.sinks"])
        else:
            pattern = ops.softmax(scores)
        pattern = tap(f"{hook}.hook_pattern", pattern)
        return tap(f"{hook}.hook_z", ops.attention_mix(pattern, values))

    def _mlp(self, layer: int, x: Array, tap: Tap) -> Array:
        """down(act(gate(x)) · up(x)), or down(act(up(x))), or experts; (T, dim) → (T, dim)."""
        if self.config.layer(layer).experts:
            return self._experts(layer, x, tap)
        mlp, hook = f"model.layers.{layer}.mlp", f"blocks.{layer}.mlp"
        if self.config.gated:
            gate = tap(f"{hook}.hook_pre", self.linear(f"{mlp}.gate_proj", x))
            up = tap(f"{hook}.hook_pre_linear", self.linear(f"{mlp}.up_proj", x))
            post = self._gated(gate, up)
        else:
            post = self._activate(mlp, tap(f"{hook}.hook_pre", self.linear(f"{mlp}.up_proj", x)))
        post = tap(f"{hook}.hook_post", post)  # (T, hidden_dim)
        return self.linear(f"{mlp}.down_proj", post)

    def _experts(self, layer: int, x: Array, tap: Tap) -> Array:
        """Each token's k best experts, weighted; only chosen experts' weights are touched."""
        mlp, hook = f"model.layers.{layer}.mlp", f"blocks.{layer}.mlp"
        experts = self.config.experts
        assert experts is not None
        scores = tap(f"{hook}.hook_router", self.linear(f"{mlp}.router", x))  # (T, n)
        weights = ops.expert_weights(scores, experts.k, experts.weights == "normalised")
        weights = tap(f"{hook}.hook_expert_weights", weights)  # (T, n): 0 where not chosen
        chosen = ops.largest(weights, experts.k)  # (T, k), best first

        def through(matrix: str, rows: Array) -> Array:
            """Each token's k rows, (T, k, in), each through its own expert's matrix."""
            width = self.config.dim if matrix == "down_proj" else experts.hidden_dim
            out = np.empty((*chosen.shape, width), x.dtype)
            for e in np.unique(chosen):
                out[chosen == e] = self.linear(f"{mlp}.experts.{e}.{matrix}", rows[chosen == e])
            return out

        rows = np.broadcast_to(x[:, None], (*chosen.shape, x.shape[-1]))
        gate = tap(f"{hook}.experts.hook_pre", through("gate_proj", rows))
        up = tap(f"{hook}.experts.hook_pre_linear", through("up_proj", rows))
        post = tap(f"{hook}.experts.hook_post", self._gated(gate, up))  # (T, k, its hidden_dim)
        y = tap(f"{hook}.experts.hook_out", through("down_proj", post))  # (T, k, dim)
        share = np.take_along_axis(weights, chosen, axis=-1)
        out: Array = (share[..., None] * y).sum(axis=1, dtype=x.dtype)
        return out

    # The parts that those are made of -----------------------------------------------------------

    def product(self, x: Array, weight: Array) -> Array:
        """x Wᵀ; (T, in) and (out, in) → (T, out)."""
        return ops.linear(x, weight)

    def linear(self, name: str, x: Array) -> Array:
        """x Wᵀ, plus a bias where the family has one; (T, in) → (T, out)."""
        y = self.product(x, self.weights[f"{name}.weight"])
        bias = self.weights.get(f"{name}.bias")
        return y if bias is None else y + bias

    def norm(self, name: str, x: Array) -> Array:
        """The family's norm over the residual stream, (T, dim) → (T, dim)."""
        weight, eps = self.weights.get(f"{name}.weight"), self.config.norm_eps
        if self.config.norm == "rms":
            return ops.rms_norm(x, cast(Array, weight), eps)
        return ops.layer_norm(x, weight, self.weights.get(f"{name}.bias"), eps)

    def unembed(self, x: Array) -> Array:
        """Logits of normed rows of the residual stream; (T, dim) → (T, vocab_size)."""
        cfg = self.config
        with few_threads():
            logits = self.product(x, self.head_weight)
        bias = self.weights.get("lm_head.bias")
        logits = scaled(logits if bias is None else logits + bias, cfg.logit_scale)
        return logits if cfg.logit_cap is None else ops.soft_cap(logits, cfg.logit_cap)

    def _norm_heads(self, layer: int, q: Array, k: Array, tap: Tap) -> tuple[Array, Array]:
        """Queries and keys, each head normed by itself or all together; (T, heads, head_dim)."""
        proj, hook = f"model.layers.{layer}.self_attn", f"blocks.{layer}.attn"

        def normed(x: Array, name: str) -> Array:
            whole = self.config.qk_norm == "whole"
            rows = x.reshape(len(x), -1) if whole else x
            return self.norm(f"{proj}.{name}", rows).reshape(x.shape)

        q = tap(f"{hook}.q_norm.hook_normalized", normed(q, "q_norm"))
        return q, tap(f"{hook}.k_norm.hook_normalized", normed(k, "k_norm"))

    def _gated(self, gate: Array, up: Array) -> Array:
        """act(gate) · up, (T, hidden_dim)."""
        cfg = self.config
        if cfg.act_alpha is not None and cfg.act_limit is not None:
            return ops.clamped_swiglu(gate, up, cfg.act_alpha, cfg.act_limit)
        if cfg.activation == "silu":
            return ops.swiglu(gate, up)
        return self._activate("", gate) * up

    def _activate(self, mlp: str, x: Array) -> Array:
        """The family's activation, elementwise."""
        name = self.config.activation
        if name == "xielu":
            w = self.weights
            return ops.xielu(x, w[f"{mlp}.act.alpha_p"], w[f"{mlp}.act.alpha_n"])
        return cast("Callable[[Array], Array]", getattr(ops, name))(x)

    def _rotations(
        self,
        positions: NDArray[np.int64],
        cache: KVCache,
        dtype: Any,
        seen: NDArray[np.int64] | None,
    ) -> dict[str, Rotation]:
        """What turns queries and keys at these positions, by a layer's `rotary`."""
        cfg = self.config
        grown = None
        if cfg.temperature is not None:
            grown = ops.temperature(positions, cfg.temperature.beta, cfg.temperature.length)
        tables = {"none": Rotation(None, None, grown, seen=seen)}
        if cfg.learned_positions:  # they were added to the embeddings; no layer turns
            return {**tables, "global": tables["none"]}
        kinds = {cfg.layer(i).rotary for i in range(cfg.n_layers)} - {"none"}
        for kind in kinds:
            own = cfg.local() if kind == "local" else cfg
            cos, sin = ops.rope_tables(own.for_context(cache.context), positions, dtype)
            tables[kind] = Rotation(cos, sin, grown, cfg.rope_pairs == "neighbours", seen)
        return tables

    @property
    def head_weight(self) -> Array:
        """The unembedding, (vocab_size, dim); the embedding itself where the two are tied."""
        tied = self.config.tie_embeddings
        return self.weights["model.embed_tokens.weight" if tied else "lm_head.weight"]

    def prefill(
        self,
        tokens: Sequence[int] | NDArray[np.integer[Any]],
        cache: KVCache,
        *,
        logits: Wanted = "last",
        chunk: int = PREFILL_CHUNK,
        image_positions: NDArray[np.int64] | None = None,
        image_rows: NDArray[np.float32] | None = None,
        tap: Tap | None = None,
    ) -> Array:
        """`forward` in chunks, so that a long prompt needs no long score matrix."""
        ids = self._check_tokens(tokens)
        cache.reserve(len(ids))
        parts = [np.zeros((0, self.config.vocab_size), np.float32)]
        for start, end in calls(self.config, image_positions, len(ids), chunk):
            part = ids[start:end]
            is_last = end == len(ids)
            where, rows = images_between(image_positions, image_rows, start, end)
            wanted: Wanted = logits if is_last or logits == "all" else "none"
            parts.append(
                self.forward(
                    part,
                    cache,
                    logits=wanted,
                    image_positions=where,
                    image_rows=rows,
                    tap=tap,
                )
            )
        return np.concatenate(parts) if len(parts) > 2 else parts[-1]

    def new_cache(self, capacity: int | None = None, context: int | None = None) -> KVCache:
        """An empty contiguous cache of the weights' own precision; lengths as in `KVCache`."""
        dtype = self.weights["model.embed_tokens.weight"].dtype
        return KVCache(self.config, capacity, dtype, context)

    def forward_batch(self, segments: Sequence[Segment]) -> list[NDArray[np.float32]]:
        """The `Runner` protocol: one segment after the other."""
        return [
            cast(
                "NDArray[np.float32]",
                self.prefill(
                    s.tokens,
                    cast(KVCache, s.cache),
                    logits=s.logits,
                    image_positions=s.image_positions,
                    image_rows=s.image_rows,
                ),
            )
            for s in segments
        ]

    @property
    def fingerprint(self) -> str:
        """Hash of the shape, the path and a sample of every tensor's bytes."""
        if self._fingerprint is None:
            self._fingerprint = weights_fingerprint(
                self.config, self.weights, f"numpy-{self.dtype}"
            )
        return self._fingerprint

    def _check_tokens(self, tokens: Sequence[int] | NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        ids = np.asarray(tokens, dtype=np.int64)
        if ids.ndim != 1:
            raise ValueError(f"tokens must be one-dimensional, not of shape {ids.shape}")
        if ids.size and not (ids.min() >= 0 and ids.max() < self.config.vocab_size):
            bad = ids[(ids < 0) | (ids >= self.config.vocab_size)][0]
            raise ValueError(f"token id {bad} is not in the vocabulary of {self.config.vocab_size}")
        return ids


def _no_tap(name: str, array: Array) -> Array:
    return array
