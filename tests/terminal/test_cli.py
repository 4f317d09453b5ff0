"""Commands and mistakes: one sentence that names the remedy, and never a traceback."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.llama_folders import write_folder
from tinyllm.terminal.cli import app

ROOT = Path(__file__).resolve().parents[2]


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


def server(*args: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "server.py", *args], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stderr + done.stdout


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


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--max-bach", "3"], "did you mean --max-batch?"),
        (["--dtype", "q9"], "--dtype"),
        (["--port", "99999"], "--port must be from 0 to 65535"),
        (["--host", "0.0.0.0"], "--api-key"),
        (["--model", "smollm2-135-instruct"], "Did you mean smollm2-135m-instruct?"),
        (["--model", "/no/such/folder"], "/no/such/folder"),
    ],
)
def test_a_mistake_is_one_sentence(args: list[str], says: str) -> None:
    code, text = server(*args)
    assert code != 0
    assert says in text
    assert "Traceback" not in text
    assert "usage:" not in text
    assert len(text.strip().splitlines()) == 1


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    """Before `pip install`: a Python that has none of our packages."""
    done = subprocess.run(
        [sys.executable, "-S", "server.py"],  # -S: no site-packages
        cwd=ROOT, capture_output=True, text=True, check=False, env={"PATH": ""},
    )  # fmt: skip
    assert done.returncode == 1
    assert "is missing; install tinyllm first: pip install ." in done.stderr
    assert "Traceback" not in done.stderr
