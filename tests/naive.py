"""Oracles: the operations as nested loops over Python floats, one scalar at a time.

Slow on purpose, and written from the formulas without a look at the vectorised code. Everything
is computed in float64, whatever comes in.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyllm.config import ModelConfig

Array = NDArray[Any]
F64 = NDArray[np.float64]


def linear(x: Array, weight: Array) -> F64:
    """out[t, o] = Σ_i x[t, i] · weight[o, i]."""
    out = np.zeros((x.shape[0], weight.shape[0]))
    for t in range(x.shape[0]):
        for o in range(weight.shape[0]):
            out[t, o] = math.fsum(
                float(x[t, i]) * float(weight[o, i]) for i in range(weight.shape[1])
            )
    return out


def rms_norm(x: Array, weight: Array, eps: float) -> F64:
    """out[t, i] = x[t, i] / sqrt(mean_j x[t, j]² + eps) · weight[i]."""
    out = np.zeros(x.shape)
    for t in range(x.shape[0]):
        mean = math.fsum(float(v) ** 2 for v in x[t]) / x.shape[1]
        for i in range(x.shape[1]):
            out[t, i] = float(x[t, i]) / math.sqrt(mean + eps) * float(weight[i])
    return out


def rope_frequencies(config: ModelConfig) -> F64:
    """θ_i = rope_theta^(-2i / head_dim), then stretched as the checkpoint says."""
    freqs = [config.rope_theta ** (-2 * i / config.head_dim) for i in range(config.head_dim // 2)]
    scaling = config.rope_scaling
    if scaling is None:
        return np.array(freqs)
    out = []
    for freq in freqs:
        if scaling.kind == "linear":
            out.append(freq / scaling.factor)
            continue
        wavelength = 2 * math.pi / freq
        longest = scaling.original_max_seq_len / scaling.low_freq_factor
        shortest = scaling.original_max_seq_len / scaling.high_freq_factor
        if wavelength > longest:
            out.append(freq / scaling.factor)
        elif wavelength < shortest:
            out.append(freq)
        else:
            turns = scaling.original_max_seq_len / wavelength
            share = (turns - scaling.low_freq_factor) / (
                scaling.high_freq_factor - scaling.low_freq_factor
            )
            out.append((1 - share) * freq / scaling.factor + share * freq)
    return np.array(out)


def apply_rope(x: Array, angles: Array) -> F64:
    """Turn the pair (x[i], x[i + half]) of every head by its position's angle; x (T, heads, d)."""
    out = np.zeros(x.shape)
    half = x.shape[2] // 2
    for t in range(x.shape[0]):
        for h in range(x.shape[1]):
            for i in range(half):
                a, b = float(x[t, h, i]), float(x[t, h, i + half])
                turned = complex(a, b) * complex(
                    math.cos(float(angles[t, i])), math.sin(float(angles[t, i]))
                )
                out[t, h, i], out[t, h, i + half] = turned.real, turned.imag
    return out


def softmax(scores: Array) -> F64:
    """Over the last axis; a row of nothing but -inf gives zeros."""
    out = np.zeros(scores.shape)
    for index in np.ndindex(scores.shape[:-1]):
        row = [float(v) for v in scores[index]]
        top = max(row, default=-math.inf)
        if top == -math.inf:
            continue
        powers = [math.exp(v - top) for v in row]
        out[index] = [p / math.fsum(powers) for p in powers]
    return out


def attention_scores(q: Array, keys: Array) -> F64:
    """out[h, t, s] = q[t, h] · keys[s, h's group] / sqrt(d), or -inf where s is in the future."""
    n_tokens, n_heads, head_dim = q.shape
    n_visible, n_kv_heads, _ = keys.shape
    out = np.full((n_heads, n_tokens, n_visible), -np.inf)
    for h in range(n_heads):
        kv = h // (n_heads // n_kv_heads)
        for t in range(n_tokens):
            for s in range(n_visible - n_tokens + t + 1):
                dot = math.fsum(float(q[t, h, i]) * float(keys[s, kv, i]) for i in range(head_dim))
                out[h, t, s] = dot / math.sqrt(head_dim)
    return out


def attention_mix(pattern: Array, values: Array) -> F64:
    """out[t, h] = Σ_s pattern[h, t, s] · values[s, h's group]."""
    n_heads, n_tokens, n_visible = pattern.shape
    _, n_kv_heads, head_dim = values.shape
    out = np.zeros((n_tokens, n_heads, head_dim))
    for h in range(n_heads):
        kv = h // (n_heads // n_kv_heads)
        for t in range(n_tokens):
            for i in range(head_dim):
                out[t, h, i] = math.fsum(
                    float(pattern[h, t, s]) * float(values[s, kv, i]) for s in range(n_visible)
                )
    return out


def attention(q: Array, keys: Array, values: Array) -> F64:
    """Causal attention of the last T of S positions; (T, H, d)."""
    return attention_mix(softmax(attention_scores(q, keys)), values)


def silu(x: Array) -> F64:
    """x / (1 + e^-x), elementwise."""
    out = np.zeros(x.shape)
    for index in np.ndindex(x.shape):
        v = float(x[index])
        # e^-x overflows for very negative x; there x · e^x / (1 + e^x) is the same.
        out[index] = v / (1 + math.exp(-v)) if v > 0 else v * math.exp(v) / (1 + math.exp(v))
    return out


def swiglu(gate: Array, up: Array) -> F64:
    """silu(gate) · up, elementwise."""
    out = silu(gate)
    for index in np.ndindex(out.shape):
        out[index] *= float(up[index])
    return out


def llama(config: ModelConfig, weights: Any, tokens: list[int]) -> F64:
    """Logits (T, vocab_size) of the whole model, from the loops above; no cache."""
    w = {name: np.asarray(array, np.float64) for name, array in weights.items()}
    angles = np.outer(np.arange(len(tokens)), rope_frequencies(config))
    x = np.array([w["model.embed_tokens.weight"][t] for t in tokens])
    for i in range(config.n_layers):
        block = f"model.layers.{i}"
        normed = rms_norm(x, w[f"{block}.input_layernorm.weight"], config.norm_eps)
        heads = {}
        for name, n in (("q", config.n_heads), ("k", config.n_kv_heads), ("v", config.n_kv_heads)):
            flat = linear(normed, w[f"{block}.self_attn.{name}_proj.weight"])
            heads[name] = flat.reshape(len(tokens), n, config.head_dim)
        q, k = apply_rope(heads["q"], angles), apply_rope(heads["k"], angles)
        z = attention(q, k, heads["v"]).reshape(len(tokens), -1)
        x = x + linear(z, w[f"{block}.self_attn.o_proj.weight"])
        normed = rms_norm(x, w[f"{block}.post_attention_layernorm.weight"], config.norm_eps)
        post = swiglu(
            linear(normed, w[f"{block}.mlp.gate_proj.weight"]),
            linear(normed, w[f"{block}.mlp.up_proj.weight"]),
        )
        x = x + linear(post, w[f"{block}.mlp.down_proj.weight"])
    head = "model.embed_tokens.weight" if config.tie_embeddings else "lm_head.weight"
    return linear(rms_norm(x, w["model.norm.weight"], config.norm_eps), w[head])
