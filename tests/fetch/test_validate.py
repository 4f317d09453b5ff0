"""A folder's files held against each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.fetch.files import write_gguf
from tinyllm.errors import ConfigError, TinyllmError, TokenizerError, WeightsError
from tinyllm.fetch.convert import convert
from tinyllm.fetch.validate import validate
from tinyllm.vision.whole import sees_images


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    convert(write_gguf(tmp_path / "m.gguf"), tmp_path)
    return tmp_path


def change_config(folder: Path, **changes: Any) -> None:
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**raw, **changes}))


def test_a_whole_folder(folder: Path) -> None:
    validate(folder)
    assert not sees_images(folder)


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"num_hidden_layers": 3}, WeightsError, r"model\.layers\.2\..* is missing"),
        ({"num_hidden_layers": 10**9}, ConfigError, "n_layers must be from 1 to"),
        ({"vocab_size": 7}, WeightsError, r"embed_tokens\.weight has shape"),
        ({"tie_word_embeddings": False}, WeightsError, r"lm_head\.weight .* is missing"),
        ({"architectures": ["MambaForCausalLM"]}, ConfigError, "MambaForCausalLM"),
    ],
)
def test_a_config_that_the_weights_do_not_fit(
    folder: Path, changes: dict[str, Any], kind: type[TinyllmError], message: str
) -> None:
    change_config(folder, **changes)
    with pytest.raises(kind, match=message):
        validate(folder)


def test_files_missing_or_cut_short(folder: Path) -> None:
    weights = folder / "model.gguf"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(WeightsError, match=r"model\.gguf"):
        validate(folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        validate(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"config\.json is missing"):
        validate(folder)
