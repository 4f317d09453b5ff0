"""What families add to a Llama's forward pass, each a few lines that a Llama doesn't pay for.

A part that a model lacks is None here. numba knows that when it compiles, and leaves out what
stands behind `if part is not None`; so each family gets machine code of its own. The plain forms
are in `reference.py`, and what each part is, in `families/parts.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinyllm.config import ModelConfig
from tinyllm.kernels import reference
from tinyllm.kernels.build import part
from tinyllm.kernels.layout import BLOCK, GROUP
from tinyllm.kernels.numbers import exp

Array = NDArray[Any]
Weights = Mapping[str, NDArray[np.float32]]


class FamilyParts(NamedTuple):
    """Everything beyond a Llama; None where the model has nothing there."""

    # positions
    turns: Array | None  # (n_layers, 2) int64: first row of cos and sin, and rows a position (0, 1)
    positions: Array | None  # (max_seq_len, dim): learned ones
    temperature: Array | None  # (max_seq_len,): what queries are multiplied by
    # attention
    qkv_bias: Array | None  # (n_layers, rows of qkv)
    q_norm: Array | None  # (n_layers, 1 or n_heads, head_dim)
    k_norm: Array | None
    q_whole: Array | None  # (n_layers, n_heads, head_dim): all queries of a row are normed together
    k_whole: Array | None
    q_norm_bias: Array | None  # with it, those norms take out the mean
    k_norm_bias: Array | None
    norm_last: Array | None  # (1,): they come after the turn
    windows: Array | None  # (n_layers,) int64: how many keys a query sees
    score_cap: float | None
    sinks: Array | None  # (n_layers, n_heads)
    clip: float | None
    # MLP
    act: Array | None  # (n_layers, 2): the activation is none of SwiGLU's; its two numbers, if any
    kind: int  # which: see `activate`
    plain: Array | None  # (1,): there is no gate
    up_bias: Array | None  # (n_layers, rows of gate_up)
    # the residual stream
    embedding_scale: float | None
    out_bias: Array | None  # (n_layers, dim)
    down_bias: Array | None
    attn_bias: Array | None  # (n_layers, dim): with it the norm is a layer norm, here and below
    mlp_bias: Array | None
    final_bias: Array | None  # (1, dim)
    after_attn: Array | None  # (n_layers, dim): norms of what a sublayer adds
    after_mlp: Array | None
    one_norm: Array | None  # (1,): the MLP reads what attention reads
    side_by_side: Array | None  # (1,): the MLP reads the stream before attention was added
    head_bias: Array | None  # (1, padded vocab_size)
    logit_cap: float | None


KINDS = {"gelu": 0, "gelu_tanh": 1, "relu": 2, "relu2": 3, "xielu": 4, "silu": 5, "clamped": 6}
CLAMPED = KINDS["clamped"]
# Parts that are tensors of the checkpoint, kept beside its matrices.
TENSORS = ("positions", "qkv_bias", "q_norm", "k_norm", "q_whole", "k_whole", "q_norm_bias",
           "k_norm_bias", "sinks", "act", "up_bias", "out_bias", "down_bias", "attn_bias",
           "mlp_bias", "final_bias", "after_attn", "after_mlp", "head_bias")  # fmt: skip


def head_order(config: ModelConfig) -> NDArray[np.intp] | None:
    """The order in which the kernels keep a head's elements, or None for the checkpoint's own.

    The kernels turn element i with element i + head_dim / 2, over a whole head. Where neighbours
    turn together, or a part of a head alone, the rows of q and k are put in such an order; elements
    that don't turn get pairs with an angle of 0. Scores don't change, since q and k change alike.
    """
    d, half = config.turned, config.turned // 2
    if d == config.head_dim and config.rope_pairs == "halves":
        return None
    if config.rope_pairs == "neighbours":
        first, second = np.arange(0, d, 2), np.arange(1, d, 2)
    else:
        first, second = np.arange(half), np.arange(half, d)
    rest = np.arange(d, config.head_dim)
    n = len(rest) // 2
    return np.concatenate([first, rest[:n], second, rest[n:]])


def rotation_tables(config: ModelConfig) -> dict[str, Any]:
    """cos and sin of all positions, (rows, head_dim / 2), and `turns`, where layers differ."""
    positions = np.arange(config.max_seq_len)
    width = config.head_dim // 2
    rows: dict[str, tuple[int, int]] = {}
    cos: list[Array] = []
    sin: list[Array] = []
    used = {config.layer(i).rotary for i in range(config.n_layers)}
    if config.learned_positions:
        used = {"none"}
    for kind in sorted(used):  # global, local, none
        rows[kind] = (sum(len(table) for table in cos), 0 if kind == "none" else 1)
        if kind == "none":
            c, s = np.ones((1, width), np.float32), np.zeros((1, width), np.float32)
        else:
            own = config.local() if kind == "local" else config
            c, s = reference.rope_tables(own, positions)
            still = ((0, 0), (0, width - c.shape[1]))
            c, s = np.pad(c, still, constant_values=1), np.pad(s, still)
        cos.append(c)
        sin.append(s)
    turns = None
    if used != {"global"}:
        own_kind = "none" if config.learned_positions else None
        kinds = [own_kind or config.layer(i).rotary for i in range(config.n_layers)]
        turns = np.array([rows[kind] for kind in kinds], np.int64)
    return {
        "cos": np.ascontiguousarray(np.concatenate(cos), np.float32),
        "sin": np.ascontiguousarray(np.concatenate(sin), np.float32),
        "turns": turns,
    }


def make_parts(
    config: ModelConfig, tensors: Mapping[str, Array], turns: Array | None
) -> FamilyParts:
    """A model's parts, of its shape and of what `packed.pack` made of its tensors."""
    mark = np.zeros(1, np.float32)
    windows = [config.layer(i).window or config.max_seq_len for i in range(config.n_layers)]
    temperature = None
    if config.temperature is not None:
        t = config.temperature
        grown = reference.temperature(np.arange(config.max_seq_len), t.beta, t.length)
        temperature = grown.astype(np.float32)
    clamped = config.act_limit is not None
    plain_act = config.activation == "silu" and config.gated and not clamped
    act = tensors.get("act")
    if act is None and not plain_act:
        numbers = (config.act_alpha, config.act_limit) if clamped else (0, 0)
        act = np.tile(np.array(numbers, np.float32), (config.n_layers, 1))
    of_files = {name: tensors.get(name) for name in TENSORS if name != "act"}
    return FamilyParts(
        turns=turns,
        temperature=temperature,
        norm_last=mark if config.qk_norm_last else None,
        windows=np.array(windows, np.int64) if min(windows) < config.max_seq_len else None,
        score_cap=config.score_cap,
        clip=config.qkv_clip,
        act=act,
        kind=CLAMPED if clamped else KINDS[config.activation],
        plain=None if config.gated else mark,
        embedding_scale=None if config.embedding_scale == 1 else config.embedding_scale,
        one_norm=mark if config.parallel == "one norm" else None,
        side_by_side=mark if config.parallel == "two norms" else None,
        logit_cap=config.logit_cap,
        **of_files,
    )


# --- the kernels ----------------------------------------------------------------------------------


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
