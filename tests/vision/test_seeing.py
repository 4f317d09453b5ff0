"""Gemma 3 and Qwen3-VL against the reference: ids, pixels and logits of seeded small ones."""

from __future__ import annotations

import json
import queue
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinyllm
from tests.seeing_folders import (
    GEMMA,
    GEMMA_TOKENS,
    QWEN,
    write_gemma,
    write_qwen,
    write_qwen_moe,
)
from tests.smolvlm_folder import CHATS
from tests.vision_models import picture
from tinyllm.config import ModelConfig
from tinyllm.engine.engine import Engine
from tinyllm.engine.types import Done, Event, Request, Token
from tinyllm.errors import ConfigError, ImageError
from tinyllm.lm import LM
from tinyllm.prompt import Prompt
from tinyllm.runner import behind_image, places
from tinyllm.vision.preprocess import ImageProcessor
from tinyllm.vision.qwen3vl import Qwen3Eyes

GOLDEN = Path(__file__).parents[1] / "golden" / "seeing.npz"


WRITE = {"gemma": write_gemma, "qwen": write_qwen, "qwen_moe": write_qwen_moe}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, weights_folder: Path) -> dict[str, LM]:
    found = {}
    for family, write in WRITE.items():
        folder = tmp_path_factory.mktemp(family)
        write(folder, weights_folder)
        found[family] = tinyllm.load(folder)
    return found


@pytest.fixture(scope="module")
def gemma(models: dict[str, LM]) -> LM:
    return models["gemma"]


@pytest.fixture(scope="module")
def qwen(models: dict[str, LM]) -> LM:
    return models["qwen"]


def prompt_of(lm: LM, name: str) -> Prompt:
    messages, sizes = CHATS[name]
    return lm.prompt(messages, [picture(*size) for size in sizes])


def logits_of(lm: LM, prompt: Prompt, **how: Any) -> np.ndarray:
    return lm.model.prefill(
        prompt.tokens,
        lm.model.new_cache(len(prompt.tokens)),
        logits="all",
        image_positions=prompt.image_positions,
        image_rows=prompt.image_rows,
        **how,
    )


