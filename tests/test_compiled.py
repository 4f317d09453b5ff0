"""The compiled path against the readable one, and against itself: to the bit."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.llama_folders import SMALL, write_folder
from tinyllm.compiled import CompiledModel, plan_call
from tinyllm.config import ModelConfig
from tinyllm.errors import CacheFull, ConfigError, WeightsError
from tinyllm.kernels.arrays import MAX_LOGIT_ROWS, MAX_ROWS
from tinyllm.kernels.formats import FORMATS
from tinyllm.kernels.layout import Q4, Q8
from tinyllm.kernels.packed import Reading, checkpoint_digest, load_packed
from tinyllm.kv_cache import KVCache
from tinyllm.model import Model
from tinyllm.runner import Segment
from tinyllm.tokenizer import Tokenizer
from tinyllm.weights import expected_shapes, load_weights

TEXT = "In 1969, Neil Armstrong walked on the Moon. def f(x):\n    return x ** 2  # 日本語 🙂\n" * 3


@pytest.fixture(scope="module")
def tokens(weights_folder: Path) -> np.ndarray:
    return np.array(Tokenizer.from_folder(weights_folder).encode(TEXT), np.int32)


@pytest.fixture(scope="module")
def config(weights_folder: Path) -> ModelConfig:
    return ModelConfig.from_folder(weights_folder)


@pytest.fixture(scope="module")
def reference(weights_folder: Path, config: ModelConfig) -> Model:
    return Model(config, load_weights(weights_folder, config))


@pytest.fixture(scope="module")
def readable(reference: Model, tokens: np.ndarray) -> tuple[np.ndarray, KVCache]:
    """The readable model's logits of the whole text, and its cache."""
    cache = reference.new_cache(256)
    return reference.forward(tokens, cache, logits="all"), cache


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=() if name in ("f32", "q4") else pytest.mark.long)
        for name in FORMATS
    ],
)
def compiled(
    request: pytest.FixtureRequest, weights_folder: Path, config: ModelConfig
) -> Iterator[CompiledModel]:
    yield CompiledModel(config, weights_folder, request.param, threads=2, kv_cache_mb=96)


@pytest.fixture(scope="module")
def whole(compiled: CompiledModel, tokens: np.ndarray) -> np.ndarray:
    """Logits of the whole text, in one go, on two threads."""
    return compiled.forward(tokens, compiled.new_cache(256), logits="all")


# --- against the readable model ------------------------------------------------------------


def test_close_to_the_readable_model(
    compiled: CompiledModel, readable: tuple[np.ndarray, KVCache], whole: np.ndarray
) -> None:
    want, _ = readable
    if compiled.dtype == "f32":
        assert np.abs(whole - want).max() < 2e-4
    assert np.mean(whole.argmax(1) == want.argmax(1)) > 0.9


def test_the_cache_reads_like_the_readable_one(
    compiled: CompiledModel, readable: tuple[np.ndarray, KVCache], tokens: np.ndarray
) -> None:
    theirs, ours = readable[1], compiled.new_cache(256)
    compiled.forward(tokens, ours)
    assert ours.length == theirs.length
    near = {"f32": 1e-4, "bf16": 0.5, "q8": 0.5, "gguf": 0.5, "q4": 0.5}[
        FORMATS[compiled.dtype].weights
    ]
    for layer in (0, compiled.config.n_layers - 1):
        for a, b in (
            (ours.keys(layer), theirs.keys(layer)),
            (ours.values(layer), theirs.values(layer)),
        ):
            assert a.shape == b.shape
            assert np.abs(a - b).mean() < near


def test_carried_blocks_are_the_files_own_values(
    weights_folder: Path, config: ModelConfig, reference: Model
) -> None:
    """4-bit weights that a GGUF file held are not rounded a second time."""
    packed, _, reading = load_packed(weights_folder, config, "q4")
    if reading:
        reading.wait()
    w = reference.weights
    for layer in (0, 13, config.n_layers - 1):
        down = Q4(*(a[layer] for a in packed["down"]))
        got = FORMATS["q4"].stands_for(down, config.dim)
        assert np.array_equal(got, w[f"model.layers.{layer}.mlp.down_proj.weight"])
        qkv = Q4(*(a[layer] for a in packed["qkv"]))
        got = FORMATS["q4"].stands_for(qkv, 16 * qkv.values.shape[0])
        parts = [w[f"model.layers.{layer}.self_attn.{n}_proj.weight"] for n in "qkv"]
        assert np.array_equal(got, np.concatenate(parts))
    embed = Q8(*(a[0] for a in packed["embed"]))
    got = FORMATS["q8"].stands_for(embed, config.vocab_size)
    assert np.array_equal(got, w["model.embed_tokens.weight"])


