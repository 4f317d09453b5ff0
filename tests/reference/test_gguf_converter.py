"""GGUF files that llama.cpp's own converter makes of seeded checkpoints: the same logits.

The converter wants a tokenizer that it knows; its part in that is left out, for tokenizers have
tests of their own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.downloads import llama_cpp_converter
from tests.golden.families import load_goldens, tokens, write_checkpoint
from tinyllm.config import ModelConfig
from tinyllm.files.gguf import GGUF
from tinyllm.files.gguf_config import hub_config
from tinyllm.model import Model
from tinyllm.weights import load_weights

pytestmark = [pytest.mark.reference, pytest.mark.downloads]

GOLDENS = load_goldens()
FAMILIES = ("gemma", "gemma2", "phi3", "phi3 longrope", "gpt2")
# What the format has no key for, and both sides take from the sizes.
IMPLIED = {"gemma2": {"query_pre_attn_scalar": 24}, "gpt2": {"n_ctx": 64, "n_inner": 256}}


# What `convert_hf_to_gguf.py --outtype f32` does, in a process of its own: it brings its own gguf.
CONVERT = """
import json, sys
from pathlib import Path
place, source, target = sys.argv[1:]
sys.path[:0] = [place, place + "/gguf-py"]
import conversion, gguf
name = json.loads((Path(source) / "config.json").read_text())["architectures"][0]
kind = conversion.get_model_class(name)
kind.set_vocab = lambda self: None
kind(Path(source), gguf.LlamaFileType.ALL_F32, Path(target), eager=True).write()
"""


def convert(source: Path, target: Path) -> None:
    command = [sys.executable, "-c", CONVERT, llama_cpp_converter(), source, target]
    run = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr[-2000:]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_converters_file_has_the_same_logits(name: str, tmp_path: Path) -> None:
    golden = GOLDENS[name]
    config_keys = {**golden.config, **IMPLIED.get(name, {})}
    shapes = golden.shapes
    if name == "gpt2":
        shapes = {key: tuple(256 if n == 80 else n for n in own) for key, own in shapes.items()}
    write_checkpoint(replace(golden, config=config_keys, shapes=shapes), tmp_path / "hub")
    (tmp_path / "gguf").mkdir()
    convert(tmp_path / "hub", tmp_path / "gguf" / "model.gguf")
    with GGUF(tmp_path / "gguf" / "model.gguf") as file:
        (tmp_path / "gguf" / "config.json").write_text(json.dumps(hub_config(file)))
    logits = []
    for folder in ("hub", "gguf"):
        config = ModelConfig.from_folder(tmp_path / folder)
        model = Model(config, load_weights(tmp_path / folder, config))
        logits.append(model.forward(tokens(40), model.new_cache(40)))
    assert np.abs(logits[0] - logits[1]).max() < 1e-4, np.abs(logits[0] - logits[1]).max()
