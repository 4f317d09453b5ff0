"""The compiled path against the readable one, and against itself: to the bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tinyllm.compiled import CompiledModel
from tinyllm.config import ModelConfig
from tinyllm.model import Model
from tinyllm.tokenizer import Tokenizer
from tinyllm.weights import load_weights

TEXT = "In 1969, Neil Armstrong walked on the Moon. def f(x):\n    return x ** 2  # 日本語 🙂\n" * 3


@pytest.fixture(scope="module")
def tokens(weights_folder: Path) -> np.ndarray:
    return np.array(Tokenizer.from_folder(weights_folder).encode(TEXT), np.int32)


@pytest.fixture(scope="module")
def reference(weights_folder: Path) -> Model:
    config = ModelConfig.from_folder(weights_folder)
    return Model(config, load_weights(weights_folder, config))


@pytest.fixture(scope="module", params=["f32", "q8"])
def compiled(request: pytest.FixtureRequest, reference: Model) -> CompiledModel:
    return CompiledModel(reference.config, reference.weights, request.param, kv_cache_mb=64)


def test_close_to_the_readable_model(
    compiled: CompiledModel, reference: Model, tokens: np.ndarray
) -> None:
    want = reference.forward(tokens, reference.new_cache(256), logits="all")
    got = compiled.forward(tokens, compiled.new_cache(256), logits="all")
    if compiled.dtype == "f32":
        assert np.abs(got - want).max() < 2e-4
    else:
        assert np.mean(got.argmax(1) == want.argmax(1)) > 0.9


def test_one_by_one_gives_the_same_bits(compiled: CompiledModel, tokens: np.ndarray) -> None:
    whole = compiled.forward(tokens, compiled.new_cache(256), logits="all")
    cache = compiled.new_cache(256)
    steps = np.concatenate([compiled.forward(tokens[i : i + 1], cache) for i in range(len(tokens))])
    assert np.array_equal(whole, steps)
