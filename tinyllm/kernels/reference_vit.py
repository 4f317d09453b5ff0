"""The operations that only image encoders need, in plain numpy: the definition of what is right.

Shapes: T rows (a class token and the patches), H heads. Float32 in and out; float64 stays float64.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]


def linear_bias(x: Array, weight: Array, bias: Array | None) -> Array:
    """y = x Wᵀ + b; x (T, in), weight (out, in), bias (out,) → (T, out)."""
    y: Array = x @ weight.T
    return y if bias is None else y + bias


def layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    """Each row to mean 0 and variance 1, then scaled and shifted; (T, dim) → (T, dim).

    Ba et al. 2016, https://arxiv.org/abs/1607.06450.
    """
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = np.square(centred).mean(axis=-1, keepdims=True)
    normal: Array = centred / np.sqrt(variance + x.dtype.type(eps)) * weight + bias
    return normal


def full_attention_scores(q: Array, k: Array) -> Array:
    """q·k / sqrt(head_dim), every row seeing every row; (T, H, head_dim) each → (H, T, T)."""
    scores: Array = q.transpose(1, 0, 2) @ k.transpose(1, 2, 0)
    scores *= 1.0 / math.sqrt(q.shape[-1])  # a Python float: np.sqrt would promote to float64
    return scores


def erf(x: Array) -> Array:
    """The error function, to 1.5e-7: Abramowitz & Stegun 1964, formula 7.1.26."""
    t = 1 / (1 + 0.3275911 * np.abs(x))
    poly = 1.421413741 + t * (-1.453152027 + t * 1.061405429)
    poly = t * (0.254829592 + t * (-0.284496736 + t * poly))
    result: Array = np.copysign(1 - poly * np.exp(-np.square(x)), x)
    return result


def gelu(x: Array) -> Array:
    """x · Φ(x), Φ the normal distribution; Hendrycks & Gimpel 2016, arXiv 1606.08415."""
    return 0.5 * x * (1 + erf(x * math.sqrt(0.5)))


def gelu_tanh(x: Array) -> Array:
    """The paper's approximation of `gelu` by tanh."""
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)
    y: Array = 0.5 * x * (1 + np.tanh(inner))
    return y


def quick_gelu(x: Array) -> Array:
    """The paper's other approximation, x · sigmoid(1.702 x); sigmoid by tanh, no overflow."""
    y: Array = x * (0.5 * np.tanh(0.851 * x) + 0.5)
    return y


def patches(pixels: Array, size: int) -> Array:
    """Cut (3, H, W) into squares, row by row: (H//size · W//size, 3 · size · size).

    Rows and columns of pixels that fill no square are left out, as a strided convolution does.
    """
    channels, height, width = pixels.shape
    rows, cols = height // size, width // size
    grid = pixels[:, : rows * size, : cols * size].reshape(channels, rows, size, cols, size)
    return grid.transpose(1, 3, 0, 2, 4).reshape(rows * cols, channels * size * size)


def cubic_weights(n_in: int, n_out: int) -> NDArray[np.float64]:
    """(n_out, n_in): how bicubic interpolation mixes n_in samples into n_out, along one axis.

    Keys 1981 with a = -0.75, pixel centres aligned, borders repeated, no antialiasing: what the
    encoders' position tables are resized with (torch's `interpolate(mode="bicubic")`).
    """
    a = -0.75
    centre = (np.arange(n_out) + 0.5) * (n_in / n_out) - 0.5
    first = np.floor(centre).astype(np.int64)
    weights = np.zeros((n_out, n_in))
    for tap in range(-1, 3):  # the four samples around the centre
        distance = np.abs(centre - (first + tap))
        near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
        far = a * (((distance - 5) * distance + 8) * distance - 4)
        source = np.clip(first + tap, 0, n_in - 1)
        np.add.at(weights, (np.arange(n_out), source), np.where(distance <= 1, near, far))
    return weights
