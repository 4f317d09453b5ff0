"""One row (token) at a time: embeddings, norms, the MLP's activations, the last of the logits."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from tinyllm.kernels.build import part
from tinyllm.kernels.dispatch import embed, norm_row, put, swiglu
from tinyllm.kernels.part_kernels import (
    capped,
    clamped_row,
    copy_row,
    gated_row,
    layer_norm_row,
    plain_row,
    scaled_row,
)
from tinyllm.kernels.parts import CLAMPED

Array = NDArray[Any]


@part
def embed_row(table: Any, token: int, images: Array, x: Array, r: int, factor: Any) -> None:
    """x[r] = the embedding of a token, or row -1 - token of `images`."""
    if token >= 0:
        embed(table, token, x, r)
        scaled_row(factor, x, r)
    else:
        for d in range(x.shape[1]):
            x[r, d] = images[-1 - token, d]


@part
def norm_one(x: Array, r: int, weight: Any, bias: Any, layer: int, eps: float, row: Array) -> None:
    """The norm of one row: RMS, a layer norm where there is a bias, or the row itself."""
    if weight is None:
        copy_row(x, r, row)
    elif bias is None:
        norm_row(x, r, weight, layer, eps, row)
    else:
        layer_norm_row(x, r, weight, bias, layer, eps, row)


@part
def norm_tile(
    x: Array, weight: Any, bias: Any, layer: int, eps: float, first: int, n: int, tile: int,
    row: Array, rows: Any,
) -> None:  # fmt: skip
    """The norm of n ≤ 8 rows, as the activations of one tile."""
    for lane in range(n):
        norm_one(x, first + lane, weight, bias, layer, eps, row)
        put(rows, tile, lane, 0, row, 0, x.shape[1])


@part
def hidden_row(
    act: Any, plain: Any, kind: int, layer: int, out: Array, lane: int, row: Array
) -> None:
    """32 hidden activations of one token, row[:32], of the gates and ups in out[lane]."""
    if act is None:
        swiglu(out, lane, row)
    elif plain is None:
        if kind == CLAMPED:
            clamped_row(act, layer, out, lane, row)
        else:
            gated_row(kind, act, layer, out, lane, row)
    else:
        plain_row(kind, act, layer, out, lane, row)


@part
def finish_logits(bias: Any, cap: Any, logits: Array, row: int, column: int, width: int) -> None:
    """Bias and soft cap of some logits."""
    if bias is not None:
        for k in range(column, column + width):
            logits[row, k] += bias[0, k]
    capped(cap, logits, row, column, width)