def pixels_of(family: str, lm: LM, sizes: list[tuple[int, int]]) -> np.ndarray:
    """As make_seeing.py keeps them."""
    if family == "gemma":
        return ImageProcessor.from_folder(lm.folder)(picture(*sizes[-1]))[:, ::5, ::5]
    eyes = lm.vision.embedder  # type: ignore[union-attr]
    assert isinstance(eyes, Qwen3Eyes)
    patches = []
    for size in sizes:
        pixels = eyes.resizing(picture(*size))
        rows, cols = pixels.shape[1] // 8, pixels.shape[2] // 8
        squares = pixels.reshape(3, rows // 2, 2, 8, cols // 2, 2, 8)
        patches.append(squares.transpose(1, 4, 2, 5, 0, 3, 6).reshape(-1, 3, 8, 8))
    return np.concatenate(patches)[::3, :, ::4, ::4]


@pytest.mark.parametrize("family", WRITE)
@pytest.mark.parametrize("name", CHATS)
def test_ids_pixels_and_logits_are_the_references(
    name: str, family: str, models: dict[str, LM]
) -> None:
    lm = models[family]
    prompt = prompt_of(lm, name)
    with np.load(GOLDEN) as golden:
        assert prompt.tokens.tolist() == golden[f"{family}/{name}/ids"].tolist()
        got = logits_of(lm, prompt)[-12:, ::97]
        assert np.abs(got - golden[f"{family}/{name}/logits"]).max() <= 1e-4
        if sizes := CHATS[name][1]:
            gap = np.abs(pixels_of(family, lm, sizes) - golden[f"{family}/{name}/pixels"]).max()
            assert gap <= 2 / 255 + 1e-6  # one grey level


@pytest.mark.reference
@pytest.mark.parametrize("family", WRITE)
@pytest.mark.parametrize("name", CHATS)
def test_all_logits_are_the_live_references(name: str, family: str, models: dict[str, LM]) -> None:
    from tests.golden.make_seeing import FAMILIES

    lm = models[family]
    _, inputs_of, reference = FAMILIES[family]
    inputs = inputs_of(lm.folder, *CHATS[name])
    prompt = prompt_of(lm, name)
    assert prompt.tokens.tolist() == inputs["input_ids"][0].tolist()
    assert np.abs(logits_of(lm, prompt) - reference(lm.folder, inputs)).max() <= 1e-4


def test_positions_of_an_image_are_a_grid_and_a_text_goes_on_behind_it() -> None:
    rows = np.array([[0, 0, 3], [0, 1, 3], [0, 2, 3], [1, 0, 3], [1, 1, 3], [1, 2, 3]], np.float32)
    where, after = places(10, 5, np.arange(2, 8), rows)
    assert where[0].tolist() == [5, 6, 7, 7, 7, 7, 7, 7, 10, 11]
    assert where[1].tolist() == [5, 6, 7, 7, 7, 8, 8, 8, 10, 11]
    assert where[2].tolist() == [5, 6, 7, 8, 9, 7, 8, 9, 10, 11]
    assert after.tolist() == [6, 7, 10, 10, 10, 10, 10, 10, 11, 12]
    # In two parts, the cut within the image.
    first, noted = places(4, 5, np.arange(2, 4), rows[:2])
    second, _ = places(6, int(noted[-1]), np.arange(4), rows[2:])
    np.testing.assert_array_equal(np.concatenate([first, second], axis=1), where)


def test_chunks_steps_rewinds_and_forks_go_on_at_the_same_places(qwen: LM) -> None:
    prompt = prompt_of(qwen, "two turns")
    whole = logits_of(qwen, prompt)
    for chunk in (1, 7):
        np.testing.assert_allclose(logits_of(qwen, prompt, chunk=chunk), whole, atol=2e-5)
    session = qwen.session(prompt, temperature=0)
    tokens = [session.step().token for _ in range(5)]
    session.rewind(3)
    twin = session.fork()
    assert [twin.step().token for _ in range(3)] == tokens[2:]
    assert [session.step().token for _ in range(3)] == tokens[2:]
    assert all(step.replay_error < 1e-5 for step in session.steps)
    e = session.steps[-1].explain("blocks.1.attn.hook_rot_q", head=1, dim=3)
    assert e.recomputed == pytest.approx(e.value, rel=1e-4, abs=1e-6)
    # In one go, over prompt and answer.
    ids = [*prompt.tokens.tolist(), *tokens]
    logits = qwen.model.forward(
        ids, qwen.model.new_cache(len(ids)),
        image_positions=prompt.image_positions, image_rows=prompt.image_rows,
    )  # fmt: skip
    assert logits[-6:-1].argmax(-1).tolist() == tokens


def test_a_qwen_that_makes_no_sense_is_named(qwen: LM, tmp_path: Path) -> None:
    for file in qwen.folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    text, eyes = QWEN["text_config"], QWEN["vision_config"]
    rope = text["rope_parameters"]
    for change, named in (
        ({"image_token_id": 900}, "image_token_id is 900"),
        ({"vision_config": eyes | {"hidden_act": "silu"}}, "hidden_act is 'silu'"),
        ({"vision_config": eyes | {"out_hidden_size": 40}}, "out_hidden_size is 40"),
        ({"vision_config": eyes | {"deepstack_visual_indexes": [9]}}, "aren't all blocks"),
        ({"text_config": text | {"rope_parameters": rope | {"mrope_section": [4]}}},
         "mrope_section"),
        ({"text_config": text | {"rope_parameters": rope | {"mrope_interleaved": False}}},
         "mrope_interleaved"),
    ):  # fmt: skip
        (tmp_path / "config.json").unlink()
        (tmp_path / "config.json").write_text(json.dumps(QWEN | change))
        with pytest.raises(ConfigError, match=named):
            _ = tinyllm.load(tmp_path).vision
    with pytest.raises(ImageError, match="strip"):
        qwen.vision.encode(picture(2, 900))  # type: ignore[union-attr]


def test_an_image_is_never_parted(gemma: LM) -> None:
    """Its rows see one another, so that whatever chunks a prompt comes in, they come together."""
    prompt = prompt_of(gemma, "two turns")
    whole = logits_of(gemma, prompt)
    for chunk in (1, 5, 30):
        np.testing.assert_allclose(logits_of(gemma, prompt, chunk=chunk), whole, atol=2e-5)
    positions = np.array([3, 4, 5, 9, 10])
    cuts = [behind_image(positions, cut) for cut in range(12)]
    assert cuts == [0, 1, 2, 3, 6, 6, 6, 7, 8, 9, 11, 11]
    assert behind_image(None, 7) == 7


def test_the_engine_parts_none_either(gemma: LM) -> None:
    prompt = prompt_of(gemma, "two turns")
    assert prompt.whole_images
    expected = gemma.session(prompt, temperature=0)
    expected.run(4, beyond_end=True)
    engine = Engine(gemma.model, max_batch=2, prefill_chunk=7)
    events: queue.Queue[Event] = queue.Queue()
    engine.start()
    try:
        engine.submit(Request("one", prompt, expected.sampler.params, max_tokens=4), events.put)
        got = list(iter(lambda: events.get(timeout=60), Done()))
    finally:
        engine.stop()
    tokens = [event.token for event in got if isinstance(event, Token)]
    assert tokens == [step.token for step in expected.steps]


def test_an_image_is_averaged_to_rows_between_its_tokens(gemma: LM) -> None:
    assert gemma.vision is not None
    encoded = gemma.vision.encode(picture(50, 20))
    ids = gemma.tokenizer.special_tokens
    row = [ids[GEMMA_TOKENS[4]]] * 16
    assert list(encoded.layout) == [ids[GEMMA_TOKENS[2]], *row, ids[GEMMA_TOKENS[3]]]
    assert encoded.rows.shape == (16, 32)


def test_its_language_model_alone_sees_to_the_left() -> None:
    assert ModelConfig.from_hf(GEMMA).images_see_ahead
    text = {**GEMMA["text_config"], "architectures": ["Gemma3ForCausalLM"]}
    assert not ModelConfig.from_hf(text).images_see_ahead


def test_settings_that_make_no_sense_are_named(gemma: LM, tmp_path: Path) -> None:
    for file in gemma.folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    for change, named in (
        ({"mm_tokens_per_image": 15}, "mm_tokens_per_image is 15"),
        ({"mm_tokens_per_image": 9}, "mm_tokens_per_image is 9"),
        ({"boi_token_index": 900}, "boi_token_index is 900"),
    ):
        (tmp_path / "config.json").unlink()
        (tmp_path / "config.json").write_text(json.dumps(GEMMA | change))
        with pytest.raises(ConfigError, match=named):
            _ = tinyllm.load(tmp_path).vision
    with pytest.raises(ConfigError, match="do_pan_and_scan"):
        ImageProcessor.from_hf(
            {"image_processor_type": "Gemma3ImageProcessor", "do_pan_and_scan": True}
        )
