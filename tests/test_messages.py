"""What a person types by mistake or by habit: it works, or the message says what to do instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tinyllm
from tests.tiny import CONFIG, tiny_model
from tinyllm import lab
from tinyllm.errors import HookError, ImageError
from tinyllm.lm import LM
from tinyllm.prompt import Prompt
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
