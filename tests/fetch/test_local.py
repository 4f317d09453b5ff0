"""What is on this machine: listed, shown and removed, on folders made here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tinyllm.errors import FetchError
from tinyllm.fetch import local


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TINYLLM_WEIGHTS", str(tmp_path))
    for name, card in {"one": {"license": "MIT"}, "carried": {"parts": {"a": "one"}}}.items():
        (tmp_path / name / ".packed").mkdir(parents=True)
        (tmp_path / name / "card.json").write_text(json.dumps(card))
        (tmp_path / name / "model.safetensors").write_bytes(bytes(1000))
        (tmp_path / name / ".packed" / "q8.safetensors").write_bytes(bytes(300))
    (tmp_path / ".one.lock").touch()
    (tmp_path / ".one.tmp-x").mkdir()
    (tmp_path / "notes").mkdir()
    return tmp_path


def test_models_are_folders_with_a_card_or_a_config(root: Path) -> None:
    carried, one = local.models()
    assert (carried.name, one.name) == ("carried", "one")
    assert (one.packed_bytes, one.weight_bytes) == (300, 1000 + len('{"license": "MIT"}'))
    assert dict(local.files(one))[".packed/q8.safetensors"] == 300


def test_no_weights_root_is_no_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TINYLLM_WEIGHTS", str(tmp_path / "nowhere"))
    assert local.models() == []


def test_a_damaged_card_hides_nothing(root: Path) -> None:
    (root / "one" / "card.json").write_text("{")
    assert local.get("one").card == {}


def test_an_unknown_name_gets_the_nearest(root: Path) -> None:
    with pytest.raises(FetchError, match="did you mean carried"):
        local.get("caried")
    with pytest.raises(FetchError, match="tinyllm list"):
        local.get("quite-another")


def test_removing_frees_what_it_says(root: Path) -> None:
    one = local.get("one")
    assert local.remove(one) == one.weight_bytes + one.packed_bytes
    assert not one.folder.exists()


def test_what_came_with_tinyllm_stays(root: Path) -> None:
    with pytest.raises(FetchError, match="nothing to remove"):
        local.remove(local.get("carried"))
    assert (root / "carried" / "card.json").exists()


def test_a_link_is_removed_and_not_what_it_leads_to(root: Path, tmp_path: Path) -> None:
    (root / "link").symlink_to(root / "one")
    local.remove(local.get("link"))
    assert not (root / "link").exists()
    assert (root / "one" / "card.json").exists()
