"""What families add to a Llama's forward pass, each a few lines that a Llama doesn't pay for.

A part that a model lacks is None here. numba knows that when it compiles, and leaves out what
stands behind `if part is not None`; so each family gets machine code of its own. The plain forms
are in `reference.py`, and what each part is, in `families/parts.py`; the kernels, in
`part_kernels.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinyllm.config import ModelConfig
from tinyllm.kernels import reference

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
            if c.shape[1] < width:
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
        "cos": _joined(cos),
        "sin": _joined(sin),
        "turns": turns,
    }


def _joined(tables: list[Array]) -> Array:
    whole = tables[0] if len(tables) == 1 else np.concatenate(tables)
    return np.ascontiguousarray(whole, np.float32)


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
