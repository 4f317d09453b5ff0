"""The kernels of what families add to a Llama's forward pass: see `parts.py`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyllm.kernels.build import part
from tinyllm.kernels.layout import BLOCK, GROUP
from tinyllm.kernels.numbers import exp

Array = NDArray[Any]


@part
def add_bias(bias: Any, layer: int, column: int, out: Array, n: int, width: int) -> None:
    """out[:n, :width] += bias[layer, column : column + width]."""
    if bias is not None:
        for lane in range(n):
            for k in range(width):
                out[lane, k] += bias[layer, column + k]


@part
def norm_head(weight: Array, layer: int, head: int, eps: float, out: Array, lane: int) -> None:
    """RMS norm of one head, out[lane, :head_dim], where it is."""
    width = weight.shape[2]
    own = min(head, weight.shape[1] - 1)
    total = np.float32(0.0)
    for k in range(width):
        total += out[lane, k] * out[lane, k]
    scale = np.float32(1.0 / math.sqrt(total / width + eps))
    for k in range(width):
        out[lane, k] = out[lane, k] * scale * weight[layer, own, k]


@part
def layer_norm_head(
    weight: Array, bias: Array, layer: int, head: int, eps: float, out: Array, lane: int
) -> None:
    """Layer norm of one head, out[lane, :head_dim], where it is."""
    width = weight.shape[2]
    own = min(head, weight.shape[1] - 1)
    total = np.float32(0.0)
    for k in range(width):
        total += out[lane, k]
    mean = np.float32(total / np.float32(width))
    total = np.float32(0.0)
    for k in range(width):
        out[lane, k] -= mean
        total += out[lane, k] * out[lane, k]
    scale = np.float32(1.0 / math.sqrt(total / width + eps))
    for k in range(width):
        out[lane, k] = out[lane, k] * scale * weight[layer, own, k] + bias[layer, own, k]


@part
def head_normed(
    weight: Any, bias: Any, layer: int, head: int, eps: float, out: Array, lane: int
) -> None:
    """The norm of a head of queries or keys, if the model has one."""
    if weight is not None:
        if bias is None:
            norm_head(weight, layer, head, eps, out, lane)
        else:
            layer_norm_head(weight, bias, layer, head, eps, out, lane)


@part
def clipped(bound: Any, out: Array, lane: int, width: int) -> None:
    """out[lane, :width], cut at ±bound."""
    if bound is not None:
        b = np.float32(bound)
        for k in range(width):
            out[lane, k] = min(max(out[lane, k], -b), b)


@part
def layer_norm_row(
    x: Array, row: int, weight: Array, bias: Array, layer: int, eps: float, out: Array
) -> None:
    """Layer norm of x[row], (dim,), into out[:dim]."""
    dim = x.shape[1]
    total = 0.0
    for k in range(dim):
        total += x[row, k]
    mean = np.float32(total / dim)
    total = 0.0
    for k in range(dim):
        total += float(np.float32(x[row, k] - mean)) ** 2
    scale = np.float32(1.0 / math.sqrt(total / dim + eps))
    for k in range(dim):
        out[k] = np.float32(x[row, k] - mean) * scale * weight[layer, k] + bias[layer, k]


@part
def copy_row(x: Array, row: int, out: Array) -> None:
    """out[:dim] = x[row]."""
    for k in range(x.shape[1]):
        out[k] = x[row, k]


@part
def activate(kind: int, act: Array, layer: int, x: np.float32) -> np.float32:
    """One of the activations of `KINDS`; `act[layer]` holds xIELU's slopes, above and below 0."""
    one, half = np.float32(1.0), np.float32(0.5)
    if kind == 1:  # gelu_tanh: x · sigmoid(2 · inner) is the same as with a tanh
        inner = np.float32(0.7978845608028654) * (x + np.float32(0.044715) * x * x * x)
        return np.float32(x / (one + exp(np.float32(-2.0) * inner)))
    if kind == 5:
        return np.float32(x / (one + exp(-x)))
    if kind == 0:
        return np.float32(half * x * np.float32(1.0 + math.erf(x * 0.7071067811865476)))
    if kind == 4:
        if x > 0:
            return np.float32(act[layer, 0] * x * x + half * x)
        least = min(x, np.float32(-1e-6))
        return np.float32((np.float32(math.expm1(least)) - x) * act[layer, 1] + half * x)
    positive = x if x > 0 else np.float32(0.0)
    return positive if kind == 2 else np.float32(positive * positive)


@part
def gated_row(kind: int, act: Array, layer: int, pairs: Array, row: int, out: Array) -> None:
    """act(gate) · up of 32 values, laid out as for `jit.swiglu`."""
    for half in range(2):
        for i in range(BLOCK):
            gate, up = pairs[row, 32 * half + i], pairs[row, 32 * half + BLOCK + i]
            out[BLOCK * half + i] = activate(kind, act, layer, gate) * up


@part
def clamped_row(act: Array, layer: int, pairs: Array, row: int, out: Array) -> None:
    """gpt-oss's clamped SwiGLU of 32 values; act[layer] holds alpha and the limit."""
    alpha, limit, one = act[layer, 0], act[layer, 1], np.float32(1.0)
    for half in range(2):
        for i in range(BLOCK):
            gate, up = pairs[row, 32 * half + i], pairs[row, 32 * half + BLOCK + i]
            gate, up = min(gate, limit), min(max(up, -limit), limit)
            out[BLOCK * half + i] = gate / (one + exp(-alpha * gate)) * (up + one)


@part
def plain_row(kind: int, act: Array, layer: int, ups: Array, row: int, out: Array) -> None:
    """act(up) of 32 values."""
    for i in range(GROUP):
        out[i] = activate(kind, act, layer, ups[row, i])


@part
def scaled_row(factor: Any, x: Array, row: int) -> None:
    """x[row] times a factor."""
    if factor is not None:
        f = np.float32(factor)
        for k in range(x.shape[1]):
            x[row, k] *= f


@part
def add_position(table: Any, position: int, x: Array, row: int) -> None:
    """x[row] += a learned position."""
    if table is not None:
        for k in range(x.shape[1]):
            x[row, k] += table[position, k]


@part
def capped(cap: Any, x: Array, row: int, column: int, width: int) -> None:
    """cap · tanh(x / cap) of x[row, column : column + width]."""
    if cap is not None:
        for k in range(column, column + width):
            x[row, k] = np.float32(cap * math.tanh(x[row, k] / cap))
