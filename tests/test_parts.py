"""Assembled models: the same language model, and an encoder that is loaded when needed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import tinyllm
from tests.assembled_folder import CARD, write_assembled
from tests.smolvlm_folder import write_smolvlm
from tests.vision_models import picture
from tinyllm.errors import ConfigError, FetchError, ImageError, TinyllmError, WeightsError
from tinyllm.lm import LM
from tinyllm.parts import CONNECTOR_FILE, Parts
from tinyllm.terminal.stepper import Stepper, prompt_text
from tinyllm.vision.connected import PROCESSOR, ConnectedEncoder


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, weights_folder: Path, dinov2_folder: Path
) -> Path:
    return write_assembled(tmp_path_factory.mktemp("models") / "seeded")


@pytest.fixture(scope="module")
def lm(folder: Path) -> LM:
    return tinyllm.load(folder)


@pytest.fixture(scope="module")
def text() -> LM:
    return tinyllm.load()


def encoder_of(lm: LM) -> ConnectedEncoder:
    assert lm.vision is not None
    assert isinstance(lm.vision.embedder, ConnectedEncoder)
    return lm.vision.embedder


CHAT = [
    {"role": "system", "content": "Look closely."},
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "These:"},
            {"type": "image"},
            {"type": "image"},
            {"type": "text", "text": "and?"},
        ],
    },
    {"role": "assistant", "content": "I see."},
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "And now?"}]},
]
PICTURES = [picture(40, 90), picture(64, 64), picture(300, 20)]


def test_the_name_is_the_cards_and_the_rest_the_language_models(lm: LM, text: LM) -> None:
    assert (lm.name, lm.card) == ("seeded-vision", CARD)
    assert (lm.folder, lm.config) == (text.folder, text.config)
    assert lm.parts.sees and not text.parts.sees
    assert lm.runner.fingerprint == text.runner.fingerprint


@pytest.mark.parametrize("dtype", [pytest.param("f32", marks=pytest.mark.long), "q8"])
def test_text_alone_gives_the_bits_of_the_text_model(folder: Path, dtype: Any) -> None:
    blind, seeing = tinyllm.load(dtype=dtype), tinyllm.load(folder, dtype=dtype)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    written = "<|endoftext|> stays text, and so does <image>."
    for prompt in (
        chat,
        "The capital of France is",
        [*chat, CHAT[2], {**chat[0], "content": written}],
    ):
        one, other = blind.session(prompt, temperature=0), seeing.session(prompt, temperature=0)
        assert one.prompt == other.prompt
        for _ in range(3):
            assert np.array_equal(one.peek().logits, other.peek().logits)
            assert one.step().token == other.step().token


def test_rows_stand_where_the_images_stand(lm: LM) -> None:
    connector = encoder_of(lm).connector
    prompt = lm.prompt(CHAT, PICTURES)
    token = encoder_of(lm).image_token
    shown = lm.tokenizer.decode(prompt.tokens.tolist())
    image = token * connector.n_rows
    assert shown == (
        "<|im_start|>system\nLook closely.<|im_end|>\n"
        f"<|im_start|>user\nThese:\n{image}\n{image}\nand?<|im_end|>\n"
        "<|im_start|>assistant\nI see.<|im_end|>\n"
        f"<|im_start|>user\n{image}\nAnd now?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert prompt.image_positions is not None and prompt.image_rows is not None
    n = connector.n_rows
    assert len(prompt.image_positions) == 3 * n and prompt.image_rows.shape == (3 * n, 576)
    for i, pixels in enumerate(PICTURES):
        states = encoder_of(lm).encoder.encode(PROCESSOR(pixels), layers=connector.layers)
        assert np.array_equal(prompt.image_rows[i * n : (i + 1) * n], connector.rows(states))


def test_what_is_read_is_what_is_handed_over(lm: LM) -> None:
    reading = encoder_of(lm).read(PICTURES[0])
    (_, rows), n = encoder_of(lm).encode(PICTURES[0]), encoder_of(lm).connector.n_rows
    assert np.array_equal(rows, encoder_of(lm).connector.rows(reading.caption))
    assert rows.shape == (n, 576) and rows.dtype == np.float32
    with pytest.raises(ImageError, match="height, width, 3"):
        encoder_of(lm).read(np.zeros((0, 4, 3), np.uint8))


def test_a_session_steps_rewinds_and_forks_over_images(lm: LM) -> None:
    session = lm.session("What is it?", images=PICTURES[:1], temperature=0)
    tokens = [session.step().token for _ in range(4)]
    session.rewind(2)
    twin = session.fork()
    assert [session.step().token for _ in range(2)] == tokens[2:]
    assert [twin.step().token for _ in range(2)] == tokens[2:]
    twin.rewind(3)
    twin.step(token=" dog")
    assert twin.text != session.text and [s.token for s in session.steps] == tokens
    whole = lm.generate("What is it?", images=PICTURES[:1], max_tokens=4, temperature=0)
    assert whole.tokens == tokens[: len(whole.tokens)]
    # The past of an image prompt can be looked into, too: the replay computes the same logits.
    assert session.steps[3].attention is not None


def test_the_stepper_shows_a_sign_for_an_image(lm: LM) -> None:
    n = encoder_of(lm).connector.n_rows
    session = lm.session("What is it?", images=PICTURES[:1], temperature=0)
    assert f"user\n[image, {n} rows]\nWhat is it?<|im_end|>" in prompt_text(session)
    assert prompt_text(lm.session("Hi there")) == "Hi there"
    stepper = Stepper(session)
    stepper.take()
    assert len(session.steps) == 1 and "[image" in str(stepper.text()[0][1])


def test_both_paths_see_the_same(lm: LM, folder: Path) -> None:
    fast = tinyllm.load(folder, dtype="q8")
    one, other = lm.prompt(CHAT, PICTURES), fast.prompt(CHAT, PICTURES)
    assert one.tokens.tolist() == other.tokens.tolist()
    assert one.image_rows is not None and other.image_rows is not None
    assert np.abs(one.image_rows - other.image_rows).max() < 1e-4
    readings = [encoder_of(model).read(PICTURES[0]) for model in (lm, fast)]
    assert np.abs(readings[0].name - readings[1].name).max() < 1e-3


def test_an_image_is_encoded_once(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    whole = encoder_of(lm).encode

    def spy(image: Any) -> Any:
        seen.append(image.shape)
        return whole(image)

    monkeypatch.setattr(encoder_of(lm), "encode", spy)
    one, other = picture(33, 44), picture(33, 45)
    ask = [{"role": "user", "content": [{"type": "image"}, {"type": "image"}]}]
    first = lm.prompt(ask, [one, other]).match_ids()
    assert np.array_equal(first, lm.prompt(ask, [one.copy(), other]).match_ids())
    assert seen == [(33, 44, 3), (33, 45, 3)]
    assert lm.vision is not None and lm.vision.kept_bytes > 0


def test_prompts_are_told_apart_by_what_is_handed_over(lm: LM, tmp_path: Path) -> None:
    """Two connectors on one language model may share a prefix cache: the same picture differs."""
    other = tinyllm.load(write_assembled(tmp_path / "other", seed=1))
    ask = [{"role": "user", "content": [{"type": "image"}]}]
    ids = [m.prompt(ask, [PICTURES[0]]).match_ids() for m in (lm, other)]
    assert len(ids[0]) == len(ids[1]) and not np.array_equal(*ids)


def test_more_or_fewer_images_than_places(lm: LM) -> None:
    for images in (PICTURES[:2], [*PICTURES, PICTURES[0]]):
        with pytest.raises(ImageError, match="3 places"):
            lm.prompt(CHAT, images)


# -- what can be wrong ------------------------------------------------------------------------


@pytest.mark.long
def test_text_needs_neither_connector_nor_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_assembled(tmp_path / "seeded")
    (folder / CONNECTOR_FILE).unlink()
    card = {**CARD, "parts": {**CARD["parts"], "image_encoder": "no-such-encoder"}}
    (folder / "card.json").write_text(json.dumps(card))
    lm = tinyllm.load(folder)
    assert lm.chat("What is the capital of France?", max_tokens=8)
    with pytest.raises(WeightsError, match=rf"{CONNECTOR_FILE} is missing.*git checkout"):
        lm.prompt("?", [PICTURES[0]])
    write_assembled(folder)
    (folder / "card.json").write_text(json.dumps(card))
    with pytest.raises(FetchError, match="no-such-encoder"):
        tinyllm.load(folder).prompt("?", [PICTURES[0]])


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def rubbish(path: Path) -> None:
    path.write_bytes(b"<html>not found</html>")


def other_shape(path: Path) -> None:
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    tensors["rows.before"] = tensors["rows.before"][:, :100].copy()
    save_file(tensors, path, metadata)


def no_tensor(path: Path) -> None:
    save_file({"x": np.zeros(3, np.float32)}, path)


@pytest.mark.parametrize("spoil", [cut, rubbish, other_shape, no_tensor])
def test_a_spoiled_connector(spoil: Callable[[Path], None], lm: LM, tmp_path: Path) -> None:
    folder = write_assembled(tmp_path / "seeded")
    spoil(folder / CONNECTOR_FILE)
    with pytest.raises(WeightsError) as caught:
        Parts.of(folder).image_side(lm.tokenizer, compiled=False)
    assert str(folder / CONNECTOR_FILE) in str(caught.value)
    assert "git checkout" in str(caught.value)


@pytest.mark.parametrize(
    ("parts", "word"),
    [
        ([], "parts must name"),
        ({"language_model": "smollm2-135m-instruct"}, "image_encoder"),
        ({"language_model": 3, "image_encoder": "dinov2-small"}, "language_model"),
        ({"language_model": "nothing-like-it", "image_encoder": "dinov2-small"}, "nothing-like-it"),
    ],
)
def test_cards_that_make_no_sense(parts: Any, word: str, tmp_path: Path) -> None:
    (tmp_path / "card.json").write_text(json.dumps({"id": "x", "parts": parts}))
    with pytest.raises(TinyllmError, match=word) as caught:
        Parts.of(tmp_path)
    assert isinstance(caught.value, (ConfigError, FetchError))


def test_whole_checkpoints_are_their_own_parts(
    tmp_path: Path, weights_folder: Path, dinov2_folder: Path
) -> None:
    write_smolvlm(tmp_path / "vlm", weights_folder)
    vlm = Parts.of(tmp_path / "vlm")
    assert (vlm.language_model, vlm.image_encoder, vlm.sees) == (tmp_path / "vlm", None, True)
    assert vlm.name == "vlm" and vlm.fingerprint("abc") == "abc"
    whole = Parts.of(weights_folder)
    assert (whole.language_model, whole.sees) == (weights_folder, False)
    whole.fetch()  # nothing to do
    Parts.of(dinov2_folder).fetch()
