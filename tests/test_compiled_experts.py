"""Experts on the compiled path: the readable path's numbers, the same bits, and what is read.

Families with experts are in tests/test_compiled_families.py; the models here are made up.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from tests.test_compiled_families import seeded_weights
from tinyllm.compiled import CompiledModel
from tinyllm.config import ModelConfig
from tinyllm.families.parts import Experts, Layer
from tinyllm.kernels.formats import FORMATS
from tinyllm.model import Model
from tinyllm.runner import Segment

WITH, WITHOUT = Layer(experts=True), Layer()


def mixed(n: int = 64, k: int = 8, layers: tuple[Layer, ...] = (WITH, WITHOUT, WITH)) -> Any:
    """A small model of 8 of 64 experts, with a layer that has none."""
    return ModelConfig(
        64, 96, len(layers), 4, 2, 32, 97, 400, 1e4, 1e-5, False, family="made up",
        experts=Experts(n, k, 32, "normalised"), layers=layers,
    )  # fmt: skip


def weights_of(config: ModelConfig) -> dict[str, Any]:
    """Seeded; of the first layer's experts, five get equal scores from every row."""
    weights = seeded_weights(config)
    router = weights["model.layers.0.mlp.router.weight"]
    router[[7, 11, 12, 40]] = router[3]
    return weights


def rounded(config: ModelConfig, weights: dict[str, Any], dtype: str) -> dict[str, Any]:
    """What the weights are once they are packed; the router stays as it is."""
    form = FORMATS[dtype]
    table = FORMATS[form.table]
    found = dict(weights)
    for name, w in weights.items():
        if w.ndim == 2 and not name.endswith("router.weight"):
            own = table if "layers" not in name else form
            found[name] = own.stands_for(own.matrix(w), len(w))
    return found


@pytest.mark.long
@pytest.mark.parametrize("dtype", ["f32", "bf16", "q8", "q4", "gguf"])
def test_in_every_format(dtype: str) -> None:
    """The readable path over the same rounded weights; whole, one by one, in chunks beside others,
    on one thread."""
    config = mixed()
    weights = weights_of(config)
    exact = dtype == "f32"
    model = CompiledModel(
        config, weights, dtype, threads=2, kv_dtype=None if exact else "f32", kv_cache_mb=16
    )
    readable = Model(config, rounded(config, weights, dtype))
    ids = np.random.default_rng(2).integers(3, config.vocab_size, 300).astype(np.int32)
    want = readable.forward(ids, readable.new_cache(len(ids)))
    whole = model.forward(ids, model.new_cache(), logits="all")
    gaps = np.abs(whole - want).max(axis=1) / np.abs(want).max()
    # Where two experts score alike, rounding to 16 bits may choose the other one for a row.
    assert np.mean(gaps < (1e-4 if exact else 1e-3)) > (0.999 if exact else 0.95), gaps

    def again(model: CompiledModel, sizes: list[int]) -> np.ndarray:
        cache, other, rows, at = model.new_cache(), model.new_cache(), [], 0
        for i, size in enumerate(sizes):
            mine = Segment(ids[at : at + size], cache, "all")
            beside = Segment(ids[i : i + 1 + i % 7], other, "last")
            both = [mine] if i % 3 == 0 else [beside, mine]
            rows.append(model.forward_batch(both)[-1])
            at += size
        return np.concatenate(rows)

    for sizes in ([1] * 30, [2, 3, 1, 8, 9, 16, 1], [256, 44]):
        np.testing.assert_array_equal(again(model, sizes), whole[: sum(sizes)])
    for threads in (1, 3):
        other = CompiledModel(config, weights, dtype, threads, model.kv_dtype, kv_cache_mb=16)
        np.testing.assert_array_equal(again(other, [90, 1, 2, 60]), whole[:153])


# --- what is read ---------------------------------------------------------------------------------

COUNT = """
import numpy as np
from tests.test_compiled_experts import WITH, mixed, seeded_weights
from tinyllm.compiled import CompiledModel
from tinyllm.kernels import dispatch

read = {}  # (where a matrix's memory is, which of its blocks) -> bytes
def counting(kernel):
    def counted(w, layer, first, count, *rest):
        for block in range(first, first + count):
            read[w.values.ctypes.data, layer, block] = w.values[layer, block].nbytes
        kernel(w, layer, first, count, *rest)
    return counted
dispatch.MATMUL.update({types: counting(kernel) for types, kernel in dispatch.MATMUL.items()})

config = mixed(64, 8, (WITH, WITH))
model = CompiledModel(config, seeded_weights(config), "q8", kv_cache_mb=4)
experts = model.arrays.experts
cache = model.new_cache()
def of_experts(tokens):
    read.clear()
    model.forward(np.array(tokens, np.int32), cache)
    own = {w.values.ctypes.data for w in (experts.gate_up, experts.down)}
    return sum(nbytes for (where, _, _), nbytes in read.items() if where in own)
whole = experts.gate_up.values.nbytes + experts.down.values.nbytes
one = of_experts([5])
print(one / whole, sum(read.values()), model.nbytes, of_experts([5, 5, 5]) / whole)
"""


def test_a_token_reads_its_experts_alone() -> None:
    """8 of 64: an eighth of the experts' bytes; of equal tokens in a call, no more. And all that is
    read is what the model says that a token reads."""
    done = subprocess.run(
        [sys.executable, "-c", COUNT],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    share, read, said, of_three = map(float, done.stdout.split())
    assert share == of_three == 1 / 8
    assert read == said


PROTECT = """
import ctypes, mmap
import numpy as np
from tests.test_compiled_experts import WITH, Experts, ModelConfig, seeded_weights
from tinyllm.compiled import CompiledModel
from tinyllm.model import Model

config = ModelConfig(256, 96, 1, 4, 2, 64, 97, 400, 1e4, 1e-5, False, family="made up",
                     experts=Experts(64, 8, 64, "normalised"), layers=(WITH,))
weights = seeded_weights(config)
chosen = []
def tap(name, array):
    if name.endswith("hook_expert_weights"):
        chosen.extend(np.flatnonzero(array[0]).tolist())
    return array
readable = Model(config, weights)
readable.forward([5], readable.new_cache(1), tap=tap)

model = CompiledModel(config, weights, "f32", kv_cache_mb=4)
before = model.forward([5], model.new_cache())
libc = ctypes.CDLL(None, use_errno=True)
libc.mprotect.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
hidden = 0
for w in (model.arrays.experts.gate_up, model.arrays.experts.down):
    size = w.values[0].nbytes
    assert w.values.ctypes.data % mmap.PAGESIZE == size % mmap.PAGESIZE == 0
    for e in set(range(64)) - set(chosen):
        assert libc.mprotect(w.values.ctypes.data + e * size, size, 0) == 0  # PROT_NONE
        hidden += size
print(len(chosen), hidden, np.array_equal(model.forward([5], model.new_cache()), before))
"""


@pytest.mark.long
@pytest.mark.skipif(sys.platform == "win32", reason="asks the system to guard memory")
def test_the_others_weights_may_be_out_of_reach() -> None:
    """In machine code: with the memory of 56 of 64 experts guarded, a token that needs the other
    eight is computed as before. Reading one byte of the 56 would end the process."""
    done = subprocess.run(
        [sys.executable, "-c", PROTECT], capture_output=True, text=True, check=True
    )
    expert = 3 * 256 * 64 * 4
    assert done.stdout.split() == ["8", str(56 * expert), "True"]
