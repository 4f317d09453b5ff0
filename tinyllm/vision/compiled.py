"""The image encoder, fast: the same numbers as `vision.py` to float32 rounding.

One compiled call an image (`kernels/encode.py`) by a team of threads. What can be multiplied into
the weights once is: LayerScale into the two matrices before it, and 1 / sqrt(head_dim) into Q's.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from tinyllm.kernels import encoder_arrays as kernels
from tinyllm.kernels import reference_vit as vit
from tinyllm.kernels.cores import default_threads
from tinyllm.kernels.encoder_arrays import GELU, GELU_TANH, QUICK_GELU
from tinyllm.kernels.layout import BLOCK, GROUP, TILE, F32Rows, check_arrays
from tinyllm.kernels.machine_code import Kernel, prepare
from tinyllm.kernels.processor import JIT
from tinyllm.kernels.team import Team
from tinyllm.vision.config import NAMES, VisionConfig
from tinyllm.vision.encoder import VisionModel, grid_of, positions_for, wanted_layers

Array = NDArray[np.float32]

RUN = Kernel("tinyllm.kernels.encode", "run")  # all of an image's pass
ACTIVATIONS = {"gelu": GELU, "gelu_tanh": GELU_TANH, "quick_gelu": QUICK_GELU}
SIZES_KEPT = 3  # sizes of image whose room and threads are kept; seldom more than one is in use


class CompiledVisionModel:
    """A vision transformer in fused kernels. Safe when several Python threads call.

    Args:
        config, weights: as `VisionModel`'s.
        threads: that share an image; default: the processor's.
    """

    def __init__(
        self, config: VisionConfig, weights: Mapping[str, Array], threads: int | None = None
    ) -> None:
        self.config = config
        self.threads = (threads or default_threads()[0]) if JIT else 1
        self._weights = weights
        self._names = NAMES[config.kind]
        self._arrays = self._lay_out()
        self._workspaces: OrderedDict[tuple[int, int], _Workspace] = OrderedDict()
        self._lock = threading.Lock()
        self._workspace((1, 1))  # compiles, so that no request has to wait
        self._workspaces.popitem()[1].team.close()

    @classmethod
    def from_folder(cls, folder: Path, threads: int | None = None) -> CompiledVisionModel:
        """As `VisionModel.from_folder`."""
        readable = VisionModel.from_folder(folder)
        return cls(readable.config, readable.weights, threads)

    @overload
    def encode(self, pixels: Array) -> Array: ...

    @overload
    def encode(self, pixels: Array, *, layers: Sequence[int]) -> dict[int, Array]: ...

    def encode(
        self, pixels: Array, *, layers: Sequence[int] | None = None
    ) -> Array | dict[int, Array]:
        """Encode one image; as `VisionModel.encode`."""
        cfg = self.config
        wanted = wanted_layers(layers, cfg.n_layers)
        grid = grid_of(pixels, cfg)
        squares = vit.patches(pixels.astype(np.float32, copy=False), cfg.patch_size)
        with self._lock:
            workspace = self._workspace(grid)
            if layers is None:
                return workspace.encode(
                    squares, cfg.n_layers, bool(len(self._arrays.final_norm)), ()
                )
            kept = sorted(wanted)
            workspace.encode(squares, max(kept, default=0), False, kept)
            return {layer: workspace.streams[layer].copy() for layer in kept}

    def _workspace(self, grid: tuple[int, int]) -> _Workspace:
        if grid not in self._workspaces:
            while len(self._workspaces) >= SIZES_KEPT:
                self._workspaces.popitem(last=False)[1].team.close()
            self._workspaces[grid] = _Workspace(
                self.config, self._arrays, self._start(grid), self.threads
            )
        self._workspaces.move_to_end(grid)
        return self._workspaces[grid]

    def _start(self, grid: tuple[int, int]) -> Array:
        """What is added to every image of this size: positions, bias, the class token itself."""
        cfg, w, names = self.config, self._weights, self._names
        table = np.array(positions_for(*grid, cfg, w[names.positions]), np.float32)
        if names.patch_bias:
            table[int(cfg.has_class_token) :] += w[f"{names.patches}.bias"]
        if names.class_token:
            table[0] += w[names.class_token].reshape(cfg.dim)
        return table

    def _lay_out(self) -> kernels.EncoderArrays:
        cfg, w, names = self.config, self._weights, self._names
        blocks = [names.block.format(i) for i in range(cfg.n_layers)]

        def matrices(name: str, scale: str | None = None) -> tuple[Array, Array]:
            """A matrix and bias a layer: (L, out, in), (L, out); each output times its scale."""
            weight = np.stack([w[f"{b}.{name}.weight"] for b in blocks]).astype(np.float32)
            none = np.zeros(weight.shape[1], np.float32)
            bias = np.stack([w.get(f"{b}.{name}.bias", none) for b in blocks])
            if scale:
                factor = np.stack([w[f"{b}.{scale}"] for b in blocks])
                return weight * factor[:, :, None], bias * factor
            return weight, bias

        def norms(found: list[str]) -> Array:
            pairs = [np.stack([w[f"{n}.weight"], w[f"{n}.bias"]]) for n in found]
            return np.array(pairs, np.float32).reshape(len(found), 2, cfg.dim)

        head_rows = kernels.padded(cfg.head_dim, BLOCK)
        parts = [matrices(name) for name in (names.q, names.k, names.v)]
        parts[0] = tuple(x * np.float32(1 / math.sqrt(cfg.head_dim)) for x in parts[0])  # type: ignore[assignment]
        heads = np.zeros((cfg.n_layers, 3 * cfg.n_heads, head_rows, cfg.dim), np.float32)
        qkv_bias = np.zeros((cfg.n_layers, 3 * cfg.n_heads, head_rows), np.float32)
        for part, (weight, bias) in enumerate(parts):
            here = slice(part * cfg.n_heads, (part + 1) * cfg.n_heads)
            shape = (cfg.n_layers, cfg.n_heads, cfg.head_dim)
            heads[:, here, : cfg.head_dim] = weight.reshape(*shape, cfg.dim)
            qkv_bias[:, here, : cfg.head_dim] = bias.reshape(shape)
        out, fc1 = matrices(names.out, names.scale1), matrices(names.fc1)
        fc2 = matrices(names.fc2, names.scale2)
        return kernels.EncoderArrays(
            patches=kernels.as_matrix(w[f"{names.patches}.weight"].reshape(1, cfg.dim, -1)),
            qkv=kernels.as_matrix(heads.reshape(cfg.n_layers, -1, cfg.dim)),
            out=kernels.as_matrix(out[0]),
            fc1=kernels.as_matrix(fc1[0]),
            fc2=kernels.as_matrix(fc2[0]),
            qkv_bias=qkv_bias.reshape(cfg.n_layers, -1),
            out_bias=np.ascontiguousarray(out[1], np.float32),
            fc1_bias=np.ascontiguousarray(fc1[1], np.float32),
            fc2_bias=np.ascontiguousarray(fc2[1], np.float32),
            norm1=norms([f"{b}.{names.norm1}" for b in blocks]),
            norm2=norms([f"{b}.{names.norm2}" for b in blocks]),
            pre_norm=norms([names.pre_norm] if names.pre_norm else []),
            final_norm=norms([names.final_norm] if names.final_norm else []),
            n_heads=cfg.n_heads,
            head_dim=cfg.head_dim,
            n_class=int(cfg.has_class_token),
            eps=cfg.norm_eps,
            activation=ACTIVATIONS[cfg.activation],
        )


class _Workspace:
    """Room and threads for images of one size."""

    def __init__(
        self, config: VisionConfig, arrays: kernels.EncoderArrays, start: Array, threads: int
    ) -> None:
        n_rows, dim = start.shape
        n_tiles = -(-n_rows // TILE)
        heads, head_dim = config.n_heads, config.head_dim
        width = max(dim, config.hidden_dim)
        outputs = max(kernels.padded(n_rows, BLOCK), kernels.padded(head_dim, BLOCK))
        self._n_rows = n_rows
        self._n_patches = n_rows - int(config.has_class_token)
        n_pixels = config.n_channels * config.patch_size**2
        self.streams = np.zeros((config.n_layers + 1, n_rows, dim), np.float32)
        self._job = job = kernels.EncoderInput(
            counts=np.array([n_rows, 0, 0], np.int64),
            keep=np.full(config.n_layers + 1, -1, np.int64),
            start=start,
            squares=kernels.empty_rows(n_tiles, n_pixels),
            streams=self.streams,
        )
        self._scratch = scratch = kernels.EncoderScratch(
            x=np.zeros((n_rows, dim), np.float32),
            normed=kernels.empty_rows(n_tiles, dim),
            q=kernels.empty_rows(heads * n_tiles, head_dim),
            keys=kernels.empty_matrix(heads, n_rows, head_dim),
            values=kernels.empty_matrix(heads, head_dim, n_rows),
            mixed=kernels.empty_rows(n_tiles, dim),
            hidden=kernels.empty_rows(n_tiles, config.hidden_dim),
            weights=kernels.empty_rows(threads, n_rows),
            row=np.zeros((threads, width), np.float32),
            lanes=np.zeros((threads, BLOCK), np.float32),
            out=np.zeros((threads, TILE, max(outputs, kernels.OUT_BLOCKS * BLOCK)), np.float32),
        )
        self.team = Team(threads, n_regions=kernels.n_regions(config.n_layers))
        check_arrays((arrays, job, scratch), "kernel arguments")
        fixed = (self.team.control, arrays, job, scratch)
        prepare("image-encoder", {RUN: (0, 0, *fixed)})
        self.team.start(RUN.bind((0, 0), fixed))  # the thread and the job
        weakref.finalize(self, self.team.close)

    def encode(self, squares: Array, n_layers: int, final: bool, kept: Sequence[int]) -> Array:
        """Run one image; returns a copy of the last residual stream, and fills `streams`."""
        lay_out_rows(squares, self._job.squares)
        self._job.keep[:] = -1
        self._job.keep[list(kept)] = kept
        self._job.counts[:] = (self._n_rows, n_layers, int(final))
        self.team.run()
        return self._scratch.x.copy()


def lay_out_rows(rows: Array, room: F32Rows) -> None:
    """(n, width) → tiles of 8 rows, group by group."""
    n, width = rows.shape
    n_tiles, n_groups = -(-n // TILE), room.values.shape[1]
    padded = np.zeros((n_tiles * TILE, n_groups * GROUP), np.float32)
    padded[:n, :width] = rows
    room.values[:n_tiles] = padded.reshape(n_tiles, TILE, n_groups, GROUP).transpose(0, 2, 1, 3)
