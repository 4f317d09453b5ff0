"""A GGUF file becomes a model folder: its hyperparameters and tokenizer as the hub would hold them.

    model.gguf             the file itself, or the parts of a split one: nothing is widened
    config.json            as `transformers` reads it            (`files.gguf_config`)
    generation_config.json
    tokenizer.json         with its tokenizer_config.json        (`files.gguf_tokenizer`)

The tensors are read from the file where they are wanted, under the hub's names
(`files.gguf_weights`).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tinyllm.errors import FetchError
from tinyllm.files.gguf import GGUF, PART
from tinyllm.files.gguf_config import hub_config
from tinyllm.files.gguf_tokenizer import build_tokenizer, tokenizer_config
from tinyllm.files.gguf_weights import GGUFWeights

ROLES = ("bos_token_id", "eos_token_id", "pad_token_id")


def convert(source: Path, folder: Path, progress: Callable[[int, int], None] | None = None) -> None:
    """Write the model folder's files for the GGUF file `source` into the folder `folder`.

    The file is linked where the disk allows it, else copied. `progress(done, total)` counts the
    steps. Raises `FetchError` on files that cannot be read, naming the remedy.
    """
    report = progress or (lambda done, total: None)
    with GGUF(source) as gguf:
        config = hub_config(gguf)
        GGUFWeights(gguf)  # every tensor has its place
        report(1, 3)
        write_json(folder / "config.json", config)
        write_json(folder / "generation_config.json", {k: config[k] for k in ROLES if k in config})
        write_json(
            folder / "tokenizer.json", plain_merges(json.loads(build_tokenizer(gguf).to_str()))
        )
        write_json(folder / "tokenizer_config.json", tokenizer_config(gguf, config))
        report(2, 3)
        for path in gguf.paths:
            part = PART.fullmatch(path.name)
            name = f"model-{part['number']}-of-{part['count']}.gguf" if part else "model.gguf"
            _bring(path, folder / name)
    report(3, 3)


def plain_merges(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """The same tokenizer.json with each merge as one text, in place of a list of two.

    That is its older form. The library reads it in a fifth less time, and every start waits for it.
    """
    merges = tokenizer["model"].get("merges", [])
    if merges and not any(" " in piece for pair in merges for piece in pair):
        tokenizer["model"]["merges"] = [" ".join(pair) for pair in merges]
    return tokenizer


def _bring(source: Path, target: Path) -> None:
    """The same file under another name: by a hard link, or a copy on another disk."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        try:
            shutil.copyfile(source, target)
        except OSError as error:
            raise FetchError(f"{source} cannot be copied to {target}: {error}") from error


def write_json(path: Path, value: object) -> None:
    """Write JSON as the hub does: two spaces, UTF-8, a newline at the end."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
