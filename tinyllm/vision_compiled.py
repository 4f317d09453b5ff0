"""The image encoder, fast: the same numbers as `vision.py` to float32 rounding.

Matrix products go to numpy's BLAS, with weights laid out the way it reads fastest; everything
between them is fused into single passes (`kernels/vit.py`). What can be multiplied into the
weights once is: LayerScale into the two matrices before it, 1 / sqrt(head_dim) into Q's, and Q, K
and V are one product.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from tinyllm.kernels import reference_vit as vit
from tinyllm.kernels import vit as kernels
from tinyllm.vision import VisionModel, grid_of, positions_for, wanted_layers
from tinyllm.vision_config import NAMES, VisionConfig

Array = NDArray[np.float32]

ACTIVATIONS = {
    "gelu": kernels.add_bias_gelu,
    "gelu_tanh": kernels.add_bias_gelu_tanh,
    "quick_gelu": kernels.add_bias_quick_gelu,
}


@dataclass(frozen=True)
class Block:
    """One layer's weights: matrices (in, out), so that x @ W needs no transposing."""

    norm1: tuple[Array, Array]  # weight and bias, (dim,) each
    qkv: tuple[Array, Array]  # (dim, 3 · dim), (3 · dim,)
    out: tuple[Array, Array]  # (dim, dim), (dim,)
    norm2: tuple[Array, Array]
    fc1: tuple[Array, Array]  # (dim, hidden_dim), (hidden_dim,)
    fc2: tuple[Array, Array]  # (hidden_dim, dim), (dim,)


