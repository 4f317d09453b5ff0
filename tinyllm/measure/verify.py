"""`tinyllm verify`: whether this machine computes the bits that every other one does.

Each check runs one kernel, or a whole seeded model, on numbers made from integers, and hashes what
comes out; `bits.json` has the hashes that are right. `python -m tinyllm.measure.verify` makes that
file again, after a change that is meant to change bits.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyllm.compiled import CompiledModel
from tinyllm.config import ModelConfig
from tinyllm.families.parts import Experts, Layer
from tinyllm.kernels import dispatch, mixture
from tinyllm.kernels.arrays import make_softmax
from tinyllm.kernels.drawing import Drawing
from tinyllm.kernels.formats import FORMATS
from tinyllm.kernels.layout import BLOCK, GROUP, PAGE, TILE, AttendScratch, Keys
from tinyllm.kernels.parts import rotation_tables
from tinyllm.runner import Segment
from tinyllm.vision.compiled import CompiledVisionModel
from tinyllm.vision.config import VisionConfig
from tinyllm.vision.config import expected_shapes as vision_shapes
from tinyllm.weights import expected_shapes

BITS = Path(__file__).with_name("bits.json")
CONFIG = ModelConfig(64, 96, 2, 4, 2, 32, 100, 1024, 1e4, 1e-5, False)
EXPERTS = replace(
    CONFIG,
    experts=Experts(6, 2, 32, "normalised"),
    layers=(Layer(), Layer(experts=True)),
)
WITH_EXPERTS = ("f32", "q4")  # formats whose model with experts is checked where all models are
VISION = VisionConfig("dinov2", 32, 64, 2, 4, 56, 14, 1e-6, "gelu")
DEFAULT = "q8"  # the format whose whole model is checked unless all are asked for

Array = NDArray[Any]
Check = Callable[[], Iterable[Array]]


def numbers(shape: tuple[int, ...], seed: int, size: float = 1.0) -> NDArray[np.float32]:
    """Float32s of -size … size that are the same everywhere: integers over a power of two."""
    whole = np.random.default_rng(seed).integers(-(2**20), 2**20, shape)
    return (whole / 2**20 * size).astype(np.float32)


def checks(formats: Collection[str]) -> Iterator[tuple[str, Check]]:
    """Name and check, kernels before what is made of them; without formats, kernels alone."""
    yield "rope tables", _tables
    yield "norm_row", _norm
    yield "rope", _rope
    yield "swiglu", _swiglu
    for name in FORMATS:
        yield f"put for {name}", partial(_activations, name)
        yield f"embed_{name}", partial(_embed, name)
        yield f"matmul_{name}", partial(_matmul, name)
    yield "a GGUF file's blocks", _blocks
    for kv_dtype in (np.float32, np.uint16):
        kind = "f32" if kv_dtype == np.float32 else "f16"
        yield f"attend and merge, {kind} cache", partial(_attend, kv_dtype)
    yield "sampling", _sampling
    for name in formats:
        yield f"model in {name}", partial(_model, name)
    if set(formats) == set(FORMATS):
        for name in WITH_EXPERTS:
            yield f"experts in {name}", partial(_model, name, EXPERTS)
    if formats:
        yield "image encoder", _encoder


def run(check: Check) -> str:
    """What a check comes to: 16 hex digits."""
    digest = hashlib.sha256()
    for array in check():
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def verify(formats: Collection[str], progress: Callable[[str], None]) -> tuple[list[str], int]:
    """The names of the checks that came out otherwise here, and how many there were."""
    right = json.loads(BITS.read_text(encoding="utf-8"))
    wrong, n = [], 0
    for name, check in checks(formats):
        progress(name)
        n += 1
        if run(check) != right.get(name):
            wrong.append(name)
    return wrong, n


# --- kernels ------------------------------------------------------------------------------------


def _tables() -> Iterable[Array]:
    tables = rotation_tables(CONFIG)
    return tables["cos"], tables["sin"]


def _norm() -> Iterator[Array]:
    out = np.zeros(96, np.float32)
    dispatch.norm_row(numbers((3, 96), 1, 4), 1, numbers((2, 96), 2), 1, 1e-5, out)
    yield out


def _rope() -> Iterator[Array]:
    angles, out = rotation_tables(CONFIG), np.zeros((3, 32), np.float32)
    dispatch.rope(numbers((3, 32), 3), 1, angles["cos"], angles["sin"], 77, 0.25, out, 2)
    yield out


def _swiglu() -> Iterator[Array]:
    out = np.zeros(GROUP, np.float32)
    for size in (1.0, 20.0, 120.0):
        dispatch.swiglu(numbers((2, 64), 4, size), 1, out)
        yield out


def _rows(name: str, n: int, width: int) -> Any:
    """A tile of activations."""
    rows, x = FORMATS[name].empty_rows(TILE, width), numbers((n, width), 5, 8)
    for lane in range(n):
        dispatch.put(rows, 0, lane, 0, x[lane], 0, width)
    return rows


def _activations(name: str) -> Iterable[Array]:
    return tuple(_rows(name, TILE, 96))


def _packed(name: str) -> Any:
    form = FORMATS[name]
    return form.stack([form.matrix(numbers((3 * BLOCK, 96), 6))], 1)


def _embed(name: str) -> Iterator[Array]:
    out = np.zeros((1, 96), np.float32)
    dispatch.embed(_packed(name), 21, out, 0)
    yield out


def _matmul(name: str) -> Iterator[Array]:
    for n in (1, 2, 3, TILE):
        out = np.zeros((TILE, 3 * BLOCK), np.float32)
        dispatch.matmul(_packed(name), 0, 0, 3, _rows(name, n, 96), 0, n, out, 0, 0)
        yield out[:n]


def _blocks() -> Iterator[Array]:
    """Every kind of a GGUF file's blocks in one matrix."""
    rng, width = np.random.default_rng(13), 2 * mixture.SUPER_GROUPS * GROUP
    shape = (mixture.N_KINDS, BLOCK, width)
    largest = np.array(mixture.LARGEST)[:, None, None]
    q = (rng.integers(0, 256, shape) % (largest + 1)).astype(np.uint8).reshape(-1, width)
    halves = numbers((len(q), width // GROUP, 4), 14, 0.125).astype(np.float16)
    kinds = np.repeat(np.arange(mixture.N_KINDS, dtype=np.uint8), BLOCK)
    scales = halves.view(np.uint8)
    for first in range(0, scales.shape[1], mixture.SUPER_GROUPS):  # one d a super-block
        scales[:, first : first + mixture.SUPER_GROUPS, 4:] = scales[:, first : first + 1, 4:]
    w = mixture.stack([mixture.pack(kinds, q, scales)], 1)
    for n in (1, 2, 3, TILE):
        out = np.zeros((TILE, len(q)), np.float32)
        rows = _rows("gguf", n, width)
        dispatch.matmul(w, 0, 0, mixture.N_KINDS, rows, 0, n, out, 0, 0)
        yield out[:n]
    row = np.zeros((1, width), np.float32)
    for token in range(7, len(q), BLOCK):
        dispatch.embed(w, token, row, 0)
        yield row


def _attend(stored: Any) -> Iterator[Array]:
    n_keys, head_dim = 150, 32
    pages = np.array([[2, 0, 1]], np.int32)
    cells, half = np.zeros((3, 1, 1, 2, PAGE * head_dim), stored), np.zeros(head_dim, stored)
    keys, values = numbers((n_keys, head_dim), 7, 3), numbers((n_keys, head_dim), 8, 3)
    for t in range(n_keys):
        page, slot = pages[0, t // PAGE], t % PAGE
        dispatch.append_key(cells, page, 0, 0, slot, keys, t, half)
        dispatch.append_value(cells, page, 0, 0, slot, values, t)
    q = numbers((2 * TILE, head_dim), 9)
    scratch = AttendScratch(*(np.zeros(s, np.float32) for s in ((8, PAGE), (8, BLOCK), 8)))
    visible = np.full(2 * TILE, n_keys, np.int64)
    for n in (3, 4, TILE):
        state, later = make_softmax((2 * TILE,), head_dim), make_softmax((2 * TILE,), head_dim)
        first = Keys(cells, pages, 0, 0, 0, 0, 2 * PAGE)
        second = Keys(cells, pages, 0, 0, 0, 2 * PAGE, n_keys)
        dispatch.attend(q, 0, n, visible, first, scratch, state, 0)
        dispatch.attend(q, 0, n, visible, second, scratch, later, 0)
        for i in range(n):
            dispatch.merge(state, i, later, i)
        yield from (array[:n] for array in state)
        hidden = np.full(2 * TILE, 50, np.int64)  # a window's edge, and a soft cap
        dispatch.attend(q, 0, n, visible, first, scratch, state, 0, hidden, 5.0)
        yield from (array[:n] for array in state)


def _sampling() -> Iterator[Array]:
    row, kernels = numbers((3000,), 10, 12), Drawing(3000)
    top = row.max()
    kernels.exp_row(row, top)
    exps, sums = kernels.room.exps, kernels.room.sums
    yield from (exps, sums, np.array(kernels.log(float(sums.sum()))))
    for step in range(20):
        u = kernels.uniform(np.uint64(11), np.uint64(3), np.uint64(step))
        cuts = ((0, 1.0), (40, 1.0), (0, 0.9), (50, 0.95))
        tokens = [kernels.draw(row, top, k, p, u) for k, p in cuts]
        yield np.array([u, *tokens])
    yield kernels.largest(row, 20)


# --- whole models -------------------------------------------------------------------------------


def seeded_model(dtype: str, threads: int = 2, config: ModelConfig = CONFIG) -> CompiledModel:
    """A model of two layers that is the same everywhere."""
    weights = {name: numbers(shape, 100 + i, 0.5) for i, (name, shape) in enumerate(shapes(config))}
    return CompiledModel(config, weights, dtype, threads, kv_cache_mb=16)


def shapes(config: ModelConfig) -> list[tuple[str, tuple[int, ...]]]:
    """Tensors in the order of their names."""
    return sorted(expected_shapes(config).items())


def _model(dtype: str, config: ModelConfig = CONFIG) -> Iterator[Array]:
    """A prompt, some steps, and a batch of which one context is long."""
    model = seeded_model(dtype, config=config)
    tokens = np.resize(np.arange(1, CONFIG.vocab_size, 7, dtype=np.int32), 600)
    short, long = model.new_cache(), model.new_cache()
    yield model.forward(tokens[:70], short, logits="all")
    for i in range(4):
        yield model.forward(tokens[i : i + 1], short)
    yield model.forward(tokens, long)
    for i in range(3):
        both = [Segment(tokens[i : i + 1], cache) for cache in (short, long)]
        yield from model.forward_batch(both)


def _encoder() -> Iterator[Array]:
    weights = {
        name: numbers(shape, 200 + i, 0.3)
        for i, (name, shape) in enumerate(sorted(vision_shapes(VISION).items()))
    }
    model = CompiledVisionModel(VISION, weights, threads=2)
    yield model.encode(numbers((3, 56, 56), 12, 2))


def main() -> None:
    """Write `bits.json`."""
    found = {name: run(check) for name, check in checks(FORMATS)}
    BITS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
