"""A GGUF file's tensors under the hub's names and in the checkpoint's order, as they are asked for.

Nothing is copied beside the file: float32 values are made from its blocks tensor by tensor, and the
blocks that kernels can compute with are handed over as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tinyllm.errors import FetchError, WeightsError
from tinyllm.files.blocks import Blocks, take_apart, values
from tinyllm.files.gguf import GGUF, TensorInfo
from tinyllm.files.gguf_config import family_of, hub_config
from tinyllm.files.gguf_families import GGUFFamily

# Tensors that say what the config says (`gguf_config`).
ROPE_TENSORS = {"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"}


@dataclass(frozen=True)
class Source:
    """Where a hub tensor lies in the file, and what undoes llama.cpp's changes.

    `expert` picks one of a stack; `heads` is set where rows are interleaved head by head; `shift`
    is taken off the values; `transposed` swaps the axes.
    """

    info: TensorInfo
    expert: int | None = None
    heads: int | None = None
    shift: float = 0.0
    transposed: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """The hub tensor's."""
        shape = self.info.shape if self.expert is None else self.info.shape[1:]
        return shape[::-1] if self.transposed else shape


class GGUFWeights:
    """The tensors of an open file by their hub names.

    Raises `FetchError` on a tensor that has no place in the file's architecture.
    """

    def __init__(self, gguf: GGUF) -> None:
        self._gguf = gguf
        self._sources: dict[str, Source] = {}
        config = hub_config(gguf)
        for info in gguf.tensors.values():
            for name, source in _placed(gguf, info, family_of(gguf), config):
                if name in self._sources:
                    raise FetchError(f"{gguf.path}: two tensors would both be named {name!r}")
                self._sources[name] = source

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor's name and shape."""
        return {name: source.shape for name, source in self._sources.items()}

    def kind(self, name: str) -> str:
        """How the file stores a tensor: "F32", "Q4_K" …"""
        return self._sources[name].info.type.name

    def values(self, name: str) -> NDArray[np.float32]:
        """A tensor in float32."""
        source = self._sources[name]
        raw, shape = self._raw(source)
        array = values(raw, source.info.type, shape)
        if source.heads is not None:
            array = array[half_split_order(len(array), source.heads)]
        if source.shift:
            array = array - np.float32(source.shift)
        return np.ascontiguousarray(array.T if source.transposed else array)

    def blocks(self, name: str) -> Blocks | None:
        """A matrix as integers and scales; None where the file has it in another way."""
        source = self._sources[name]
        raw, shape = self._raw(source)
        if source.shift or source.transposed or len(shape) != 2:
            return None
        blocks = take_apart(raw, source.info.type, shape)
        if blocks is None or source.heads is None:
            return blocks
        return blocks.rows(half_split_order(shape[0], source.heads))

    def _raw(self, source: Source) -> tuple[NDArray[np.uint8], tuple[int, ...]]:
        """A tensor's bytes, or one expert's, and their shape in the file."""
        raw, shape = self._gguf.raw(source.info.name), source.info.shape
        if source.expert is None:
            return raw, shape
        return raw.reshape(shape[0], -1)[source.expert], shape[1:]


def open_weights(path: Path) -> GGUFWeights:
    """The tensors of a model folder's GGUF file. Raises `WeightsError` naming it.

    The file stays mapped as long as anything made from it is there.
    """
    try:
        return GGUFWeights(GGUF(path, texts=False))
    except FetchError as error:
        raise WeightsError(str(error)) from error


def _placed(
    gguf: GGUF, info: TensorInfo, family: GGUFFamily, config: Mapping[str, object]
) -> Iterator[tuple[str, Source]]:
    """The hub tensors that one tensor of the file holds: one, or an expert each."""
    stem, _, part = info.name.rpartition(".")
    if info.name in ROPE_TENSORS:
        return
    is_norm = family.shifted_norms and stem.endswith("norm") and part == "weight"
    shift = 1.0 if is_norm else 0.0
    if stem in family.outside:
        yield f"{family.outside[stem]}.{part}", Source(info, shift=shift)
        return
    head, _, rest = stem.partition(".")
    layer, _, stem = rest.partition(".")
    if head != "blk" or not layer.isdecimal() or stem not in family.layers:
        raise FetchError(
            f"{gguf.path}: tensor {info.name!r} has no place in a {family.hub}; this file is of "
            "another kind than it says"
        )
    name = f"{family.layer_prefix}.{int(layer)}.{family.layers[stem]}.{part}"
    if "{e}" in name:
        for e in range(info.shape[0]):
            yield name.format(e=e), Source(info, expert=e)
        return
    heads = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}.get(stem)
    n_heads = config[heads] if heads is not None and family.interleaved else None
    assert n_heads is None or isinstance(n_heads, int)
    if n_heads is not None and info.shape[0] % (2 * n_heads):
        raise FetchError(
            f"{gguf.path}: tensor {info.name!r} of shape {info.shape} does not split over "
            f"{n_heads} heads"
        )
    transposed = stem in family.transposed and part == "weight"
    yield name, Source(info, heads=n_heads, shift=shift, transposed=transposed)


def half_split_order(n_rows: int, n_heads: int) -> NDArray[np.intp]:
    """Row order that turns interleaved rotary pairs into half-split ones, head by head.

    Within a head the file holds rows 0, d/2, 1, d/2 + 1, …; we want 0, 1, …, d/2, d/2 + 1, …
    Returns (n_rows,) indices: `stored[order]` is the checkpoint's order.
    """
    return np.arange(n_rows).reshape(n_heads, -1, 2).swapaxes(1, 2).reshape(-1)