class CompiledVisionModel:
    """A vision transformer on BLAS and compiled kernels; arguments as `VisionModel`'s."""

    def __init__(self, config: VisionConfig, weights: Mapping[str, Array]) -> None:
        self.config = config
        self._weights = weights
        self._names = names = NAMES[config.kind]
        self._activate = ACTIVATIONS[config.activation]
        self._blocks = [self._read_block(i) for i in range(config.n_layers)]
        kernel = weights[f"{names.patches}.weight"].reshape(config.dim, -1)
        self._patches = np.ascontiguousarray(kernel.T)
        self._positions: dict[tuple[int, int], Array] = {}

    @classmethod
    def from_folder(cls, folder: Path) -> CompiledVisionModel:
        """As `VisionModel.from_folder`."""
        readable = VisionModel.from_folder(folder)
        return cls(readable.config, readable.weights)

    @overload
    def encode(self, pixels: Array) -> Array: ...

    @overload
    def encode(self, pixels: Array, *, layers: Sequence[int]) -> dict[int, Array]: ...

    def encode(
        self, pixels: Array, *, layers: Sequence[int] | None = None
    ) -> Array | dict[int, Array]:
        """Encode one image; as `VisionModel.encode`."""
        cfg, names = self.config, self._names
        wanted = wanted_layers(layers, cfg.n_layers)
        x = self._embed(pixels)  # (T, dim)
        streams = {0: x.copy()} if layers is not None and 0 in wanted else {}
        room = _Room(len(x), cfg)
        for layer in range(max(wanted, default=0)):
            self._run_block(self._blocks[layer], x, room)
            if layers is not None and layer + 1 in wanted:
                streams[layer + 1] = x.copy()
        if layers is not None:
            return streams
        if names.final_norm:
            kernels.layer_norm(x, *self._pair(names.final_norm), cfg.norm_eps, x)
        return x

    def _embed(self, pixels: Array) -> Array:
        cfg, w, names = self.config, self._weights, self._names
        grid = grid_of(pixels, cfg)
        if grid not in self._positions:
            # What is added to every image of this size: positions, bias, the class token itself.
            table = positions_for(*grid, cfg, w[names.positions]).astype(np.float32)
            n_class = int(cfg.has_class_token)
            if names.patch_bias:
                table[n_class:] += w[f"{names.patches}.bias"]
            if names.class_token:
                table[0] += w[names.class_token].reshape(cfg.dim)
            if len(self._positions) >= 8:  # sizes seldom differ; tables are as large as an image
                self._positions.clear()
            self._positions[grid] = table
        x = self._positions[grid].copy()
        squares = vit.patches(pixels.astype(np.float32, copy=False), cfg.patch_size)
        x[int(cfg.has_class_token) :] += squares @ self._patches
        if names.pre_norm:
            kernels.layer_norm(x, *self._pair(names.pre_norm), cfg.norm_eps, x)
        return x

    def _run_block(self, block: Block, x: Array, room: _Room) -> None:
        """x (T, dim) += attention(norm(x)), then += mlp(norm(x)); in place."""
        cfg, width = self.config, self.config.head_dim
        kernels.layer_norm(x, *block.norm1, cfg.norm_eps, room.normed)
        np.matmul(room.normed, block.qkv[0], out=room.qkv)
        kernels.add_bias(room.qkv, block.qkv[1])
        for head in range(cfg.n_heads):
            q, k, v = (
                room.qkv[:, at + head * width : at + (head + 1) * width]
                for at in (0, cfg.dim, 2 * cfg.dim)
            )
            np.matmul(q, k.T, out=room.scores)  # (T, T)
            kernels.softmax(room.scores)
            np.matmul(room.scores, v, out=room.mixed[:, head * width : (head + 1) * width])
        np.matmul(room.mixed, block.out[0], out=room.normed)
        kernels.add_residual(x, room.normed, block.out[1])

        kernels.layer_norm(x, *block.norm2, cfg.norm_eps, room.normed)
        np.matmul(room.normed, block.fc1[0], out=room.hidden)
        self._activate(room.hidden, block.fc1[1])
        np.matmul(room.hidden, block.fc2[0], out=room.normed)
        kernels.add_residual(x, room.normed, block.fc2[1])

    def _read_block(self, layer: int) -> Block:
        cfg, w, names = self.config, self._weights, self._names
        block = names.block.format(layer)
        q, k, v = (self._matrix(f"{block}.{name}") for name in (names.q, names.k, names.v))
        scale = np.float32(1 / math.sqrt(cfg.head_dim))
        scale1 = w[f"{block}.{names.scale1}"] if names.scale1 else np.float32(1)
        scale2 = w[f"{block}.{names.scale2}"] if names.scale2 else np.float32(1)
        out, fc2 = self._matrix(f"{block}.{names.out}"), self._matrix(f"{block}.{names.fc2}")
        return Block(
            norm1=self._pair(f"{block}.{names.norm1}"),
            qkv=(
                np.concatenate([q[0] * scale, k[0], v[0]], axis=1),
                np.concatenate([q[1] * scale, k[1], v[1]]),
            ),
            out=(out[0] * scale1, out[1] * scale1),
            norm2=self._pair(f"{block}.{names.norm2}"),
            fc1=self._matrix(f"{block}.{names.fc1}"),
            fc2=(fc2[0] * scale2, fc2[1] * scale2),
        )

    def _matrix(self, name: str) -> tuple[Array, Array]:
        """A matrix as (in, out), and its bias; zeros where it has none."""
        weight = np.ascontiguousarray(self._weights[f"{name}.weight"].T, np.float32)
        bias = self._weights.get(f"{name}.bias")
        return weight, np.zeros(weight.shape[1], np.float32) if bias is None else np.array(bias)

    def _pair(self, name: str) -> tuple[Array, Array]:
        return np.array(self._weights[f"{name}.weight"]), np.array(self._weights[f"{name}.bias"])


class _Room:
    """Where one image's intermediate values go."""

    def __init__(self, n_rows: int, config: VisionConfig) -> None:
        dim = config.dim
        self.normed = np.empty((n_rows, dim), np.float32)  # also what a branch adds
        self.qkv = np.empty((n_rows, 3 * dim), np.float32)
        self.scores = np.empty((n_rows, n_rows), np.float32)  # one head's at a time
        self.mixed = np.empty((n_rows, dim), np.float32)
        self.hidden = np.empty((n_rows, config.hidden_dim), np.float32)
