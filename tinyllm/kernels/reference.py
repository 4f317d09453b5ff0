"""The operations of a Llama-family transformer in plain numpy: the definition of what is right.

Every function takes and returns float32 arrays (float64 ones stay float64, for checks) and
follows the formula of its paper line by line. Shapes: T tokens are being computed, S positions
are visible to them (S >= T), H query heads share KV key/value heads.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyllm.config import ModelConfig

Array = NDArray[np.floating[Any]]


LONG_SUM = 1024  # terms; a float32 sum of more is taken in blocks
SUM_BLOCK = 64


def linear(x: Array, weight: Array) -> Array:
    """y = x Wᵀ; x (T, in), weight (out, in) as checkpoints store it → (T, out).

    A matrix product adds up term by term, and once a huge term is in the sum, every further
    addition rounds at its size. The MLPs' inputs hold such terms ("massive activations", Sun et
    al. 2024, https://arxiv.org/abs/2402.17762), so long sums are taken in blocks and the blocks
    added in float64: that halves SmolLM2's distance to an exact run. A single row needs none of
    it, because BLAS sums it in many lanes at once.
    """
    n_in = weight.shape[1]
    if n_in <= LONG_SUM or len(x) == 1 or x.dtype != np.float32:
        return x @ weight.T
    y = np.zeros((len(x), len(weight)), np.float64)
    for block in range(0, n_in, SUM_BLOCK):
        here = slice(block, block + SUM_BLOCK)
        y += x[:, here] @ weight[:, here].T
    return y.astype(np.float32)


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """Scale each row to unit root mean square, then by `weight`; (T, dim) → (T, dim).

    Zhang & Sennrich 2019, https://arxiv.org/abs/1910.07467.
    """
    return x * rms_scale(x, eps) * weight


def rms_scale(x: Array, eps: float) -> Array:
    """1 / sqrt(mean(x²) + eps) of each row, (T, 1); the mean is taken in float64."""
    mean_square = np.mean(np.square(x, dtype=np.float64), axis=-1, keepdims=True)
    scale: Array = (1.0 / np.sqrt(mean_square + eps)).astype(x.dtype)
    return scale


def rope_frequencies(config: ModelConfig) -> NDArray[np.float32]:
    """Radians a position that each rotary pair turns, (head_dim / 2,) float32.

    Su et al. 2021, https://arxiv.org/abs/2104.09864: θᵢ = rope_theta^(-2i / head_dim).
    """
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    # The power in float64, rounded once, is what the field's float32 libraries give as well.
    powers = np.power(config.rope_theta, exponents.astype(np.float64)).astype(np.float32)
    freqs: NDArray[np.float32] = np.float32(1.0) / powers
    scaling = config.rope_scaling
    if scaling is None:
        return freqs
    if scaling.kind == "linear":
        freqs /= np.float32(scaling.factor)
        return freqs
    # llama3: wavelengths longer than the original context are stretched, short ones are kept,
    # and those between are blended.
    turns = scaling.original_max_seq_len * freqs / (2 * math.pi)  # within the original context
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
    scaled: NDArray[np.float32] = freqs * (keep + (1 - keep) / np.float32(scaling.factor))
    return scaled.astype(np.float32)


def rope_tables(
    config: ModelConfig, positions: NDArray[np.int64], dtype: Any = np.float32
) -> tuple[Array, Array]:
    """cos and sin of every position's angles, each (T, head_dim / 2).

    The angle is a float32 product, on purpose: models are trained and published with it
    (`transformers/models/llama/modeling_llama.py` forces float32 even in a float64 run), and at
    position 1,500 an exact angle already moves SmolLM2's logits by 3e-4.
    """
    angles = positions.astype(np.float32)[:, None] * rope_frequencies(config)  # (T, head_dim / 2)
    return np.cos(angles, dtype=np.float64).astype(dtype), np.sin(angles, dtype=np.float64).astype(
        dtype
    )


def apply_rope(x: Array, cos: Array, sin: Array) -> Array:
    """Rotate each head's pairs by its position's angles; x (T, heads, head_dim).

    Half-split pairing: element i turns with element i + head_dim/2. (GGUF files interleave the
    pairs, i with i + 1, and permute the rows of Q and K to match.)
    """
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]  # (T, heads, head_dim / 2)
    cos, sin = cos[:, None, :], sin[:, None, :]  # the same for every head
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def causal_mask(n_tokens: int, n_visible: int) -> NDArray[np.bool_]:
    """(T, S) bool: may query t, the (S - T + t)-th position, see key s?"""
    query_position = np.arange(n_visible - n_tokens, n_visible)[:, None]  # (T, 1)
    key_position = np.arange(n_visible)[None, :]  # (1, S)
    return key_position <= query_position


def attention_scores(q: Array, keys: Array) -> Array:
    """q·k / sqrt(head_dim) for every query and key, masked with -inf; → (H, T, S).

    q (T, H, head_dim); keys (S, KV, head_dim). Query head h reads key head h // (H / KV):
    grouped-query attention, https://arxiv.org/abs/2305.13245.
    """
    n_tokens, n_heads, head_dim = q.shape
    n_visible, n_kv_heads, _ = keys.shape
    group = n_heads // n_kv_heads
    # All queries of a group meet their key head in one matrix product.
    by_head = q.reshape(n_tokens, n_kv_heads, group, head_dim).transpose(1, 2, 0, 3)
    grouped = by_head.reshape(n_kv_heads, group * n_tokens, head_dim)
    scores: Array = (grouped @ keys.transpose(1, 2, 0)).reshape(n_heads, n_tokens, n_visible)
    scores *= 1.0 / math.sqrt(head_dim)  # a Python float: np.sqrt would promote to float64
    if n_tokens > 1:
        np.copyto(scores, -np.inf, where=~causal_mask(n_tokens, n_visible))
    return scores


def softmax(scores: Array) -> Array:
    """exp(x) / Σ exp(x) over the last axis; the maximum is taken out first so exp can't overflow.

    A row of nothing but -inf sees nothing, and gives zeros.
    """
    top = scores.max(axis=-1, keepdims=True, initial=-np.inf)
    weights: Array = np.exp(scores - np.where(np.isneginf(top), 0.0, top).astype(scores.dtype))
    total = weights.sum(axis=-1, keepdims=True)
    weights /= np.where(total == 0.0, 1.0, total).astype(scores.dtype)
    return weights


def attention_mix(pattern: Array, values: Array) -> Array:
    """Each query's weighted sum of values, (T, H, head_dim).

    pattern (H, T, S), its rows summing to 1; values (S, KV, head_dim).
    """
    n_heads, n_tokens, n_visible = pattern.shape
    _, n_kv_heads, head_dim = values.shape
    grouped = pattern.reshape(n_kv_heads, -1, n_visible)  # (KV, group·T, S)
    z: Array = grouped @ values.transpose(1, 0, 2)  # (KV, group·T, head_dim)
    return z.reshape(n_heads, n_tokens, head_dim).transpose(1, 0, 2)


def attention(q: Array, keys: Array, values: Array) -> Array:
    """Causal attention of the last T of S positions: softmax(q kᵀ / √d) v → (T, H, head_dim).

    Vaswani et al. 2017, https://arxiv.org/abs/1706.03762.
    """
    return attention_mix(softmax(attention_scores(q, keys)), values)


def silu(x: Array) -> Array:
    """x · sigmoid(x), https://arxiv.org/abs/1702.03118; sigmoid by tanh, which can't overflow."""
    sigmoid: Array = 0.5 * np.tanh(0.5 * x) + 0.5
    return x * sigmoid


def swiglu(gate: Array, up: Array) -> Array:
    """silu(gate) · up, elementwise; Shazeer 2020, https://arxiv.org/abs/2002.05202."""
    return silu(gate) * up
