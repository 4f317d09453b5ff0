"""Texts under a broken part: a session's own numbers, however the text came to be known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.tiny import CONFIG, bytes_tokenizer, tiny_model
from tinyllm.decode import Session
from tinyllm.inside import broken_texts
from tinyllm.inside.broken_texts import BrokenTexts
from tinyllm.inside.lab import break_it, possible
from tinyllm.model import Model
from tinyllm.prompt import Prompt
from tinyllm.sampler import SamplingParams

MODEL = tiny_model()
TEXT = [int(t) for t in np.random.default_rng(4).integers(0, 256, 60)]
PROMPT = 40


def rows(texts: BrokenTexts, name: str, tokens: list[int], length: int) -> NDArray[np.float32]:
    with texts.before(
        break_it(name), Prompt(np.array(tokens, np.int32)), min(PROMPT, length + 1), length
    ) as cache:
        assert cache.length == length and cache.capacity > length
        return np.stack(
            [np.stack([cache.keys(i), cache.values(i)]) for i in range(CONFIG.n_layers)]
        )


@pytest.mark.parametrize("name", possible(CONFIG))
def test_it_is_what_a_session_with_that_part_broken_has(name: str) -> None:
    session = Session(
        MODEL, bytes_tokenizer(), TEXT[:PROMPT], SamplingParams(seed=0), broken=(break_it(name),)
    )
    for token in TEXT[PROMPT:55]:
        session.step(token, beyond_end=True)
    session.peek()
    expected = np.stack(
        [np.stack([session.cache.keys(i), session.cache.values(i)])[:, :55]
         for i in range(CONFIG.n_layers)]
    )  # fmt: skip
    np.testing.assert_array_equal(rows(BrokenTexts(MODEL), name, TEXT, 55), expected)


def test_no_call_parts_an_image_whose_rows_see_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(replace(CONFIG, images_see_ahead=True), MODEL.weights)
    where = np.arange(30, 46)
    image = np.random.default_rng(0).normal(size=(16, CONFIG.dim)).astype(np.float32)
    prompt = Prompt(np.array(TEXT, np.int32), where, image, -1 - where)
    kept = []
    for chunk in (60, 40):
        monkeypatch.setattr(broken_texts, "PREFILL_CHUNK", chunk)
        with BrokenTexts(model).before(break_it("rope-pairing"), prompt, 55, 54) as cache:
            kept.append(cache.values(CONFIG.n_layers - 1).copy())
    np.testing.assert_allclose(kept[1], kept[0], atol=1e-4)


def test_the_same_bits_cold_warm_and_behind_a_fork() -> None:
    warm = BrokenTexts(MODEL)
    rows(warm, "causal-mask", TEXT, 58)
    rows(warm, "causal-mask", [*TEXT[:45], 7, 7, 7, 7], 47)
    rows(warm, "rope-pairing", TEXT, 50)
    for length in (PROMPT - 1, 44, 52):
        cold = rows(BrokenTexts(MODEL), "causal-mask", TEXT, length)
        np.testing.assert_array_equal(rows(warm, "causal-mask", TEXT, length), cold)


def test_what_is_kept_is_bounded_and_known_text_costs_nothing() -> None:
    room = 300 * MODEL.new_cache(1).token_nbytes
    texts, runs = BrokenTexts(MODEL, max_bytes=room), []
    for first in range(5):
        tokens = [first, *TEXT]
        for _ in range(2):
            with texts.before(
                break_it("layer-norm"),
                Prompt(np.array(tokens, np.int32)),
                PROMPT,
                45,
                lambda: runs.append(1),
            ):
                assert texts._nbytes() <= room
    assert len(runs) == 5 * (1 + 6)  # the prompt and six tokens behind it, once a text
