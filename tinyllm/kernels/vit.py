"""The image encoder's work between its matrix products, each a single pass over memory.

Plain loops without branches, which the compiler turns into vector instructions on any processor.
Rows are float32 and contiguous; `reference_vit.py` says what each function means.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyllm.kernels.build import kernel
from tinyllm.kernels.encoder_arrays import GELU, GELU_TANH
from tinyllm.kernels.numbers import exp

Array = NDArray[Any]

LANES = 16  # partial sums of a row, so that additions needn't wait for one another


@kernel
def activate(x: np.float32, kind: int) -> np.float32:
    """One of the activations of `reference_vit.py`."""
    one, half = np.float32(1.0), np.float32(0.5)
    if kind == GELU:
        z = x * np.float32(math.sqrt(0.5))
        size = abs(z)
        t = one / (one + np.float32(0.3275911) * size)
        p = np.float32(1.061405429) * t + np.float32(-1.453152027)
        p = p * t + np.float32(1.421413741)
        p = p * t + np.float32(-0.284496736)
        p = p * t + np.float32(0.254829592)
        tail = p * t * exp(-size * size)  # 1 - erf(|z|)
        return half * x * (np.float32(2.0) - tail if x >= np.float32(0.0) else tail)
    if kind == GELU_TANH:
        # 0.5 (1 + tanh u) is the logistic function of 2u.
        u = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x * x * x)
        return x / (one + exp(np.float32(-2.0) * u))
    return x / (one + exp(np.float32(-1.702) * x))


@kernel
def norm_row(x: Array, norm: Array, eps: float, out: Array, lanes: Array) -> None:
    """x (dim,) to mean 0 and variance 1, times norm[0], plus norm[1], into out[:dim].

    lanes: (16,) to write to.
    """
    dim = x.shape[0]
    whole = dim - dim % LANES
    for i in range(LANES):
        lanes[i] = np.float32(0.0)
    for k in range(0, whole, LANES):
        for i in range(LANES):
            lanes[i] += x[k + i]
    total = np.float32(0.0)
    for k in range(whole, dim):
        total += x[k]
    for i in range(LANES):
        total += lanes[i]
        lanes[i] = np.float32(0.0)
    mean = np.float32(total / dim)
    for k in range(0, whole, LANES):
        for i in range(LANES):
            gap = x[k + i] - mean
            lanes[i] += gap * gap
    total = np.float32(0.0)
    for k in range(whole, dim):
        total += (x[k] - mean) * (x[k] - mean)
    for i in range(LANES):
        total += lanes[i]
    scale = np.float32(1.0 / math.sqrt(total / dim + eps))
    for k in range(dim):
        out[k] = (x[k] - mean) * scale * norm[0, k] + norm[1, k]


@kernel
def softmax_row(x: Array, n: int, lanes: Array) -> None:
    """x[:n] := softmax of it; lanes: (16,) to write to."""
    whole = n - n % LANES
    for i in range(LANES):
        lanes[i] = x[0]
    for k in range(0, whole, LANES):
        for i in range(LANES):
            lanes[i] = max(lanes[i], x[k + i])
    top = x[0]
    for k in range(whole, n):
        top = max(top, x[k])
    for i in range(LANES):
        top = max(top, lanes[i])
        lanes[i] = np.float32(0.0)
    for k in range(n):
        x[k] = exp(x[k] - top)
    for k in range(0, whole, LANES):
        for i in range(LANES):
            lanes[i] += x[k + i]
    total = np.float32(0.0)
    for k in range(whole, n):
        total += x[k]
    for i in range(LANES):
        total += lanes[i]
    inverse = np.float32(1.0) / total
    for k in range(n):
        x[k] *= inverse
