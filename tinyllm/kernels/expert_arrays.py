"""The arrays of experts by name: their weights, and room for rows on their way through them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinyllm.config import ModelConfig
from tinyllm.kernels.layout import BLOCK, TILE, F32Rows, empty_f32_rows

Array = NDArray[Any]


class ExpertArrays(NamedTuple):
    """Weights of all layers that have experts, in the kernels' layout.

    `slot[layer]` is where a layer's stand: its router is matrix `slot` of a stack, its expert e is
    matrix slot · n + e. A layer without experts has -1 - i there, and matrix i of `gate_up` and
    `down` in `ModelArrays`.
    """

    slot: Array  # (n_layers,) int64
    router: Any  # a matrix a layer, (n, dim), in float32: rounding would send rows elsewhere
    gate_up: Any  # a matrix an expert, in whichever format: as in `ModelArrays`
    down: Any
    router_bias: Array | None  # (layers with experts, n, padded with zeros to whole blocks)
    up_bias: Array | None  # (experts of all layers, rows of gate_up)
    down_bias: Array | None  # (experts of all layers, dim)
    n: int  # experts in a layer
    k: int  # that a row takes
    normalised: bool  # their weights sum to 1


class Groups(NamedTuple):
    """Which rows go to which expert: a thread's own. In `ExpertScratch`, first axis threads.

    A pair is a row and one of the experts that it chose. Pairs lie expert by expert, in tiles of up
    to 8; the experts that have any are counted by their rank.
    """

    chosen: Array  # (1, k) int32: a lone row's experts …
    weight: Array  # (1, k) float32: … and what their outputs are multiplied by
    begin: Array  # (n + 1,) int64: each expert's first pair; while grouping, its next one
    row: Array  # (pairs,) int32
    share: Array  # (pairs,) float32
    expert: Array  # (tiles,) int32
    first: Array  # (tiles,) int32, a pair
    size: Array  # (tiles,) int32: pairs in it
    tiles: Array  # (n + 1,) int32: the first tile of each rank


class ExpertScratch(NamedTuple):
    """What threads write on the way through experts. R rows in a call."""

    normed: F32Rows  # what the router reads: shared tiles, then one private tile a thread
    scores: Array  # (R, padded n) float32: the router's
    chosen: Array  # (R, k) int32, the best first
    weight: Array  # (R, k) float32
    gathered: (
        Any  # activations of width dim, tile by tile of `Groups`; then a private tile a thread
    )
    hidden: Any  # of an expert's hidden_dim, tile by tile
    groups: Groups


def make_expert_arrays(config: ModelConfig, packed: Mapping[str, Any]) -> ExpertArrays | None:
    """Of what `packed.pack` made; None for a model without experts."""
    experts = config.experts
    if experts is None:
        return None
    with_experts = np.array([config.layer(i).experts for i in range(config.n_layers)])
    slot = np.where(with_experts, np.cumsum(with_experts) - 1, -np.cumsum(~with_experts))
    bias = packed.get("router_bias")
    if bias is not None:  # whole blocks, like the router's own rows
        bias = np.pad(bias, ((0, 0), (0, -bias.shape[1] % BLOCK)))
    return ExpertArrays(
        slot=slot.astype(np.int64),
        router=packed["router"],
        gate_up=packed["expert_gate_up"],
        down=packed["expert_down"],
        router_bias=bias,
        up_bias=packed.get("expert_up_bias"),
        down_bias=packed.get("expert_down_bias"),
        n=experts.n,
        k=experts.k,
        normalised=experts.weights == "normalised",
    )


def make_expert_scratch(
    config: ModelConfig, empty_rows: Callable[[int, int], Any], rows: int, threads: int
) -> ExpertScratch | None:
    """Room for calls of so many rows; `empty_rows` is a format's. None without experts."""
    experts = config.experts
    if experts is None:
        return None
    n, k = experts.n, experts.k
    tiles = rows * k // TILE + n  # each expert's last one may not be full

    def integers(*shape: int) -> Array:
        return np.zeros(shape, np.int32)

    return ExpertScratch(
        normed=empty_f32_rows(rows + TILE * threads, config.dim),
        scores=np.zeros((rows, -(-n // BLOCK) * BLOCK), np.float32),
        chosen=integers(rows, k),
        weight=np.zeros((rows, k), np.float32),
        gathered=empty_rows(TILE * (tiles + threads), config.dim),
        hidden=empty_rows(TILE * tiles, experts.hidden_dim),
        groups=Groups(
            chosen=integers(threads, 1, k),
            weight=np.zeros((threads, 1, k), np.float32),
            begin=np.zeros((threads, n + 1), np.int64),
            row=integers(threads, rows * k),
            share=np.zeros((threads, rows * k), np.float32),
            expert=integers(threads, tiles),
            first=integers(threads, tiles),
            size=integers(threads, tiles),
            tiles=integers(threads, n + 1),
        ),
    )