# --- the same bits ------------------------------------------------------------


def test_one_by_one(compiled: CompiledModel, tokens: np.ndarray, whole: np.ndarray) -> None:
    cache = compiled.new_cache(256)
    steps = [compiled.forward(tokens[i : i + 1], cache) for i in range(len(tokens))]
    assert np.array_equal(np.concatenate(steps), whole)


@pytest.mark.parametrize(
    "chunk", [*(pytest.param(n, marks=pytest.mark.long) for n in (2, 8, 64)), 7, 65]
)
def test_in_chunks(
    compiled: CompiledModel, tokens: np.ndarray, whole: np.ndarray, chunk: int
) -> None:
    cache = compiled.new_cache(256)
    parts = [
        compiled.forward(tokens[i : i + chunk], cache, logits="all")
        for i in range(0, len(tokens), chunk)
    ]
    assert np.array_equal(np.concatenate(parts), whole)


def test_on_one_thread(
    compiled: CompiledModel, weights_folder: Path, tokens: np.ndarray, whole: np.ndarray
) -> None:
    for threads in (1, 3):
        other = CompiledModel(
            compiled.config, weights_folder, compiled.dtype, threads, kv_cache_mb=32
        )
        assert np.array_equal(other.forward(tokens, other.new_cache(256), logits="all"), whole)


def test_in_a_batch(compiled: CompiledModel, tokens: np.ndarray, whole: np.ndarray) -> None:
    """Sequences at different places, decoding and prefilling, in one call."""
    lengths = [1, 5, 63, 64, 65, 17, 80]
    caches = [compiled.new_cache(256) for _ in lengths]
    for cache, n in zip(caches, lengths, strict=True):
        compiled.forward_batch([Segment(tokens[:n], cache, "none")])
    news = [1, 1, 3, 1, 9, 1, 2]
    segments = [
        Segment(tokens[n : n + new], cache, "all")
        for cache, n, new in zip(caches, lengths, news, strict=True)
    ]
    for got, n, new in zip(compiled.forward_batch(segments), lengths, news, strict=True):
        assert np.array_equal(got, whole[n : n + new])


def test_over_a_long_context(config: ModelConfig, weights_folder: Path, tokens: np.ndarray) -> None:
    """Beyond 512 tokens attention is cut into spans, and a lone row's are spread over threads."""
    model = CompiledModel(config, weights_folder, "q8", kv_cache_mb=96)
    long = np.tile(tokens, 8)[:700]
    prompt = model.new_cache(720)
    model.forward_batch([Segment(long[:690], prompt, "none")])
    together = model.forward(long[690:], prompt.fork(), logits="all")
    one_by_one = [model.forward(long[i : i + 1], prompt) for i in range(690, 700)]
    assert np.array_equal(np.concatenate(one_by_one), together)


def test_images_replace_embeddings(compiled: CompiledModel, tokens: np.ndarray) -> None:
    """Rows equal to some tokens' embeddings must give those tokens' logits."""
    rows = np.zeros((2, compiled.config.dim), np.float32)
    packed = compiled.arrays.embed
    x = np.zeros_like(rows)
    from tinyllm.kernels.dispatch import EMBED

    for i, token in enumerate(tokens[3:5]):
        EMBED[type(packed)](packed, int(token), x, i)
    rows[:] = x
    changed = tokens[:20].copy()
    changed[3:5] = 0
    segment = Segment(changed, compiled.new_cache(64), "all", np.array([3, 4]), rows)
    want = compiled.forward(tokens[:20], compiled.new_cache(64), logits="all")
    assert np.array_equal(compiled.forward_batch([segment])[0], want)


