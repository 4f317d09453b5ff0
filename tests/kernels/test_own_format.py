"""`--dtype auto`: what a checkpoint holds is what is computed in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tinyllm
from tests.llama_folders import write_folder
from tinyllm.errors import WeightsError
from tinyllm.files.carried import FILE_NAME, save_blocks
from tinyllm.files.gguf import Blocks
from tinyllm.kernels.own_format import own_format


@pytest.mark.parametrize(("stored", "own"), [("F32", "f32"), ("BF16", "bf16"), ("F16", "f32")])
def test_of_floats(tmp_path: Path, stored: str, own: str) -> None:
    write_folder(tmp_path, dtype=stored)
    assert own_format(tmp_path) == own


def blocks(kind: str) -> Blocks:
    rng, scales = np.random.default_rng(0), np.ones((4, 1), np.float16)
    if kind == "Q8_0":
        return Blocks(kind, q=rng.integers(-127, 128, (4, 32)).astype(np.int8), scales=scales)
    nibbles = rng.integers(0, 256, (4, 1, 16)).astype(np.uint8)
    return Blocks(kind, q=nibbles, scales=scales, mins=None if kind == "Q4_0" else scales)


@pytest.mark.parametrize(
    ("kinds", "own"),
    [
        (["Q4_1", "Q4_1"], "q4"),
        (["Q4_0", "Q4_1"], "q4"),
        (["Q8_0", "Q8_0"], "q8"),
        (["Q4_1", "Q8_0"], "f32"),
    ],
)
def test_of_blocks(tmp_path: Path, kinds: list[str], own: str) -> None:
    """The table may be of another kind: it is q8 at 4 bits, too."""
    write_folder(tmp_path)
    names = [f"model.layers.{i}.mlp.down_proj.weight" for i in range(len(kinds))]
    tensors = {name: blocks(kind) for name, kind in zip(names, kinds, strict=True)}
    save_blocks(tmp_path / FILE_NAME, tensors | {"model.embed_tokens.weight": blocks("Q8_0")})
    assert own_format(tmp_path) == own


def test_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no model\.safetensors"):
        own_format(tmp_path)


def test_the_first_question_that_a_newcomer_asks(weights_folder: Path) -> None:
    """By default, and without a system prompt."""
    lm = tinyllm.load(weights_folder, backend="compiled")
    assert lm.runner.dtype == "q4"
    question = [{"role": "user", "content": "What is the capital of France?"}]
    assert "Paris" in lm.generate(question, max_tokens=40, temperature=0).text
    assert tinyllm.load(weights_folder).runner.dtype == "f32"  # the readable path
