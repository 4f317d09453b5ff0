"""Gemma 3 with eyes against the reference: ids, pixels and logits of a seeded small one."""

from __future__ import annotations

import json
import queue
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinyllm
from tests.seeing_folders import GEMMA, GEMMA_TOKENS, write_gemma
from tests.smolvlm_folder import CHATS
from tests.vision_models import picture
from tinyllm.config import ModelConfig
from tinyllm.engine.engine import Engine
from tinyllm.engine.types import Done, Event, Request, Token
from tinyllm.errors import ConfigError
from tinyllm.lm import LM
from tinyllm.prompt import Prompt
from tinyllm.runner import behind_image
from tinyllm.vision.preprocess import ImageProcessor

GOLDEN = Path(__file__).parents[1] / "golden" / "seeing.npz"


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory, weights_folder: Path) -> LM:
    folder = tmp_path_factory.mktemp("gemma")
    write_gemma(folder, weights_folder)
    return tinyllm.load(folder)


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


@pytest.mark.parametrize("name", CHATS)
def test_ids_pixels_and_logits_are_the_references(name: str, gemma: LM) -> None:
    prompt = prompt_of(gemma, name)
    with np.load(GOLDEN) as golden:
        assert prompt.tokens.tolist() == golden[f"gemma/{name}/ids"].tolist()
        got = logits_of(gemma, prompt)[-12:, ::97]
        assert np.abs(got - golden[f"gemma/{name}/logits"]).max() <= 1e-4
        if sizes := CHATS[name][1]:
            pixels = ImageProcessor.from_folder(gemma.folder)(picture(*sizes[-1]))
            gap = np.abs(pixels[:, ::5, ::5] - golden[f"gemma/{name}/pixels"]).max()
            assert gap <= 2 / 255 + 1e-6  # one grey level


@pytest.mark.reference
@pytest.mark.parametrize("name", CHATS)
def test_all_logits_are_the_live_references(name: str, gemma: LM) -> None:
    from tests.golden.make_seeing import gemma_inputs, gemma_logits

    inputs = gemma_inputs(gemma.folder, *CHATS[name])
    prompt = prompt_of(gemma, name)
    assert prompt.tokens.tolist() == inputs["input_ids"][0].tolist()
    assert np.abs(logits_of(gemma, prompt) - gemma_logits(gemma.folder, inputs)).max() <= 1e-4


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
