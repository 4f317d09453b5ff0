"""The image encoder, top to bottom, in the order in which pixels meet it.

    pixels → patches → embeddings → n_layers × (attention, MLP) → norm → one row a patch

A vision transformer (Dosovitskiy et al. 2020, https://arxiv.org/abs/2010.11929) is the language
model's block with two differences: every row sees every other one, and there is no cache, since an
image is there all at once. Four families share this file: DINOv2 (https://arxiv.org/abs/2304.07193),
SigLIP (https://arxiv.org/abs/2303.15343), CLIP (https://arxiv.org/abs/2103.00020) and Idefics3's
encoder. They differ in a class token, LayerScale, the activation, and how positions stretch to
another image size; `vision_config.py` knows which has what and what it calls its tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, overload

import numpy as np
from numpy.typing import NDArray

from tinyllm.config import read_json_object
from tinyllm.errors import ConfigError, WeightsError
from tinyllm.kernels import reference as ops
from tinyllm.kernels import reference_vit as vit
from tinyllm.kernels.blas import few_threads
from tinyllm.vision.config import NAMES, VisionConfig, expected_shapes
from tinyllm.weights import read_folder

Array = NDArray[np.floating[Any]]
Tap = Callable[[str, Array], Array]

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": vit.gelu,
    "gelu_tanh": vit.gelu_tanh,
    "quick_gelu": vit.quick_gelu,
}


class Encoder(Protocol):
    """What the rest of tinyllm needs of an image encoder, whichever path computes it."""

    config: VisionConfig

    @overload
    def encode(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]: ...

    @overload
    def encode(
        self, pixels: NDArray[np.float32], *, layers: Sequence[int]
    ) -> dict[int, NDArray[np.float32]]: ...

    def encode(
        self, pixels: NDArray[np.float32], *, layers: Sequence[int] | None = None
    ) -> NDArray[np.float32] | dict[int, NDArray[np.float32]]:
        """(3, H, W) → the last hidden state, (T, dim), or `layers`; see `VisionModel.encode`."""


class VisionModel:
    """A vision transformer over a checkpoint's own tensors.

    Args:
        config: the shape.
        weights: the checkpoint's names, without prefix → float32 array; float64 arrays make the
            whole computation float64.
    """

    def __init__(self, config: VisionConfig, weights: Mapping[str, Array]) -> None:
        self.config = config
        self.weights = weights
        self.names = NAMES[config.kind]

    @classmethod
    def from_folder(cls, folder: Path) -> VisionModel:
        """Read a hub-layout folder: an encoder's own, or a model that has one among its parts.

        Raises:
            ConfigError, WeightsError: naming the file, and the key or tensor.
        """
        path = folder / "config.json"
        try:
            config = VisionConfig.from_hf(read_json_object(path))
        except ConfigError as error:
            raise ConfigError(
                str(error) if str(path) in str(error) else f"{path}: {error}"
            ) from None
        return cls(config, load_vision_weights(folder, config))

    @overload
    def encode(self, pixels: Array, *, tap: Tap | None = None) -> Array: ...

    @overload
    def encode(
        self, pixels: Array, *, layers: Sequence[int], tap: Tap | None = None
    ) -> dict[int, Array]: ...

    @few_threads()
    def encode(
        self, pixels: Array, *, layers: Sequence[int] | None = None, tap: Tap | None = None
    ) -> Array | dict[int, Array]:
        """Encode one image.

        Args:
            pixels: (3, H, W), as the checkpoint's image processor makes them.
            layers: return the residual stream behind these numbers of blocks instead (0 is the
                embeddings, n_layers the last block's output), before any final norm; blocks
                beyond the highest aren't run.
            tap: called as tap(name, array) at every hook point; returns what to go on with.

        Returns:
            The last hidden state, (T, dim): the class token's row first where there is one, then
            the patches row by row. With `layers`, a dictionary of such arrays.

        Raises:
            ValueError: pixels of another shape or smaller than a patch, or an unknown layer.
        """
        cfg, names = self.config, self.names
        tap = tap or _no_tap
        wanted = wanted_layers(layers, cfg.n_layers)
        x = self.embed(pixels, tap)  # (T, dim)
        if names.pre_norm:
            x = self._norm(names.pre_norm, x)
        streams = {0: x} if 0 in wanted else {}
        for layer in range(max(wanted, default=0)):
            x = self._block(layer, x, tap)
            if layer + 1 in wanted:
                streams[layer + 1] = x
        if layers is not None:
            return streams
        if names.final_norm:
            x = tap("ln_final.hook_normalized", self._norm(names.final_norm, x))
        return x

    def embed(self, pixels: Array, tap: Tap | None = None) -> Array:
        """(3, H, W) → (T, dim): each patch through one matrix, the class token, the positions."""
        cfg, w, names = self.config, self.weights, self.names
        tap = tap or _no_tap
        rows, cols = grid_of(pixels, cfg)
        squares = vit.patches(pixels, cfg.patch_size)  # (rows · cols, 3 · patch · patch)
        kernel = w[f"{names.patches}.weight"].reshape(cfg.dim, -1)
        x = vit.linear_bias(squares, kernel, w.get(f"{names.patches}.bias"))
        if names.class_token:
            x = np.concatenate([w[names.class_token].reshape(1, cfg.dim), x])
        x = tap("hook_embed", x)
        return x + tap("hook_pos_embed", positions_for(rows, cols, cfg, w[names.positions]))

    def _block(self, layer: int, x: Array, tap: Tap) -> Array:
        """One layer: x + attention(norm(x)), then that + mlp(norm(that)); (T, dim) → (T, dim)."""
        w, names = self.weights, self.names
        block, hook = names.block.format(layer), f"blocks.{layer}"

        x = tap(f"{hook}.hook_resid_pre", x)
        normed = tap(f"{hook}.ln1.hook_normalized", self._norm(f"{block}.{names.norm1}", x))
        attn_out = self._attention(layer, normed, tap)
        if names.scale1:
            attn_out = attn_out * w[f"{block}.{names.scale1}"]
        x = tap(f"{hook}.hook_resid_mid", x + tap(f"{hook}.hook_attn_out", attn_out))

        normed = tap(f"{hook}.ln2.hook_normalized", self._norm(f"{block}.{names.norm2}", x))
        mlp_out = self._mlp(layer, normed, tap)
        if names.scale2:
            mlp_out = mlp_out * w[f"{block}.{names.scale2}"]
        return tap(f"{hook}.hook_resid_post", x + tap(f"{hook}.hook_mlp_out", mlp_out))

    def _attention(self, layer: int, x: Array, tap: Tap) -> Array:
        """What each row takes from all of them; x is normed, (T, dim) → (T, dim)."""
        cfg, names, hook = self.config, self.names, f"blocks.{layer}.attn"
        block = names.block.format(layer)
        heads = (len(x), cfg.n_heads, cfg.head_dim)

        q = tap(f"{hook}.hook_q", self._linear(f"{block}.{names.q}", x).reshape(heads))
        k = tap(f"{hook}.hook_k", self._linear(f"{block}.{names.k}", x).reshape(heads))
        v = tap(f"{hook}.hook_v", self._linear(f"{block}.{names.v}", x).reshape(heads))

        scores = tap(f"{hook}.hook_attn_scores", vit.full_attention_scores(q, k))  # (H, T, T)
        pattern = tap(f"{hook}.hook_pattern", ops.softmax(scores))
        z = tap(f"{hook}.hook_z", ops.attention_mix(pattern, v))  # (T, H, head_dim)
        return self._linear(f"{block}.{names.out}", z.reshape(len(x), cfg.dim))

    def _mlp(self, layer: int, x: Array, tap: Tap) -> Array:
        """fc2(activation(fc1(x))); (T, dim) → (T, dim)."""
        names, hook = self.names, f"blocks.{layer}.mlp"
        block = names.block.format(layer)
        pre = tap(f"{hook}.hook_pre", self._linear(f"{block}.{names.fc1}", x))
        post = tap(f"{hook}.hook_post", ACTIVATIONS[self.config.activation](pre))  # (T, hidden_dim)
        return self._linear(f"{block}.{names.fc2}", post)

    def _linear(self, name: str, x: Array) -> Array:
        return vit.linear_bias(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def _norm(self, name: str, x: Array) -> Array:
        w = self.weights
        return vit.layer_norm(x, w[f"{name}.weight"], w[f"{name}.bias"], self.config.norm_eps)


def wanted_layers(layers: Sequence[int] | None, n_layers: int) -> set[int]:
    """The layers whose output is asked for; all of them by default. ValueError on others."""
    every = set(range(n_layers + 1))
    wanted = every if layers is None else set(layers)
    if unknown := wanted - every:
        raise ValueError(f"layers must be 0 … {n_layers}, not {min(unknown)}")
    return wanted


def grid_of(pixels: Array, config: VisionConfig) -> tuple[int, int]:
    """Rows and columns of patches in (3, H, W); raises ValueError on another shape."""
    if pixels.ndim != 3 or len(pixels) != config.n_channels:
        raise ValueError(f"pixels must be (3, height, width), not {pixels.shape}")
    rows, cols = pixels.shape[1] // config.patch_size, pixels.shape[2] // config.patch_size
    if not rows or not cols:
        raise ValueError(
            f"an image of {pixels.shape[2]} × {pixels.shape[1]} pixels is smaller than a patch of "
            f"{config.patch_size}"
        )
    return rows, cols


def positions_for(rows: int, cols: int, config: VisionConfig, table: Array) -> Array:
    """The position embeddings of a grid, (T, dim): the table's own, or stretched to fit.

    DINOv2, SigLIP and CLIP interpolate the trained square bicubically. Idefics3 looks up the entry
    that lies at the same share of height and width.
    """
    table = table.reshape(-1, config.dim)
    side = config.native_grid
    if config.kind == "idefics3":
        nearest = bucket(rows, side)[:, None] * side + bucket(cols, side)[None, :]
        found: Array = table[nearest.reshape(-1)]
        return found
    if rows == cols == side:
        return table
    n_class = int(config.has_class_token)
    square = table[n_class:].reshape(side, side, config.dim).astype(np.float64)
    down, across = vit.cubic_weights(side, rows), vit.cubic_weights(side, cols)
    stretched = np.einsum("ri,ijd,cj->rcd", down, square, across, optimize=True)
    patch_rows = stretched.reshape(rows * cols, config.dim).astype(table.dtype)
    return np.concatenate([table[:n_class], patch_rows])


def bucket(n: int, side: int) -> NDArray[np.int64]:
    """Which of `side` equal parts each of n equally spaced patches starts in; (n,).

    In float32 on purpose: a patch that starts on a boundary falls to either side of it by rounding
    (the 25th of 50 among 25 parts, say), and the encoder was trained with the reference's rounding.
    """
    start = np.arange(n, dtype=np.float32) * (np.float32(1.0) / np.float32(n))
    start = np.minimum(start, np.float32(1.0 - 1e-6))
    return np.asarray(np.searchsorted(_boundaries(side), start, side="right"), np.int64)


def _boundaries(side: int) -> NDArray[np.float32]:
    """k / side, for k = 1 … side - 1, rounded as `torch.arange` rounds it.

    It counts up from a float32 start every 8 numbers, as long as 16 are left, and from the very
    beginning after that.
    """
    step, i = 1 / side, np.arange(side - 1)
    start = (step + i // 8 * 8 * step).astype(np.float32).astype(np.float64)
    in_groups = i < len(i) // 16 * 16
    return np.where(in_groups, start + i % 8 * step, step + i * step).astype(np.float32)


def load_vision_weights(folder: Path, config: VisionConfig) -> dict[str, Array]:
    """The encoder's tensors of a checkpoint folder, prefix taken off, float32.

    Raises:
        WeightsError: naming file and tensor: missing or misshapen.
    """
    # A CLIP or SigLIP checkpoint has a text tower with tensors of the same names.
    tensors = read_folder(folder, keep=lambda name: "text_model" not in name)
    shapes = expected_shapes(config)
    anchor = NAMES[config.kind].positions
    prefixes = [n.removesuffix(anchor) for n in tensors if n == anchor or n.endswith(f".{anchor}")]
    if len(prefixes) != 1:
        raise WeightsError(
            f"{folder}: tensor {anchor} is missing from the checkpoint, so there is no image "
            "encoder in it"
            if not prefixes
            else f"{folder}: tensor {anchor} is there {len(prefixes)} times; which one is meant?"
        )
    return {
        name: tensor_of(tensors, prefixes[0] + name, shape, folder)
        for name, shape in shapes.items()
    }


def tensor_of(
    tensors: Mapping[str, tuple[Path, Array]], name: str, shape: tuple[int, ...], folder: Path
) -> Array:
    """A tensor of `weights.read_folder`; WeightsError if it is missing or misshapen."""
    if name not in tensors:
        raise WeightsError(f"{folder}: tensor {name} {shape} is missing from the checkpoint")
    path, array = tensors[name]
    if array.shape != shape:
        raise WeightsError(
            f"{path}: tensor {name} has shape {array.shape}, but config.json asks for {shape}"
        )
    return array


def _no_tap(name: str, array: Array) -> Array:
    return array
