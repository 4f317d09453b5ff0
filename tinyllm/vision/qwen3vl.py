"""Qwen3-VL's eyes: patches of any grid, turned by row and column, merged four to one.

    image → multiples of 32 pixels → patches → encoder → four patches to a row → language model

The learned positions, of a square grid, are interpolated to the image's; heads turn by a patch's
row and column. After some blocks the stream is merged to rows of their own, which the language
model adds at its early layers (DeepStack). Bai et al. 2025, https://arxiv.org/abs/2511.21631.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tinyllm.config import ModelConfig, read_json_object
from tinyllm.errors import ConfigError, ImageError
from tinyllm.families.keys import value_of as get_key
from tinyllm.kernels import reference as ops
from tinyllm.kernels.blas import few_threads
from tinyllm.tokenizer import Tokenizer
from tinyllm.vision.encoder import tensor_of
from tinyllm.vision.preprocess import resize
from tinyllm.vision.seen import WHOLE_IMAGE, Seen, grid
from tinyllm.weights import read_folder

EPS, THETA = 1e-6, 10_000.0
MOST_ASPECT = 200

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Shape:
    """The encoder's: lengths in elements, `patch` in pixels, `merge` patches a side of a row."""

    dim: int
    hidden_dim: int
    n_layers: int
    n_heads: int
    patch: int
    merge: int
    frames: int  # that a patch spans; an image is the same frame so many times
    out_dim: int
    grid: int  # side of the learned positions
    deep: tuple[int, ...]  # the blocks whose output is merged to rows of their own

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> Shape:
        """Read a vision_config; ConfigError names a key that is missing or not understood."""
        act = raw.get("hidden_act", "gelu_pytorch_tanh")
        if act != "gelu_pytorch_tanh":
            raise ConfigError(f"vision_config: hidden_act is {act!r}; Qwen3-VL's is "
                              "'gelu_pytorch_tanh'")  # fmt: skip
        deep = raw.get("deepstack_visual_indexes", [8, 16, 24])
        if not isinstance(deep, list) or not all(type(i) is int for i in deep):
            raise ConfigError(f"deepstack_visual_indexes must be numbers of blocks, not {deep!r}")
        side = math.isqrt(get_key(raw, "num_position_embeddings", int, 2304))
        shape = cls(
            dim=get_key(raw, "hidden_size", int, 1152),
            hidden_dim=get_key(raw, "intermediate_size", int, 4304),
            n_layers=get_key(raw, "depth", int, 27),
            n_heads=get_key(raw, "num_heads", int, 16),
            patch=get_key(raw, "patch_size", int, 16),
            merge=get_key(raw, "spatial_merge_size", int, 2),
            frames=get_key(raw, "temporal_patch_size", int, 2),
            out_dim=get_key(raw, "out_hidden_size", int, 3584),
            grid=side,
            deep=tuple(deep),
        )
        if shape.dim % (4 * shape.n_heads):
            raise ConfigError("vision_config: hidden_size must be a multiple of 4 · num_heads")
        if not all(0 <= i < shape.n_layers for i in deep):
            raise ConfigError(f"deepstack_visual_indexes {deep} aren't all blocks of the encoder")
        return shape

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Every tensor without its prefix; matrices are (out, in)."""
        dim, wide = self.dim, self.dim * self.merge**2
        shapes: dict[str, tuple[int, ...]] = {
            "patch_embed.proj.weight": (dim, 3, self.frames, self.patch, self.patch),
            "patch_embed.proj.bias": (dim,),
            "pos_embed.weight": (self.grid**2, dim),
        }

        def linear(name: str, rows: int, columns: int) -> None:
            shapes.update({f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)})

        def norm(name: str, n: int) -> None:
            shapes.update({f"{name}.weight": (n,), f"{name}.bias": (n,)})

        for i in range(self.n_layers):
            norm(f"blocks.{i}.norm1", dim)
            linear(f"blocks.{i}.attn.qkv", 3 * dim, dim)
            linear(f"blocks.{i}.attn.proj", dim, dim)
            norm(f"blocks.{i}.norm2", dim)
            linear(f"blocks.{i}.mlp.linear_fc1", self.hidden_dim, dim)
            linear(f"blocks.{i}.mlp.linear_fc2", dim, self.hidden_dim)
        for name in ("merger", *(f"deepstack_merger_list.{i}" for i in range(len(self.deep)))):
            norm(f"{name}.norm", dim if name == "merger" else wide)
            linear(f"{name}.linear_fc1", wide, wide)
            linear(f"{name}.linear_fc2", self.out_dim, wide)
        return shapes


class Qwen3Encoder:
    """Pixels of any whole number of rows → rows for the language model.

    Args:
        shape: of the encoder.
        weights: the checkpoint's names, without prefix.
    """

    def __init__(self, shape: Shape, weights: Mapping[str, Array]) -> None:
        self.shape, self.weights = shape, weights

    @few_threads()
    def encode(self, pixels: Array) -> list[Array]:
        """(3, H, W) → what the language model takes, (M, out_dim), then the deep rows, each so.

        Rows lie row by row; each is merge × merge patches.
        """
        shape = self.shape
        rows, cols = pixels.shape[1] // shape.patch, pixels.shape[2] // shape.patch
        down, right = self._order(rows, cols)
        x = self._embed(pixels, down, right) + self._positions(rows, cols)[down * cols + right]
        cos, sin = self._angles(down, right)
        deep = []
        for i in range(shape.n_layers):
            x = x + self._attention(i, self._norm(f"blocks.{i}.norm1", x), cos, sin)
            hidden = ops.gelu_tanh(
                self._linear(f"blocks.{i}.mlp.linear_fc1", self._norm(f"blocks.{i}.norm2", x))
            )
            x = x + self._linear(f"blocks.{i}.mlp.linear_fc2", hidden)
            if i in shape.deep:
                deep.append(self._merge(f"deepstack_merger_list.{shape.deep.index(i)}", x))
        return [self._merge("merger", x), *deep]

    def _order(self, rows: int, cols: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Row and column of each patch, (T,) each: those of one row of the output together."""
        m = self.shape.merge
        places = np.indices((rows, cols)).reshape(2, rows // m, m, cols // m, m)
        down, right = places.transpose(0, 1, 3, 2, 4).reshape(2, -1)
        return down, right

    def _embed(self, pixels: Array, down: Any, right: Any) -> Array:
        """Each patch through one matrix; its frames are the same, so their weights add up."""
        p, w = self.shape.patch, self.weights["patch_embed.proj.weight"]
        rows, cols = pixels.shape[1] // p, pixels.shape[2] // p
        squares = pixels.reshape(3, rows, p, cols, p).transpose(1, 3, 0, 2, 4)[down, right]
        matrix = w.sum(axis=2).reshape(len(w), -1)
        x: Array = squares.reshape(len(down), -1) @ matrix.T
        return x + self.weights["patch_embed.proj.bias"]

    def _positions(self, rows: int, cols: int) -> Array:
        """The learned positions, interpolated to rows × cols: (rows · cols, dim)."""
        n = self.shape.grid
        table = self.weights["pos_embed.weight"].reshape(n, n, -1)

        def between(length: int, axis: int, table: Array) -> Array:
            at = np.linspace(0, n - 1, length, dtype=np.float32)
            low = at.astype(np.intp)
            high, share = np.minimum(low + 1, n - 1), at - low
            share = share.reshape(-1, 1, 1) if axis == 0 else share.reshape(1, -1, 1)
            return np.take(table, low, axis) * (1 - share) + np.take(table, high, axis) * share

        return between(cols, 1, between(rows, 0, table)).reshape(rows * cols, -1)

    def _angles(self, down: Any, right: Any) -> tuple[Array, Array]:
        """cos and sin by row, then by column, (T, head_dim / 2) each."""
        half = self.shape.dim // self.shape.n_heads // 2
        freqs = 1.0 / np.power(THETA, np.arange(0, half, 2, dtype=np.float32) / half)
        angles = np.concatenate([down[:, None] * freqs, right[:, None] * freqs], axis=1)
        return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)

    def _attention(self, i: int, x: Array, cos: Array, sin: Array) -> Array:
        """Every patch sees every patch."""
        qkv = self._linear(f"blocks.{i}.attn.qkv", x).reshape(len(x), 3, self.shape.n_heads, -1)
        q, k, v = qkv[:, 0], qkv[:, 1], qkv[:, 2]
        q, k = ops.apply_rope(q, cos, sin), ops.apply_rope(k, cos, sin)
        scores = np.einsum("thd,shd->hts", q, k, optimize=True) / np.float32(q.shape[-1] ** 0.5)
        z = ops.attention_mix(ops.softmax(scores), v)
        return self._linear(f"blocks.{i}.attn.proj", z.reshape(len(x), -1))

    def _merge(self, name: str, x: Array) -> Array:
        """merge² patches laid end to end → one row; deep rows are normed after that, not before."""
        wide = self.shape.dim * self.shape.merge**2
        x = self._norm(f"{name}.norm", x if name == "merger" else x.reshape(-1, wide))
        hidden = ops.gelu(self._linear(f"{name}.linear_fc1", x.reshape(-1, wide)))
        return self._linear(f"{name}.linear_fc2", hidden)

    def _linear(self, name: str, x: Array) -> Array:
        y: Array = ops.linear(x, self.weights[f"{name}.weight"]) + self.weights[f"{name}.bias"]
        return y

    def _norm(self, name: str, x: Array) -> Array:
        w = self.weights
        y: Array = ops.layer_norm(x, w[f"{name}.weight"], w[f"{name}.bias"], EPS)
        return y


