"""`--dtype auto`: what a checkpoint holds is what is computed in."""

from __future__ import annotations

from pathlib import Path

import pytest
from gguf import GGMLQuantizationType as Kind

import tinyllm
from tests.fetch.files import write_gguf
from tests.llama_folders import write_folder
from tinyllm.errors import WeightsError
from tinyllm.fetch.convert import convert
from tinyllm.kernels.own_format import own_format


@pytest.mark.parametrize(("stored", "own"), [("F32", "f32"), ("BF16", "bf16"), ("F16", "f32")])
def test_of_floats(tmp_path: Path, stored: str, own: str) -> None:
    write_folder(tmp_path, dtype=stored)
    assert own_format(tmp_path) == own


@pytest.mark.parametrize(
    ("kinds", "own"),
    [
        ([Kind.Q4_1], "q4"),
        ([Kind.Q4_0, Kind.Q4_1], "q4"),
        ([Kind.Q8_0], "q8"),
        ([Kind.Q4_1, Kind.Q8_0], "gguf"),
        ([Kind.Q5_0], "gguf"),
        ([Kind.Q5_0, Kind.F16], "f32"),
    ],
)
def test_of_blocks(tmp_path: Path, kinds: list[Kind], own: str) -> None:
    """The table may be of another kind: it is q8 at 4 bits, too."""
    written = {f"blk.{i}.": kind for i, kind in enumerate(kinds * 2)}
    convert(write_gguf(tmp_path / "m.gguf", Kind.Q8_0, by_prefix=written), tmp_path)
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
