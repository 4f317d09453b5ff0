"""The transformer, top to bottom, in the order in which a token meets it.

    tokens → embeddings → n_layers × (attention, MLP) → norm → logits

Every line is a line of the Llama architecture (https://arxiv.org/abs/2302.13971), in float32
numpy. `tap` is called at each hook point with a name and an array, and what it returns is used
from there on: `trace.py` builds looking and changing on it. The compiled path, `compiled.py`,
computes the same thing faster and is held to this file by tests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from tinyllm.config import ModelConfig
from tinyllm.kernels import reference as ops
from tinyllm.kv_cache import KVCache
from tinyllm.runner import Array, Segment, Wanted, weights_fingerprint

Tap = Callable[[str, Array], Array]

PREFILL_CHUNK = 512  # tokens a forward: bounds the (n_heads, T, S) score matrices


class Model:
    """A Llama-family decoder over a checkpoint's own tensors.

    Args:
        config: the shape.
        weights: hub name → float32 array, as `weights.load_weights` returns. Passing float64
            arrays makes the whole computation float64.
    """

    dtype = "f32"
    batch_invariant = False  # numpy's matrix products sum in an order that hangs on the shape

    def __init__(self, config: ModelConfig, weights: Mapping[str, Array]) -> None:
        self.config = config
        self.weights = weights
        self._fingerprint: str | None = None

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
        cfg, w = self.config, self.weights
        tap = tap or _no_tap
        ids = self._check_tokens(tokens)
        if ids.size == 0:
            return np.zeros((0, cfg.vocab_size), np.float32)
        cache.reserve(len(ids))
        positions = np.arange(cache.length, cache.length + len(ids))  # absolute, (T,)

        x = w["model.embed_tokens.weight"][ids]  # (T, dim)
        if image_positions is not None and image_rows is not None:
            x[image_positions] = image_rows
        x = tap("hook_embed", x)
        cos, sin = ops.rope_tables(cfg, positions, x.dtype)  # (T, head_dim / 2) each

        for layer in range(cfg.n_layers):
            x = self._block(layer, x, cos, sin, cache, tap)
        cache.advance(len(ids))

        if logits == "none":
            return np.zeros((0, cfg.vocab_size), x.dtype)
        if logits == "last":
            x = x[-1:]
        x = tap("ln_final.hook_normalized", ops.rms_norm(x, w["model.norm.weight"], cfg.norm_eps))
        return ops.linear(x, self.head_weight)  # (T, vocab_size)

    def _block(
        self, layer: int, x: Array, cos: Array, sin: Array, cache: KVCache, tap: Tap
    ) -> Array:
        """One layer: x + attention(norm(x)), then that + mlp(norm(that)); (T, dim) → (T, dim)."""
        cfg, w = self.config, self.weights
        block, hook = f"model.layers.{layer}", f"blocks.{layer}"

        x = tap(f"{hook}.hook_resid_pre", x)
        normed = ops.rms_norm(x, w[f"{block}.input_layernorm.weight"], cfg.norm_eps)
        normed = tap(f"{hook}.ln1.hook_normalized", normed)
        attn_out = self._attention(layer, normed, cos, sin, cache, tap)
        x = tap(f"{hook}.hook_resid_mid", x + tap(f"{hook}.hook_attn_out", attn_out))

        normed = ops.rms_norm(x, w[f"{block}.post_attention_layernorm.weight"], cfg.norm_eps)
        normed = tap(f"{hook}.ln2.hook_normalized", normed)
        mlp_out = self._mlp(layer, normed, tap)
        return tap(f"{hook}.hook_resid_post", x + tap(f"{hook}.hook_mlp_out", mlp_out))

    def _attention(
        self, layer: int, x: Array, cos: Array, sin: Array, cache: KVCache, tap: Tap
    ) -> Array:
        """What each position takes from those before it; x is normed, (T, dim) → (T, dim)."""
        cfg, w = self.config, self.weights
        proj, hook = f"model.layers.{layer}.self_attn", f"blocks.{layer}.attn"
        n_tokens = len(x)

        q = ops.linear(x, w[f"{proj}.q_proj.weight"]).reshape(n_tokens, cfg.n_heads, cfg.head_dim)
        k = ops.linear(x, w[f"{proj}.k_proj.weight"]).reshape(
            n_tokens, cfg.n_kv_heads, cfg.head_dim
        )
        v = ops.linear(x, w[f"{proj}.v_proj.weight"]).reshape(
            n_tokens, cfg.n_kv_heads, cfg.head_dim
        )
        q, k, v = tap(f"{hook}.hook_q", q), tap(f"{hook}.hook_k", k), tap(f"{hook}.hook_v", v)

        q = tap(f"{hook}.hook_rot_q", ops.apply_rope(q, cos, sin))
        k = tap(f"{hook}.hook_rot_k", ops.apply_rope(k, cos, sin))
        keys, values = cache.append(layer, k, v)  # (S, n_kv_heads, head_dim) each

        scores = tap(f"{hook}.hook_attn_scores", ops.attention_scores(q, keys))  # (n_heads, T, S)
        pattern = tap(f"{hook}.hook_pattern", ops.softmax(scores))
        z = tap(f"{hook}.hook_z", ops.attention_mix(pattern, values))  # (T, n_heads, head_dim)
        return ops.linear(z.reshape(n_tokens, -1), w[f"{proj}.o_proj.weight"])

    def _mlp(self, layer: int, x: Array, tap: Tap) -> Array:
        """SwiGLU: down(silu(gate(x)) · up(x)); (T, dim) → (T, dim)."""
        w = self.weights
        proj, hook = f"model.layers.{layer}.mlp", f"blocks.{layer}.mlp"
        gate = tap(f"{hook}.hook_pre", ops.linear(x, w[f"{proj}.gate_proj.weight"]))
        up = tap(f"{hook}.hook_pre_linear", ops.linear(x, w[f"{proj}.up_proj.weight"]))
        post = tap(f"{hook}.hook_post", ops.swiglu(gate, up))  # (T, hidden_dim)
        return ops.linear(post, w[f"{proj}.down_proj.weight"])

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
        for start in range(0, len(ids), chunk):
            part = ids[start : start + chunk]
            is_last = start + chunk >= len(ids)
            inside = rows = None
            if image_positions is not None and image_rows is not None:
                here = (image_positions >= start) & (image_positions < start + len(part))
                inside, rows = image_positions[here] - start, image_rows[here]
            wanted: Wanted = logits if is_last or logits == "all" else "none"
            parts.append(
                self.forward(
                    part,
                    cache,
                    logits=wanted,
                    image_positions=inside,
                    image_rows=rows,
                    tap=tap,
                )
            )
        return np.concatenate(parts) if len(parts) > 2 else parts[-1]

    def new_cache(self, capacity: int | None = None) -> KVCache:
        """An empty contiguous cache of the weights' own precision."""
        return KVCache(self.config, capacity, self.weights["model.norm.weight"].dtype)

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