@dataclass(frozen=True)
class Resizing:
    """How large an image becomes: whole rows, within a number of pixels."""

    factor: int
    least: int
    most: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resample: Image.Resampling

    @classmethod
    def from_folder(cls, folder: Path, shape: Shape) -> Resizing:
        """Read preprocessor_config.json; ConfigError names what doesn't make sense."""
        path = folder / "preprocessor_config.json"
        raw = read_json_object(path)
        kind = str(raw.get("image_processor_type", "")).removesuffix("Fast").removesuffix("Pil")
        if kind not in ("Qwen2VLImageProcessor", "Qwen3VLImageProcessor"):
            raise ConfigError(f"{path}: image_processor_type is {kind!r}, not a "
                              "Qwen2VLImageProcessor")  # fmt: skip
        size = raw.get("size") or {}
        if raw.get("patch_size", 14) != shape.patch or raw.get("merge_size", 2) != shape.merge:
            raise ConfigError(f"{path}: patch_size and merge_size must be the encoder's, "
                              f"{shape.patch} and {shape.merge}")  # fmt: skip
        least = raw.get("min_pixels") or size.get("shortest_edge", 56 * 56)
        most = raw.get("max_pixels") or size.get("longest_edge", 28 * 28 * 1280)
        mean, std = raw.get("image_mean", [0.5] * 3), raw.get("image_std", [0.5] * 3)
        if not (type(least) is int and type(most) is int and 0 < least <= most):
            raise ConfigError(f"{path}: size must hold shortest_edge and longest_edge, in pixels")
        if len(mean) != 3 or len(std) != 3 or 0 in std:
            raise ConfigError(f"{path}: image_mean and image_std must be three numbers each")
        resample = Image.Resampling(int(raw.get("resample", 3)))
        factor = shape.patch * shape.merge
        return cls(factor, least, most, tuple(mean), tuple(std), resample)

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that an image becomes; ImageError for a strip."""
        if max(height, width) > MOST_ASPECT * min(height, width):
            raise ImageError(f"an image of {width} × {height} is too narrow a strip: its sides may "
                             f"differ by {MOST_ASPECT} times")  # fmt: skip
        f = self.factor
        rows, cols = round(height / f) * f, round(width / f) * f
        if rows * cols > self.most:
            beta = math.sqrt(height * width / self.most)
            rows = max(f, math.floor(height / beta / f) * f)
            cols = max(f, math.floor(width / beta / f) * f)
        elif rows * cols < self.least:
            beta = math.sqrt(self.least / (height * width))
            rows, cols = math.ceil(height * beta / f) * f, math.ceil(width * beta / f) * f
        return rows, cols

    def __call__(self, image: NDArray[np.uint8]) -> Array:
        """(H, W, 3) uint8 → (3, height, width) float32."""
        resized = resize(image, self.size(*image.shape[:2]), self.resample)
        scaled = (resized.astype(np.float64) / 255).astype(np.float32)
        normal = (scaled - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return np.ascontiguousarray(normal.transpose(2, 0, 1))


class Qwen3Eyes:
    """The image side of a Qwen3-VL checkpoint.

    A row is (dim · (1 + deep) + 3,): what stands in the prompt, what early layers add, and its
    place in the image: height, width, and the longer side of the image, in rows.
    """

    around, whole = "", False

    def __init__(
        self, encoder: Qwen3Encoder, resizing: Resizing, image_token: str, tokenizer: Tokenizer
    ) -> None:
        self.encoder, self.resizing = encoder, resizing
        self.image_token = self.row_token = image_token
        self._id = tokenizer.special_tokens[image_token]

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        tokenizer: Tokenizer,
        *,
        compiled: bool = False,
        threads: int | None = None,
    ) -> Qwen3Eyes:
        """Read the image side of a hub-layout folder; it is computed on the readable path.

        Raises:
            ConfigError, WeightsError: naming the file, and the key or tensor.
        """
        path = folder / "config.json"
        raw = read_json_object(path)
        eyes = raw.get("vision_config")
        if not isinstance(eyes, dict):
            raise ConfigError(f"{path}: vision_config must be an object, not {eyes!r}")
        shape = Shape.from_hf(eyes)
        if shape.out_dim != (dim := ModelConfig.from_folder(folder).dim):
            raise ConfigError(f"{path}: out_hidden_size is {shape.out_dim}, and the language model "
                              f"{dim} wide")  # fmt: skip
        by_id = {token: name for name, token in tokenizer.special_tokens.items()}
        token = get_key(raw, "image_token_id", int, 151_655)
        if token not in by_id:
            raise ConfigError(
                f"{path}: image_token_id is {token}, which is no control token of this tokenizer; "
                "take tokenizer.json from the same checkpoint"
            )
        found = read_folder(folder, keep=lambda name: "visual." in name)
        prefix = next((name.partition("visual.")[0] for name in found), "model.") + "visual."
        weights = {
            name: tensor_of(found, prefix + name, size, folder)
            for name, size in shape.tensors().items()
        }
        resizing = Resizing.from_folder(folder, shape)
        return cls(Qwen3Encoder(shape, weights), resizing, by_id[token], tokenizer)

    def encode(self, image: NDArray[np.uint8]) -> tuple[tuple[int, ...], Array]:
        """(H, W, 3) RGB → the tokens it takes in a prompt, and the rows of its image tokens.

        Raises:
            ImageError: the image has no pixels, or is a strip.
        """
        if image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ImageError(f"pixels must be (height, width, 3), not {image.shape}")
        pixels = self.resizing(image)
        rows, cols = (
            pixels.shape[1] // self.resizing.factor,
            pixels.shape[2] // self.resizing.factor,
        )
        down, right = np.indices((rows, cols)).reshape(2, -1, 1)
        longer = np.full_like(down, max(rows, cols))
        place = np.concatenate([down, right, longer], axis=1).astype(np.float32)
        whole = np.concatenate([*self.encoder.encode(pixels), place], axis=1)
        return (self._id,) * (rows * cols), whole

    def seen(self, image: NDArray[np.uint8]) -> Seen:
        """(H, W, 3) RGB → the whole of it; a row stands for a square of patches."""
        height, width = self.resizing.size(*image.shape[:2])
        rows, cols = height // self.resizing.factor, width // self.resizing.factor
        places = tuple(grid(WHOLE_IMAGE, rows, cols))
        merge = self.encoder.shape.merge
        return Seen((WHOLE_IMAGE,), (rows * merge, cols * merge), places)