def test_several_python_threads(
    compiled: CompiledModel, tokens: np.ndarray, whole: np.ndarray
) -> None:
    results: dict[int, np.ndarray] = {}

    def decode(which: int) -> None:
        cache = compiled.new_cache(256)
        steps = [compiled.forward(tokens[i : i + 1], cache) for i in range(12 + which)]
        results[which] = np.concatenate(steps)

    threads = [threading.Thread(target=decode, args=(i,)) for i in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for which in range(5):
        assert np.array_equal(results[which], whole[: 12 + which])


# --- pages ------------------------------------------------------------


@pytest.fixture(scope="module")
def small(reference: Model) -> CompiledModel:
    """The real model at 8 bits with room for 4 pages of 64 tokens."""
    model = CompiledModel(reference.config, reference.weights, "q8", kv_cache_mb=6)
    assert model.pool.n_pages == 4
    return model


def test_forks_share_pages_until_one_writes(small: CompiledModel, tokens: np.ndarray) -> None:
    cache = small.new_cache(256)
    small.forward(tokens[:70], cache)
    assert small.pool.free_pages == 2
    fork = cache.fork()
    assert small.pool.free_pages == 2
    before = cache.keys(5).copy()
    ours = small.forward(tokens[70:71], fork)  # copies the second page, not the first
    assert small.pool.free_pages == 1
    assert np.array_equal(cache.keys(5), before)
    assert np.array_equal(small.forward(tokens[70:71], cache), ours)  # now alone: no copy
    assert small.pool.free_pages == 1
    fork.free()
    fork.free()
    cache.truncate(64)
    assert small.pool.free_pages == 3
    cache.free()
    assert small.pool.free_pages == 4


def test_a_shorter_fork(small: CompiledModel, tokens: np.ndarray) -> None:
    cache = small.new_cache(256)
    small.forward(tokens[:70], cache)
    fork = cache.fork(30)
    fresh = small.new_cache(256)
    small.forward(tokens[:30], fresh)
    other = tokens[100:103]
    assert np.array_equal(small.forward(other, fork), small.forward(other, fresh))
    for each in (cache, fork, fresh):
        each.free()


def test_a_full_pool_changes_nothing(small: CompiledModel, tokens: np.ndarray) -> None:
    held = small.new_cache(256)
    small.forward(np.tile(tokens, 2)[:129], held)  # 3 pages
    short, long = small.new_cache(256), small.new_cache(256)
    with pytest.raises(CacheFull, match="pages"):
        small.forward_batch([Segment(tokens[:5], short), Segment(tokens[:80], long)])
    assert (held.length, short.length, long.length) == (129, 0, 0)
    short.free()
    with pytest.raises(CacheFull, match="holds 8 tokens"):
        small.forward(tokens[:9], small.new_cache(8))
    held.free()
    assert small.pool.free_pages == 4


def test_pages_come_back_with_the_last_reference(small: CompiledModel, tokens: np.ndarray) -> None:
    cache = small.new_cache(64)
    small.forward(tokens[:3], cache)
    assert small.pool.free_pages == 3
    del cache
    assert small.pool.free_pages == 4


# --- what is refused ------------------------------------------------------------


def test_bad_input_is_refused(small: CompiledModel, tokens: np.ndarray, reference: Model) -> None:
    cache = small.new_cache(64)
    with pytest.raises(ValueError, match="not in the vocabulary"):
        small.forward([49152], cache)
    with pytest.raises(ValueError, match="one-dimensional"):
        small.forward(tokens[:4].reshape(2, 2), cache)
    with pytest.raises(ValueError, match="share a cache"):
        small.forward_batch([Segment(tokens[:1], cache), Segment(tokens[:1], cache)])
    with pytest.raises(ValueError, match="new_cache"):
        small.forward_batch([Segment(tokens[:1], reference.new_cache(8))])
    rows = np.zeros((1, 3), np.float32)
    with pytest.raises(ValueError, match="image_rows must be"):
        small.forward_batch([Segment(tokens[:1], cache, "last", np.array([0]), rows)])
    assert cache.length == 0
    assert small.forward([], cache).shape == (0, 49152)


def test_strided_tokens_are_read_right(small: CompiledModel, tokens: np.ndarray) -> None:
    want = small.forward(np.ascontiguousarray(tokens[:40:2]), small.new_cache(64))
    assert np.array_equal(small.forward(tokens[:40:2], small.new_cache(64)), want)


def test_shapes_that_the_kernels_do_not_do(reference: Model) -> None:
    odd = ModelConfig(40, 64, 1, 1, 1, 40, 64, 64, 1e4, 1e-5, True)
    with pytest.raises(ConfigError, match=r"dim is 40.*reference"):
        CompiledModel(odd, reference.weights)
    with pytest.raises(ValueError, match="dtype must be"):
        CompiledModel(reference.config, reference.weights, "int3")


# --- calls ------------------------------------------------------------


def test_calls_stay_within_their_limits(small: CompiledModel) -> None:
    cache = small.new_cache(64)
    lengths = [(700, "last"), (1, "last"), (100, "all"), (0, "last"), (300, "none")]
    segments = [Segment(np.zeros(n, np.int32), cache, kind) for n, kind in lengths]  # type: ignore[arg-type]
    done = [0] * len(segments)
    while plan := plan_call(segments, done):
        assert sum(n for _, n in plan) <= MAX_ROWS
        logit_rows = 0
        for i, n in plan:
            done[i] += n
            kind = segments[i].logits
            logit_rows += n if kind == "all" else kind == "last" and done[i] == lengths[i][0]
        assert logit_rows <= MAX_LOGIT_ROWS
    assert done == [n for n, _ in lengths]


# --- without vectors or compiling ------------------------------------------------------------

SCRIPT = """
import numpy as np
from tinyllm.compiled import CompiledModel
from tinyllm.config import ModelConfig
from tinyllm.model import Model
from tinyllm.weights import expected_shapes
config = ModelConfig(32, 32, 2, 2, 1, 32, 40, 128, 1e4, 1e-5, False)
rng = np.random.default_rng(0)
weights = {}
for name, shape in expected_shapes(config).items():
    weights[name] = (rng.standard_normal(shape) * 0.3).astype(np.float32)
tokens = rng.integers(0, 40, 11).astype(np.int32)
kv_error = {"f32": 0.0, "f16": 2e-3}
reference = Model(config, weights)
want = reference.forward(tokens, reference.new_cache(64), logits="all")
for dtype, near in (("f32", 1e-4), ("bf16", 0.1), ("q8", 0.1), ("gguf", 0.1), ("q4", 1.0)):
    for kv_dtype in ("f32", "f16"):
        model = CompiledModel(config, weights, dtype, 2, kv_dtype, kv_cache_mb=1)
        got = model.forward(tokens, model.new_cache(64), logits="all")
        error = np.abs(got - want).max()
        assert error < max(near, kv_error[kv_dtype]), (dtype, kv_dtype, error)
        cache = model.new_cache(64)
        steps = [model.forward(tokens[i : i + 1], cache) for i in range(3)]
        assert np.array_equal(np.concatenate(steps), got[:3]), (dtype, kv_dtype)
"""


@pytest.mark.long
def test_the_plain_loops_compute_the_same() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_shapes_are_covered() -> None:
    """The script's model has every tensor that a checkpoint has."""
    config = ModelConfig(32, 32, 1, 2, 1, 32, 40, 128, 1e4, 1e-5, False)
    assert "lm_head.weight" in expected_shapes(config)


def test_a_packed_file_that_changes_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "q8.safetensors"
    path.write_bytes(bytes(range(100)))
    memory = np.zeros(90, np.uint8)
    Reading(path, 10, memory).wait()
    assert memory.tolist() == list(range(10, 100))
    with pytest.raises(WeightsError, match=r"q8\.safetensors changed while it was read"):
        Reading(path, 11, memory).wait()  # one byte short
    path.unlink()
    with pytest.raises(WeightsError, match="start again"):
        Reading(path, 10, memory).wait()


def test_a_version_that_knows_of_more_parts_has_the_same_digest(weights_folder: Path) -> None:
    @dataclass(frozen=True)
    class Later(ModelConfig):
        another: bool = False

    now, later = (kind.from_folder(weights_folder) for kind in (ModelConfig, Later))
    assert checkpoint_digest(weights_folder, now, "q4") == checkpoint_digest(
        weights_folder, later, "q4"
    )
    other = replace(later, another=True)
    assert checkpoint_digest(weights_folder, other, "q4") != checkpoint_digest(
        weights_folder, now, "q4"
    )


@pytest.mark.parametrize("where", ["numbers", "header", "kinds", "half", "empty", "foreign"])
def test_a_damaged_packed_file_is_made_anew(
    tmp_path: Path, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "model"
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
    config = write_folder(
        folder, {**SMALL, "hidden_size": 64, "intermediate_size": 128, "vocab_size": 96, **heads}
    )
    prompt = np.array([1, 2, 3], np.int32)

    def logits() -> NDArray[np.float32]:
        model = CompiledModel(config, folder, "q8", threads=1, kv_cache_mb=1)
        return model.forward(prompt, model.new_cache())

    whole = logits()
    path = folder / ".packed" / "q8.safetensors"
    good = path.read_bytes()
    bad = bytearray(good)
    length = 8 + int.from_bytes(good[:8], "little")
    if where == "numbers":
        for at in range(length + 5, len(bad), 997):
            bad[at] ^= 0x10
    elif where == "header":
        bad[20:60] = bytes(40)
    elif where == "kinds":
        bad = bytearray(good.replace(b'"Q8"', b'"Q9"'))
    elif where == "half":
        del bad[len(bad) // 2 :]
    elif where == "empty":
        bad.clear()
    else:
        bad[:] = b"#!/bin/sh\n" * 500
    path.write_bytes(bad)
    with caplog.at_level("WARNING"):
        assert (logits() == whole).all()
    assert str(path) in caplog.text and "made anew" in caplog.text
    assert path.stat().st_size == len(good)
    caplog.clear()
    assert (logits() == whole).all() and not caplog.text
