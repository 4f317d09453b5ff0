"""`llm`, the command: a chat model and a completion model of its extra-openai-models.yaml."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from checks import MODEL, QUESTION, URL, check, client, done

client("llm")
home = tempfile.TemporaryDirectory()
Path(home.name, "extra-openai-models.yaml").write_text(
    f"""
- {{model_id: tiny-chat, model_name: {MODEL}, api_base: "{URL}", supports_schema: true}}
- {{model_id: tiny-text, model_name: {MODEL}, api_base: "{URL}", completion: true}}
""",
    encoding="utf-8",
)


def ask(*arguments: str) -> str:
    """What the command prints."""
    return subprocess.run(
        [sys.executable, "-m", "llm", *arguments],
        env={**os.environ, "LLM_USER_PATH": home.name},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


@check("a chat model")
def _() -> None:
    assert "Paris" in ask("-m", "tiny-chat", "-o", "temperature", "0", QUESTION)


@check("`completion: true`")
def _() -> None:
    said = ask("-m", "tiny-text", "-o", "max_tokens", "4", "-o", "temperature", "0",
               "The capital of France is")  # fmt: skip
    assert "Paris" in said


@check("a schema")
def _() -> None:
    said = ask("-m", "tiny-chat", "--no-stream", "--schema", "name, age int", "invent a dog")
    assert '"age"' in said


done()
