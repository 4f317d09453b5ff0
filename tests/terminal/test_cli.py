"""Commands and mistakes: one sentence that names the remedy, and never a traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.llama_folders import write_folder
from tinyllm import __version__
from tinyllm.terminal.cli import app


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "small"
    write_folder(folder)
    (folder / "card.json").write_text(json.dumps({"id": "small", "license": "MIT"}))
    template = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    monkeypatch.setenv("TINYLLM_WEIGHTS", str(tmp_path))
    return tmp_path


def tinyllm(*args: str, piped: str | None = None) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(args), input=piped)
    return result.exit_code, result.output


def test_list_show_and_rm(root: Path) -> None:
    code, text = tinyllm("list")
    assert code == 0
    assert "small" in text
    assert "MIT" in text
    assert "tinyllm pull NAME" in text  # what could be here
    code, text = tinyllm("show", "small")
    assert code == 0
    assert "config.json" in text
    assert tinyllm("rm", "small", piped="n\n")[0] == 1
    assert (root / "small").exists()
    assert tinyllm("rm", "small", "--yes")[0] == 0
    assert not (root / "small").exists()


def test_a_question_on_the_command_line_is_answered_and_nothing_else(root: Path) -> None:
    model = ("--model", "small", "--backend", "reference", "--max-tokens", "3")
    code, text = tinyllm("chat", "Hello", *model, piped="and this")
    assert code == 0
    assert "3 tokens" in text
    assert tinyllm("chat", *model, piped="Hello")[0] == 0
    code, text = tinyllm("chat", *model, piped="")
    assert code == 2
    assert "standard input is empty" in text


def test_the_version_is_told() -> None:
    assert tinyllm("--version") == (0, f"tinyllm {__version__}\n")


def test_what_can_be_had_is_named_by_its_nearest_name(root: Path) -> None:
    for command in ("show", "rm"):
        result = CliRunner().invoke(app, [command, "smal"])
        assert "did you mean small?" in str(result.exception)
