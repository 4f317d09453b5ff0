"""Tokenizers out of GGUF files: llama.cpp's own vocabularies, and the vectors made for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.downloads import llama_cpp_models
from tinyllm.errors import FetchError
from tinyllm.files.gguf import GGUF
from tinyllm.files.gguf_tokenizer import build_tokenizer, merges_by_score
from tinyllm.tokenizer import StreamDecoder, Tokenizer

WITH_VECTORS = [
    "command-r", "deepseek-coder", "deepseek-llm", "falcon", "gemma-4", "gpt-2", "llama-bpe",
    "llama-spm", "mpt", "phi-3", "qwen2", "qwen35", "refact", "starcoder",
]  # fmt: skip


def vocabulary(name: str) -> Path:
    return llama_cpp_models() / f"ggml-vocab-{name}.gguf"


@pytest.mark.downloads
@pytest.mark.parametrize("name", WITH_VECTORS)
def test_ids_and_text_are_the_models_own(name: str) -> None:
    path = vocabulary(name)
    with GGUF(path) as file:
        tokenizer = Tokenizer(build_tokenizer(file))
    texts = Path(f"{path}.inp").read_text("utf-8").split("\n__ggml_vocab_test__\n")
    rows = Path(f"{path}.out").read_text("utf-8").split("\n")
    assert len(texts) > 40
    for text, row in zip(texts, rows, strict=False):
        ids = [int(id) for id in row.split()]
        assert tokenizer.encode(text, allow_special=True) == ids, text
        assert tokenizer.decode(ids) == text
        stream = StreamDecoder(tokenizer)
        streamed = "".join(map(stream.push, ids)) + stream.flush()
        assert streamed in (text, f" {text}")  # a space that SentencePiece puts in front


@pytest.mark.downloads
@pytest.mark.parametrize(("name", "kind"), [("bert-bge", "WordPiece"), ("nomic-bert-moe", "unigr")])
def test_other_kinds_are_refused_with_a_remedy(name: str, kind: str) -> None:
    with GGUF(vocabulary(name)) as file, pytest.raises(FetchError, match=rf"{kind}.*hf:OWNER/NAME"):
        build_tokenizer(file)


def test_the_better_score_is_merged_first() -> None:
    """Every cut of a piece into two pieces; control tokens and bytes are no pieces."""
    tokens = ["<s>", "<0x41>", "a", "b", "ab", "ba", "aba"]
    scores = [0.0, 0.0, -1.0, -2.0, -5.0, -4.0, -3.0]
    kinds = [3, 6, 1, 1, 1, 1, 1]
    assert list(merges_by_score(tokens, scores, kinds)) == [
        ("a", "ba"), ("ab", "a"), ("b", "a"), ("a", "b"),
    ]  # fmt: skip
