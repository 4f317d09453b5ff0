"""llama.cpp's collection of real chat templates, each rendered as the reference renders it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from tests.downloads import llama_cpp_models
from tests.text.chats import (
    CHATS,
    TOOLS,
    Chat,
    with_argument_strings,
    with_parts,
    with_strings,
)
from tinyllm.errors import TokenizerError
from tinyllm.tokenizer import Tokenizer

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def backend() -> tokenizers.Tokenizer:
    vocab = {t: i for i, t in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = (*TOKENS.values(), "<|im_end|>")
    tokenizer.add_special_tokens([AddedToken(n, special=True, normalized=False) for n in names])
    return tokenizer


def forms(chat: Chat) -> list[Chat]:
    """The same chat in every form that one template or another was written for."""
    contents: list[Callable[[Chat], Chat]] = [lambda same: same, with_strings, with_parts]
    return [
        arguments(content(chat))
        for content in contents
        for arguments in (lambda same: same, with_argument_strings)
    ]


@pytest.mark.reference
@pytest.mark.downloads
def test_every_template_as_the_reference_renders_it() -> None:
    """Where the reference takes a chat in any form, ours takes a client's, and the text is one."""
    from transformers import PreTrainedTokenizerFast

    reference = PreTrainedTokenizerFast(tokenizer_object=backend(), **TOKENS)
    templates = sorted((llama_cpp_models() / "templates").glob("*.jinja"))
    assert len(templates) >= 70
    for path in templates:
        source = path.read_text(encoding="utf-8")
        ours = Tokenizer(backend(), chat_templates={"default": source}, named_tokens=TOKENS)
        for label, chat in CHATS.items():
            for options in ways_to_ask(label):
                expected = set()
                for form in forms(chat):
                    try:
                        text = reference.apply_chat_template(
                            form, chat_template=source, tokenize=False, **options
                        )
                        expected.add(text)
                    except Exception:  # a template's own refusal, or what Jinja makes of the form
                        continue
                try:
                    got = ours.render_chat(with_argument_strings(chat), **options)
                except TokenizerError as error:
                    assert not expected, f"{path.name}, {label}: {error}"
                else:
                    expected = expected or with_null(source, chat, options)
                    assert got in expected, f"{path.name}, {label}, {options}"


def with_null(source: str, chat: Chat, options: dict[str, Any]) -> set[str]:
    """Rendered with the null itself, which the reference leaves out, and some templates ask for."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    found = set()
    for form in forms(chat):
        try:
            compiled = _compile_jinja_template(source)
            found.add(compiled.render(messages=form, **TOKENS, **options))
        except Exception:  # it refuses that, too
            continue
    return found


def ways_to_ask(label: str) -> list[dict[str, Any]]:
    thinking: list[dict[str, Any]] = [{}]
    if label in ("question", "system"):
        thinking += [{"enable_thinking": True}, {"enable_thinking": False}]
    return [
        {"tools": tools, "add_generation_prompt": prompt, **extra}
        for tools in (None, TOOLS)
        for prompt in (True, False)
        for extra in thinking
    ]
