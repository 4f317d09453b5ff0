"""lm.py: loading by path, what comes out, and what goes wrong end to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinyllm
from tests.llama_folders import small_config, write_folder
from tests.test_weights import SPOILERS, Spoiler
from tinyllm.errors import TinyllmError
from tinyllm.lm import LM


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "small"
    write_folder(path)
    return path


@pytest.fixture(scope="module")
def lm(folder: Path) -> LM:
    return tinyllm.load(folder, backend="reference")


def test_a_folder_by_path_object_or_text(folder: Path, lm: LM) -> None:
    assert tinyllm.load(str(folder)).config == lm.config
    assert lm.name == "small"
    assert lm.card == {"id": "small"}
    assert "small" in repr(lm)
    assert "dim 48" in repr(lm)


def test_a_card_names_the_model(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "card.json").write_text('{"id": "tiny-1", "license": "MIT"}')
    lm = tinyllm.load(tmp_path)
    assert (lm.name, lm.card["license"]) == ("tiny-1", "MIT")


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("tied", [True, False])
def test_every_form_of_a_checkpoint_generates(
    tmp_path: Path, dtype: str, shards: int, tied: bool
) -> None:
    write_folder(tmp_path, small_config(tie_word_embeddings=tied), dtype=dtype, shards=shards)
    done = tinyllm.load(tmp_path, backend="reference").generate("ab c", max_tokens=6, temperature=0)
    assert done.n_prompt_tokens == 4
    assert len(done.tokens) == len(done.logprobs) <= 6


def test_prompts_of_every_kind(lm: LM) -> None:
    ids = lm.tokenizer.encode("hello")
    assert lm.encode_prompt("hello") == lm.encode_prompt(ids) == ids
    assert lm.encode_prompt(np.array(ids)) == ids  # type: ignore[arg-type]
    assert lm.generate("hello", max_tokens=4, seed=1) == lm.generate(ids, max_tokens=4, seed=1)
    for bad in ([1.5], [True], ["a"], [{"role": "user"}, 3], [None]):
        with pytest.raises(TypeError, match="token ids"):
            lm.encode_prompt(bad)  # type: ignore[arg-type]


def test_a_saved_session_is_gone_on_with(lm: LM, folder: Path, tmp_path: Path) -> None:
    session = lm.session("hello", temperature=0.9)
    session.run(5)
    saved = session.trace().save(tmp_path / "trace.json")
    assert lm.reopen(saved, 2).run(3)[-1].token == session.tokens[-1]
    assert lm.reopen(str(saved)).step().logits.tobytes() == session.step().logits.tobytes()
    with pytest.raises(TinyllmError, match="absent"):
        lm.reopen(tmp_path / "absent.json")
    with pytest.raises(TinyllmError, match="small"):  # not a name that anybody knows
        tinyllm.reopen(saved)


def test_a_chat_needs_a_template(lm: LM) -> None:
    with pytest.raises(TinyllmError, match="template"):
        lm.chat("Hello")


@pytest.mark.parametrize("prompt", ["", [], np.zeros(0, np.int64)])
def test_an_empty_prompt(lm: LM, prompt: Any) -> None:
    with pytest.raises(ValueError, match="empty"):
        lm.generate(prompt, max_tokens=1)


def test_how_many_tokens(lm: LM) -> None:
    done = lm.generate("hello", max_tokens=0)
    assert (done.tokens, done.text, done.finish_reason) == ([], "", "length")
    with pytest.raises(ValueError, match="max_tokens"):
        lm.generate("hello", max_tokens=-1)
    with pytest.raises(ValueError, match="vocabulary"):
        lm.generate([99], max_tokens=1)


def test_an_end_token_ends_and_is_left_out(lm: LM) -> None:
    eos = lm.tokenizer.eos_ids[0]
    steps = list(lm.decode_steps("hello", max_tokens=9, temperature=0, logit_bias={eos: 100}))
    assert [s.token for s in steps] == [eos]
    done = lm.generate("hello", max_tokens=9, temperature=0, logit_bias={eos: 100})
    assert (done.tokens, done.finish_reason) == ([], "stop")
    never = lm.generate("hello", max_tokens=9, seed=0, logit_bias={eos: -100})
    assert (len(never.tokens), never.finish_reason) == (9, "length")


def test_the_context_is_the_limit(lm: LM) -> None:
    with pytest.raises(TinyllmError, match="cache holds 256"):
        lm.generate([5] * 257, max_tokens=1)
    full = lm.generate([5] * 256, max_tokens=1, temperature=0)  # the last position still predicts
    assert len(full.tokens) <= 1


def test_sampling_is_passed_on_and_checked(lm: LM) -> None:
    with pytest.raises(ValueError, match="temperature"):
        lm.generate("hello", temperature=3)
    with pytest.raises(ValueError, match="top_q"):
        lm.generate("hello", top_q=0.5)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"dtype": "f64"}, "dtype"),
        ({"backend": "gpu"}, "backend"),
        ({"backend": "reference", "dtype": "q8"}, "f32"),
    ],
)
def test_what_load_does_not_know(folder: Path, options: Any, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        tinyllm.load(folder, **options)


# Spoiled folders, all the way through load().


@pytest.mark.parametrize("spoil", SPOILERS, ids=lambda spoil: spoil.__name__)
def test_spoiled_weights(spoil: Spoiler, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    write_folder(folder)
    words = spoil(folder)
    with pytest.raises(TinyllmError) as caught:
        tinyllm.load(folder)
    text = str(caught.value)
    assert [word for word in words if word not in text] == [], text


FILES = ["config.json", "tokenizer.json", "card.json", "tokenizer_config.json",
         "generation_config.json"]  # fmt: skip
RUBBISH = {
    "empty": b"",
    "cut": b'{"a": ',
    "list": b"[1]",
    "null": b"null",
    "binary": b"\x89PNG\r\n\x1a\n\0\0\0\xff",
    "deep": b'{"a": ' + b"[" * 50_000,
    "huge number": b'{"a": ' + b"9" * 10_000 + b"}",
}


@pytest.mark.parametrize("content", RUBBISH.values(), ids=RUBBISH)
@pytest.mark.parametrize("name", FILES)
def test_rubbish_in_a_file(name: str, content: bytes, tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TinyllmError) as caught:
        tinyllm.load(tmp_path)
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_missing_file(name: str, tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(TinyllmError) as caught:
        tinyllm.load(tmp_path)
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("eos_token_id", "two"), ("eos_token_id", [2, "x"]), ("vocab_size", 98),
        ("num_hidden_layers", 4), ("num_hidden_layers", 2), ("hidden_size", 50),
        ("intermediate_size", 81), ("head_dim", 12), ("num_key_value_heads", 3),
        ("tie_word_embeddings", False), ("architectures", ["MambaForCausalLM"]),
        ("model_type", ["llama"]), ("model_type", {}), ("architectures", "x"),
    ],
)  # fmt: skip
def test_a_config_that_is_not_the_weights(key: str, value: Any, tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(small_config(**{key: value})))
    with pytest.raises(TinyllmError) as caught:
        tinyllm.load(tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("name", ["no-such-model", "", "hf:", "hf:a/b/c/d", "../nowhere", "\0"])
def test_a_name_that_is_nothing(name: str) -> None:
    with pytest.raises(TinyllmError):
        tinyllm.load(name)


# The real model.


def test_paris(weights_folder: Path) -> None:
    lm = tinyllm.load(weights_folder, backend="reference")
    chat = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "What is the capital of France?"},
    ]
    done = lm.generate(chat, max_tokens=20, temperature=0)
    assert "Paris" in done.text
    assert done.finish_reason == "stop"
    assert lm.card["license"] == "Apache-2.0"


def test_the_cache_of_the_kernels_may_be_float32(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr("tinyllm.compiled.CompiledModel", lambda *args, **more: asked.append(more))
    tinyllm.load(folder, dtype="q4", threads=1, kv_dtype="f32")
    tinyllm.load(folder, dtype="q4", threads=1)
    assert [more["kv_dtype"] for more in asked] == ["f32", None]
    assert {more["threads"] for more in asked} == {1}
