"""What a person types by mistake or by habit: it works, or the message says what to do instead."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tinyllm
from tests.tiny import CONFIG, bytes_tokenizer, tiny_model
from tinyllm import lab
from tinyllm.decode import Session
from tinyllm.errors import HookError, ImageError
from tinyllm.inside.hooks import make_hooks
from tinyllm.lm import LM
from tinyllm.prompt import Prompt
from tinyllm.sampler import SamplingParams
from tinyllm.vision.image import list_of_images, read_image

PICTURE = Image.new("RGB", (6, 4), (200, 30, 30))


def test_images_of_every_kind(tmp_path: Path) -> None:
    path = tmp_path / "a long name.png"
    PICTURE.save(path)
    raw = path.read_bytes()
    pixels = np.asarray(PICTURE)
    for given in (PICTURE, pixels, path, str(path), raw):
        (only,) = list_of_images(given)
        assert np.array_equal(read_image(only), pixels)
        assert len(list_of_images([given, given])) == len(list_of_images((given,))) + 1 == 2
    assert list_of_images(str(path)) == [str(path)]  # not a list of letters
    assert len(list_of_images(np.stack([pixels, pixels]))) == 2
    assert list_of_images(None) == list_of_images([]) == list_of_images(()) == []


@pytest.fixture(scope="module")
def lm(weights_folder: Path) -> LM:
    return tinyllm.load(weights_folder, backend="reference")


def test_a_chat_is_a_text_or_messages(lm: LM) -> None:
    question = "What is the capital of France?"
    messages = [{"role": "user", "content": question}]
    answer = lm.chat(messages, max_tokens=6)
    assert answer == lm.chat(question, max_tokens=6) == lm.chat(tuple(messages), max_tokens=6)
    said = {"role": "assistant", "content": "It is Paris."}
    again = {"role": "user", "content": "Say it again."}
    assert "Paris" in lm.chat([*messages, said, again], max_tokens=12)
    with pytest.raises(ImageError, match="reads text alone"):
        lm.chat(question, images=PICTURE)


def test_the_first_difference_takes_what_generate_takes(lm: LM) -> None:
    text = "The capital of France is Paris."
    ids = lm.encode_prompt(text)
    chat = [{"role": "user", "content": "Hello"}]
    for prompt in (text, ids, tuple(ids), np.array(ids), lm.prompt(text)):
        found = lab.first_difference(lm, "softmax-scale", prompt)  # type: ignore[arg-type]
        assert found is not None and found.name == "blocks.0.attn.hook_attn_scores"
    found = lab.first_difference(lm, "softmax-scale", chat)
    assert found is not None and found.positions[0] == 0
    with pytest.raises(ImageError, match="reads text alone"):
        lab.first_difference(lm, "softmax-scale", text, images=PICTURE)


def test_the_first_difference_sees_images() -> None:
    """Rows that stand in for tokens are handed to both models."""
    model = tiny_model()
    rows = np.random.default_rng(0).standard_normal((2, CONFIG.dim)).astype(np.float32)
    prompt = Prompt(np.arange(8, dtype=np.int32), np.array([1, 2]), rows)
    assert lab.first_difference(model, model, prompt) is None
    seen: list[Any] = []
    original = model.forward

    def spy(*args: Any, **more: Any) -> Any:
        seen.append(more["image_positions"])
        return original(*args, **more)

    model.forward = spy  # type: ignore[method-assign]
    lab.first_difference(model, model, prompt)
    assert [None if at is None else at.tolist() for at in seen[:4]] == [[1, 2], [1, 2], None, None]


def test_a_hook_in_place_is_told_what_to_return(lm: LM) -> None:
    def halve(act: Any, *, hook: Any) -> None:
        act *= 0.5

    with (
        lm.hooks([("blocks.3.hook_mlp_out", halve)]),
        pytest.raises(HookError, match=r"out = act\.copy\(\); out\[…\] = …; return out"),
    ):
        lm.generate("Hello", max_tokens=1)
    with lm.hooks([("blocks.3.hook_mlp_out", lambda act, *, hook: act * 0.5)]):
        lm.generate("Hello", max_tokens=1)  # nothing is left of the one that raised


TINY = tiny_model()


def tiny_session() -> Session:
    session = Session(TINY, bytes_tokenizer(), list(b"Once"), SamplingParams(seed=1))
    session.run(3, beyond_end=True)
    return session


@pytest.mark.parametrize("twin_of", [copy.copy, copy.deepcopy])
def test_a_copied_session_is_a_fork(twin_of: Any) -> None:
    """Two sessions with one cache would write into each other's tokens."""
    session = tiny_session()
    before = session.tokens
    twin = twin_of(session)
    twin.step(beyond_end=True)
    assert session.tokens == before and len(twin.tokens) == len(before) + 1
    assert session.step(beyond_end=True).logits.tobytes() == twin.steps[-1].logits.tobytes()


def test_a_pickled_session_says_what_keeps_it() -> None:
    session = tiny_session()
    for thing in (session, session.steps[0]):
        with pytest.raises(TypeError, match=r"session\.trace\(\)\.save\(path\) keeps it"):
            pickle.dumps(thing)
    assert pickle.loads(pickle.dumps(session.trace())) == session.trace()


def test_what_a_step_recorded_cannot_be_written_to() -> None:
    session = tiny_session()
    for logits in (session.steps[1].logits, session.peek().logits):
        with pytest.raises(ValueError, match="read-only"):
            logits[0] = 1e9


@pytest.mark.parametrize("prompt", [None, 5, b"hello", {"role": "user", "content": "x"}, ["a"]])
def test_what_is_no_prompt(lm: LM, prompt: Any) -> None:
    with pytest.raises(TypeError, match="a prompt is text, a list of token ids"):
        lm.generate(prompt)


@pytest.mark.parametrize("n", [2.5, "3", -1, None, True])
def test_how_many_tokens_is_a_whole_number(lm: LM, n: Any) -> None:
    with pytest.raises(ValueError, match="max_tokens must be a whole number from 0"):
        lm.generate("a", max_tokens=n)


def test_indices_that_are_none() -> None:
    step = tiny_session().steps[0]
    tokens: list[tuple[Any, type[Exception], str]] = [
        (-1, ValueError, "token -1 is not in the vocabulary of 257"),
        (257, ValueError, "token 257 is not in the vocabulary of 257"),
        (" a", ValueError, "' a' is 2 tokens, not one"),
        (True, TypeError, "a token is an id or a text, not True"),
    ]
    for token, error, message in tokens:
        for ask in (step.choice.candidate, lambda t: step.logit_lens(token=t)):
            with pytest.raises(error, match=message):
                ask(token)
    for k in (0, -1, True, 1.5):
        with pytest.raises(ValueError, match="k must be at least 1"):
            step.logit_lens(k)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="layer must be from 0 to 2, not True"):
        step.attention(True, 0)


def test_hooks_are_a_list_of_pairs() -> None:
    def fn(act: Any, *, hook: Any) -> None: ...

    for hooks in (("blocks.0.hook_mlp_out", fn), {"blocks.0.hook_mlp_out": fn}, ["hook_embed"]):
        with pytest.raises(HookError, match="hooks are a list of pairs"):
            make_hooks(CONFIG, hooks)  # type: ignore[arg-type]
    with pytest.raises(HookError, match=r"positions are a list, as in \[1\]"):
        make_hooks(CONFIG, [("hook_embed", fn)], positions=1)  # type: ignore[arg-type]
