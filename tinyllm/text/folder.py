"""What a model folder says about its tokens, outside of tokenizer.json: templates, names, ends.

tokenizer_config.json      names of tokens (bos_token …), perhaps the template
chat_template.jinja, .json the template in a file of its own
generation_config.json     every token that ends an answer (config.json: often one of them)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyllm.errors import TokenizerError

NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token")
# Ends of a turn by name, where the chat template writes them: a checkpoint's files may name the end
# of a text alone. As llama.cpp knows them (src/llama-vocab.cpp, "special_eog_ids").
TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<turn|>", "<|end|>",
             "<|return|>", "<|call|>", "<end_of_utterance>")  # fmt: skip


@dataclass(frozen=True)
class TokenFacts:
    """What the small files of a folder say."""

    templates: Mapping[str, str]
    named_tokens: Mapping[str, str]
    eos_ids: tuple[int, ...]


def read_folder(folder: Path, token_to_id: Callable[[str], int | None]) -> TokenFacts:
    """Read them. Raises `TokenizerError` naming the file."""
    options = _read_json(folder / "tokenizer_config.json")
    named = {key: text for key in NAMES if isinstance(text := _text_of(options.get(key)), str)}
    templates = _read_templates(folder, options)
    return TokenFacts(
        templates=templates,
        named_tokens=named,
        eos_ids=tuple(sorted(_ends(folder, named, templates, token_to_id))),
    )


def _text_of(token: Any) -> Any:
    """A token as files name it: its text, or an object with its text under "content"."""
    return token.get("content") if isinstance(token, dict) else token


def _ends(
    folder: Path,
    named: Mapping[str, str],
    templates: Mapping[str, str],
    token_to_id: Callable[[str], int | None],
) -> set[int]:
    """The ids that end an answer: by key, and of turns by name where the template writes them."""
    ends: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        value = _read_json(folder / name).get("eos_token_id")
        ids = value if isinstance(value, list) else [value]
        ends |= {id for id in ids if type(id) is int}
    written = [name for name in TURN_ENDS if any(name in text for text in templates.values())]
    if "<|return|>" in written and "<|end|>" in written:
        written.remove("<|end|>")  # gpt-oss: the end of one channel's message, not of the answer
    for text in (named.get("eos_token"), *written):
        if text is not None and (id := token_to_id(text)) is not None:
            ends.add(id)
    return ends


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or {} when there is no such file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise TokenizerError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(value, dict):
        raise TokenizerError(f"{path} should hold a JSON object, not a {type(value).__name__}")
    return value


def _read_templates(folder: Path, options: Mapping[str, Any]) -> dict[str, str]:
    """Chat templates by name. Files of their own go before the ones inside tokenizer_config."""
    path = folder / "chat_template.jinja"
    others = sorted((folder / "additional_chat_templates").glob("*.jinja"))
    if path.is_file() or others:
        files = {"default": path} if path.is_file() else {}
        files |= {other.stem: other for other in others}
        return {name: _read_text(file) for name, file in files.items()}
    inside = _read_json(folder / "chat_template.json").get("chat_template")
    inside = options.get("chat_template") if inside is None else inside
    if isinstance(inside, str):
        return {"default": inside}
    if isinstance(inside, list):  # several, by name
        return {
            entry["name"]: entry["template"]
            for entry in inside
            if isinstance(entry, dict)
            and isinstance(entry.get("name"), str)
            and isinstance(entry.get("template"), str)
        }
    return {}


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"{path} cannot be read: {error}") from error
