"""A second real model by its name: Gemma 3 270M beside transformers and llama.cpp on the same file.

The goldens come from `tests/golden/make_gemma3.py`; `tests/reference/test_gemma3.py` has the live
comparison.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.golden.gemma3 import N_GREEDY, PROMPTS, Golden, load_goldens
from tinyllm import fetch
from tinyllm.compiled import CompiledModel
from tinyllm.config import ModelConfig
from tinyllm.kernels.own_format import own_format
from tinyllm.model import Model
from tinyllm.tokenizer import Tokenizer
from tinyllm.weights import load_weights

pytestmark = pytest.mark.downloads

NAME = "gemma3-270m"
GOLDENS = load_goldens()


@pytest.fixture(scope="module")
def folder() -> Path:
    """Fetched by its command, as anybody would."""
    command = [sys.executable, "-m", "tinyllm", "pull", NAME, "--accept-license"]
    subprocess.run(command, check=True, timeout=600)
    return fetch.weights_root() / NAME


@pytest.fixture(scope="module")
def readable(folder: Path) -> Model:
    config = ModelConfig.from_folder(folder)
    return Model(config, load_weights(folder, config))


def next_logits(model: Model, tokens: list[int]) -> np.ndarray:
    return model.forward(tokens, model.new_cache(len(tokens)), logits="last")[-1]


def behind(model: Model | CompiledModel, tokenizer: Tokenizer, golden: Golden) -> np.ndarray:
    """By how much each token that llama.cpp wrote is less likely than our first choice, (n,)."""
    ids = [*tokenizer.bos_ids, *tokenizer.encode(golden.prompt + golden.continued)]
    n_prompt = len(golden.tokens)
    assert ids[:n_prompt] == golden.tokens
    rows = model.forward(np.array(ids, np.int32), model.new_cache(len(ids)), logits="all")
    rows, written = rows[n_prompt - 1 : -1], ids[n_prompt:]
    assert len(written) == N_GREEDY
    gaps: np.ndarray = rows.max(1) - rows[np.arange(len(rows)), written]
    return gaps


def test_ids_and_logits_are_transformers(folder: Path, readable: Model) -> None:
    tokenizer = Tokenizer.from_folder(folder)
    assert [golden.prompt for golden in GOLDENS] == list(PROMPTS)
    for golden in GOLDENS:
        assert [*tokenizer.bos_ids, *tokenizer.encode(golden.prompt)] == golden.tokens
        ours, ids = next_logits(readable, golden.tokens), list(golden.logits)
        np.testing.assert_allclose(ours[ids], list(golden.logits.values()), rtol=0, atol=1e-3)


def test_llama_cpp_goes_on_as_we_do(folder: Path, readable: Model) -> None:
    """Each token that llama.cpp wrote is our likeliest in its place, or all but tied with it.

    It rounds the numbers between layers to 8 bits, which was seen to be worth up to 0.39.
    """
    tokenizer = Tokenizer.from_folder(folder)
    gaps = [behind(readable, tokenizer, golden) for golden in GOLDENS]
    assert max(map(np.max, gaps)) < 0.5
    assert sum(int((gap > 0).sum()) for gap in gaps) <= 12  # of 240


def test_the_files_own_bits_are_what_it_runs_in(folder: Path) -> None:
    """Q5_0, Q8_0, Q4_K and Q6_K in one file: nothing is rounded but activations, to 16 bits."""
    assert own_format(folder) == "gguf"
    model = CompiledModel(ModelConfig.from_folder(folder), folder, "gguf", 2, kv_cache_mb=32)
    for golden in GOLDENS:
        ours, ids = next_logits(model, golden.tokens), list(golden.logits)
        np.testing.assert_allclose(ours[ids], list(golden.logits.values()), rtol=0, atol=0.02)


@pytest.mark.parametrize(("dtype", "near"), [("f32", 0.5), ("gguf", 0.5), ("q8", 0.7)])
def test_llama_cpp_goes_on_as_the_compiled_path_does(folder: Path, dtype: str, near: float) -> None:
    config, tokenizer = ModelConfig.from_folder(folder), Tokenizer.from_folder(folder)
    model = CompiledModel(config, folder, dtype, threads=2, kv_cache_mb=32)
    gaps = [behind(model, tokenizer, golden) for golden in GOLDENS]
    assert max(gap.max() for gap in gaps) <= near
    assert sum(int((gap > 0).sum()) for gap in gaps) <= 12  # of 240
