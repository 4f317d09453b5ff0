"""The operations of a decoder in plain numpy: the definition of what is right.

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
from tinyllm.families.parts import RopeScaling

Array = NDArray[np.floating[Any]]


LONG_SUM = 1024  # terms; a float32 sum of more is taken in blocks
SUM_BLOCK = 64
FEW_ROWS = 64


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
        return np.ascontiguousarray(_product(x, weight))
    y = np.zeros((len(x), len(weight)), np.float64, order="F" if len(x) <= FEW_ROWS else "C")
    for block in range(0, n_in, SUM_BLOCK):
        here = slice(block, block + SUM_BLOCK)
        y += _product(x[:, here], weight[:, here])
    return y.astype(np.float32, order="C")


def _product(x: Array, weight: Array) -> Array:
    """x Wᵀ, of a few rows as (W xᵀ)ᵀ.

    BLAS rearranges both factors before it multiplies, the second one in parts that stay in the
    processor's cache. Beside few rows W is the larger: with it there, 40 rows take a sixth less.
    """
    if 1 < len(x) <= FEW_ROWS:
        return (weight @ x.T).T
    return x @ weight.T


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


def layer_norm(x: Array, weight: Array | None, bias: Array | None, eps: float) -> Array:
    """Take out each row's mean, scale to unit variance, then by `weight`, plus `bias`.

    Ba et al. 2016, https://arxiv.org/abs/1607.06450. (…, dim) → (…, dim).
    """
    mean = np.mean(x, axis=-1, keepdims=True, dtype=np.float64)
    centred = (x - mean).astype(x.dtype)
    normed = centred * rms_scale(centred, eps)
    if weight is not None:
        normed = normed * weight
    return normed if bias is None else normed + bias


def rope_frequencies(config: ModelConfig) -> NDArray[np.float32]:
    """Radians a position that each rotary pair turns, (config.turned / 2,) float32.

    Su et al. 2021, https://arxiv.org/abs/2104.09864: θᵢ = rope_theta^(-2i / d) for a head's d
    turning elements.
    """
    exponents = np.arange(0, config.turned, 2, dtype=np.float32) / np.float32(config.turned)
    # The power in float64, rounded once, is what the field's float32 libraries give as well.
    powers = np.power(config.rope_theta, exponents.astype(np.float64)).astype(np.float32)
    freqs: NDArray[np.float32] = np.float32(1.0) / powers
    scaling = config.rope_scaling
    if scaling is None or scaling.kind == "dynamic":  # stretched beyond max_seq_len only
        return freqs
    if scaling.kind == "linear":
        freqs /= np.float32(scaling.factor)
        return freqs
    if scaling.kind == "longrope":
        is_long = config.max_seq_len > scaling.original_max_seq_len
        own = np.array(scaling.long if is_long else scaling.short, np.float32)
        return np.float32(1.0) / (own * powers)
    if scaling.kind == "yarn":
        keep = yarn_kept(scaling, config.turned, config.rope_theta)
    else:
        # llama3: wavelengths longer than the original context are stretched, short ones are kept,
        # and those between are blended.
        turns = scaling.original_max_seq_len * freqs / (2 * math.pi)  # within the original context
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
    scaled: NDArray[np.float32] = freqs * (keep + (1 - keep) / np.float32(scaling.factor))
    return scaled.astype(np.float32)


def yarn_kept(scaling: RopeScaling, dim: int, theta: float) -> NDArray[np.float32]:
    """How much of each frequency yarn keeps, (dim / 2,) in 0 … 1; the rest is divided by factor.

    Pairs that turn more than beta_fast times within the original context are kept, those that turn
    less than beta_slow times are stretched, on a straight ramp between
    (Peng et al. 2023, https://arxiv.org/abs/2309.00071).
    """

    def pair_that_turns(times: float) -> float:
        length = scaling.original_max_seq_len / (times * 2 * math.pi)
        return dim * math.log(length) / (2 * math.log(theta))

    first, last = pair_that_turns(scaling.beta_fast), pair_that_turns(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dim - 1)
    if first == last:
        last += 0.001  # a step
    ramp = (np.arange(dim // 2, dtype=np.float32) - first) / (last - first)
    kept: NDArray[np.float32] = 1 - np.clip(ramp, 0, 1)
    return kept


def rope_tables(
    config: ModelConfig, positions: NDArray[np.int64], dtype: Any = np.float32
) -> tuple[Array, Array]:
    """cos and sin of every position's angles, each (T, config.turned / 2).

    Positions are (T,), or (3, T): by time, height and width, of which each pair takes one.

    The angle is a float32 product, on purpose: models are trained and published with it
    (`transformers/models/llama/modeling_llama.py` forces float32 even in a float64 run), and at
    position 1,500 an exact angle already moves SmolLM2's logits by 3e-4. Yarn and longrope have
    both times a factor, which makes every score grow by its square.
    """
    of_pairs = positions[:, None] if positions.ndim == 1 else positions[rope_axes(config)].T
    angles = of_pairs.astype(np.float32) * rope_frequencies(config)  # (T, turned / 2)
    grown = config.rope_scaling.attention_factor if config.rope_scaling else 1.0
    return (np.cos(angles, dtype=np.float64) * grown).astype(dtype), (
        np.sin(angles, dtype=np.float64) * grown
    ).astype(dtype)


def rope_axes(config: ModelConfig) -> NDArray[np.intp]:
    """By which axis each pair turns, (turned / 2,): 0 time, 1 height, 2 width, interleaved.

    Bai et al. 2025 (Qwen3-VL), https://arxiv.org/abs/2511.21631.
    """
    axes = np.zeros(config.turned // 2, np.intp)
    for axis in (1, 2):
        axes[axis : 3 * (config.axes or (0, 0, 0))[axis] : 3] = axis
    return axes


def apply_rope(x: Array, cos: Array, sin: Array) -> Array:
    """Rotate each head's pairs by its position's angles; x (T, heads, head_dim).

    Half-split pairing: element i turns with element i + d/2, where d = 2 · cos.shape[1] elements
    of a head turn and the rest stays. (GGUF files interleave the pairs, i with i + 1, and permute
    the rows of Q and K to match.)
    """
    half = cos.shape[-1]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    cos, sin = cos[:, None, :], sin[:, None, :]  # the same for every head
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)


def apply_rope_neighbours(x: Array, cos: Array, sin: Array) -> Array:
    """The same where element 2i turns with element 2i + 1."""
    n = 2 * cos.shape[-1]
    a, b = x[..., 0:n:2], x[..., 1:n:2]
    cos, sin = cos[:, None, :], sin[:, None, :]
    out = x.copy()
    out[..., 0:n:2], out[..., 1:n:2] = a * cos - b * sin, b * cos + a * sin
    return out


def temperature(positions: NDArray[np.int64], beta: float, length: int) -> NDArray[np.float64]:
    """What queries at these positions are multiplied by, (T,): 1 within the first `length`."""
    grown: NDArray[np.float64] = 1 + beta * np.log(1 + positions // length)
    return grown


def causal_mask(n_tokens: int, n_visible: int) -> NDArray[np.bool_]:
    """(T, S) bool: may query t, the (S - T + t)-th position, see key s?"""
    query_position = np.arange(n_visible - n_tokens, n_visible)[:, None]  # (T, 1)
    key_position = np.arange(n_visible)[None, :]  # (1, S)
    return key_position <= query_position


def window_mask(n_tokens: int, n_visible: int, window: int) -> NDArray[np.bool_]:
    """(T, S) bool: is key s one of the last `window` positions up to query t's own?"""
    query_position = np.arange(n_visible - n_tokens, n_visible)[:, None]  # (T, 1)
    key_position = np.arange(n_visible)[None, :]  # (1, S)
    return key_position > query_position - window


def attention_scores(
    q: Array,
    keys: Array,
    scale: float | None = None,
    cap: float | None = None,
    window: int | None = None,
    seen: NDArray[np.int64] | None = None,
) -> Array:
    """q·k · scale for every query and key, masked with -inf; → (H, T, S).

    q (T, H, head_dim); keys (S, KV, head_dim); scale: by default 1 / sqrt(head_dim); cap: scores
    go through `soft_cap`; window: a query sees its own and the window - 1 positions before;
    seen: (T,) how many keys each query may see, by default those up to its own.
    Query head h reads key head h // (H / KV): grouped-query attention,
    https://arxiv.org/abs/2305.13245.
    """
    n_tokens, n_heads, head_dim = q.shape
    n_visible, n_kv_heads, _ = keys.shape
    group = n_heads // n_kv_heads
    # All queries of a group meet their key head in one matrix product.
    by_head = q.reshape(n_tokens, n_kv_heads, group, head_dim).transpose(1, 2, 0, 3)
    grouped = by_head.reshape(n_kv_heads, group * n_tokens, head_dim)
    scores: Array = (grouped @ keys.transpose(1, 2, 0)).reshape(n_heads, n_tokens, n_visible)
    # A Python float: np.sqrt would promote to float64.
    scores *= 1.0 / math.sqrt(head_dim) if scale is None else scale
    if cap is not None:
        scores = soft_cap(scores, cap)
    if seen is not None:
        np.copyto(scores, -np.inf, where=np.arange(n_visible) >= seen[:, None])
    elif n_tokens > 1:
        np.copyto(scores, -np.inf, where=~causal_mask(n_tokens, n_visible))
    if window is not None and n_visible > window:
        np.copyto(scores, -np.inf, where=~window_mask(n_tokens, n_visible, window))
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


def soft_cap(x: Array, cap: float) -> Array:
    """cap · tanh(x / cap): about x where that is small, never beyond ±cap (Gemma 2)."""
    capped: Array = cap * np.tanh(x / cap)
    return capped


def softmax_with_sink(scores: Array, sinks: Array) -> Array:
    """Softmax over keys and one score more a head, whose weight is dropped; rows sum to < 1.

    scores (H, T, S); sinks (H,). A head can so look at nothing (gpt-oss; Xiao et al. 2023,
    https://arxiv.org/abs/2309.17453).
    """
    sink = np.broadcast_to(sinks.astype(scores.dtype)[:, None, None], (*scores.shape[:2], 1))
    return softmax(np.concatenate([scores, sink], axis=-1))[..., :-1]


def silu(x: Array) -> Array:
    """x · sigmoid(x), https://arxiv.org/abs/1702.03118; sigmoid by tanh, which can't overflow."""
    sigmoid: Array = 0.5 * np.tanh(0.5 * x) + 0.5
    return x * sigmoid


def gelu(x: Array) -> Array:
    """x · Φ(x), the normal distribution's function; Hendrycks & Gimpel 2016, arXiv 1606.08415."""
    erf = np.vectorize(math.erf, otypes=[x.dtype])(x / math.sqrt(2)) if x.size else x
    out: Array = 0.5 * x * (1 + erf)
    return out


def gelu_tanh(x: Array) -> Array:
    """The same by a tanh, as GPT-2 and Gemma were trained with it."""
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    out: Array = 0.5 * x * (1 + np.tanh(inner))
    return out


def relu(x: Array) -> Array:
    """max(x, 0)."""
    return np.maximum(x, 0)


def relu2(x: Array) -> Array:
    """max(x, 0)²; So et al. 2021, https://arxiv.org/abs/2109.08668."""
    return np.square(np.maximum(x, 0))


def xielu(x: Array, alpha_p: Array, alpha_n: Array) -> Array:
    """a·x² + x/2 above zero, b·(eˣ - 1 - x) + x/2 below; https://arxiv.org/abs/2411.13010.

    a = softplus(alpha_p), b = 1/2 + softplus(alpha_n): both stay positive whatever is learned.
    """
    above, below = np.logaddexp(0, alpha_p), 0.5 + np.logaddexp(0, alpha_n)
    least = np.minimum(x, -1e-6)
    out: Array = np.where(x > 0, above * x * x, (np.expm1(least) - x) * below) + 0.5 * x
    return out.astype(x.dtype)


def swiglu(gate: Array, up: Array) -> Array:
    """silu(gate) · up, elementwise; Shazeer 2020, https://arxiv.org/abs/2002.05202."""
    return silu(gate) * up


def clamped_swiglu(gate: Array, up: Array, alpha: float, limit: float) -> Array:
    """gpt-oss's: gate · sigmoid(alpha · gate) · (up + 1), the gate cut above, up on both sides."""
    gate, up = np.minimum(gate, limit), np.clip(up, -limit, limit)
    sigmoid: Array = 0.5 * np.tanh(0.5 * alpha * gate) + 0.5
    return gate * sigmoid * (up + 1)


def choose_experts(scores: Array, k: int, normalised: bool) -> tuple[NDArray[np.intp], Array]:
    """Each token's k best experts and their weights, (T, k) each; scores (T, n_experts).

    Weights are the softmax over all experts, or, `normalised`, over the chosen k. Of equal scores
    the expert with the lower number comes first.
    """
    chosen = largest(scores, k)
    weights = np.take_along_axis(softmax(scores), chosen, axis=-1)
    if normalised:
        weights = weights / weights.sum(axis=-1, keepdims=True)
    return chosen, weights


def expert_weights(scores: Array, k: int, normalised: bool) -> Array:
    """What each expert's output is multiplied by, (T, n_experts): 0 but for each token's k best."""
    chosen, weights = choose_experts(scores, k, normalised)
    spread = np.zeros_like(scores)
    np.put_along_axis(spread, chosen, weights, axis=-1)
    return spread


def largest(weights: Array, k: int) -> NDArray[np.intp]:
    """Where the k largest of each row are, (T, k), the largest first; of equals the first."""
    return np.argsort(-weights, axis=-1, kind="stable")[:, :k]
