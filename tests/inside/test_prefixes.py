"""Caches of texts that were looked at: the same bits, however a text came to be known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.tiny import CONFIG, tiny_model
from tinyllm.errors import CacheFull
from tinyllm.inside.prefixes import PREFIX_BLOCK, Prefixes
from tinyllm.prompt import Prompt

MODEL = tiny_model()
TEXT = np.random.default_rng(1).integers(0, 256, CONFIG.max_seq_len).astype(np.int32)


def rows(prefixes: Prefixes, tokens: NDArray[np.int32], length: int) -> list[NDArray[np.float32]]:
    with prefixes.before(Prompt(tokens), length) as cache:
        assert cache.length == length and cache.capacity > length
        layers = range(CONFIG.n_layers)
        return [np.stack([cache.keys(i), cache.values(i)]).copy() for i in layers]


@pytest.mark.parametrize(
    "length", [0, 1, PREFIX_BLOCK - 1, PREFIX_BLOCK, PREFIX_BLOCK + 1, 3 * PREFIX_BLOCK, 511]
)
def test_a_warm_cache_has_the_same_bits_as_a_cold_one(length: int) -> None:
    cold = rows(Prefixes(MODEL), TEXT, length)
    warm = Prefixes(MODEL)
    for other in (500, 7, 3 * PREFIX_BLOCK, length):  # longer, shorter, at a block's edge
        rows(warm, TEXT, other)
    forked = TEXT.copy()
    forked[length:] = 9
    rows(warm, forked, min(length + 5, 511))
    for a, b in zip(cold, rows(warm, TEXT, length), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_rows_are_those_of_a_plain_prefill() -> None:
    cache = MODEL.new_cache(200)
    MODEL.prefill(TEXT[:200], cache)
    for i, got in enumerate(rows(Prefixes(MODEL), TEXT, 200)):
        np.testing.assert_allclose(got[0], cache.keys(i), atol=1e-4)


def test_what_is_kept_is_bounded_and_known_text_costs_nothing() -> None:
    room = 3 * PREFIX_BLOCK
    prefixes = Prefixes(MODEL, max_bytes=room * MODEL.new_cache(1).token_nbytes)
    computed = []
    for first in range(6):
        text = np.full(100, first, np.int32)
        for _ in range(2):
            with prefixes.before(Prompt(text), 100, lambda: computed.append(1)):
                assert prefixes.n_tokens <= room
    assert len(computed) == 6 * 2  # two blocks a text, once


def test_a_text_that_grows_takes_its_cache_along() -> None:
    prefixes = Prefixes(MODEL)
    for length in range(1, 300, 7):
        rows(prefixes, TEXT, length)
    assert prefixes.n_tokens == 5 * PREFIX_BLOCK


def test_the_row_behind_is_put_back() -> None:
    prefixes = Prefixes(MODEL)
    whole = rows(prefixes, TEXT, 100)
    with prefixes.before(Prompt(TEXT), 50) as cache:
        MODEL.forward([3], cache)
    for a, b in zip(whole, rows(prefixes, TEXT, 100), strict=True):
        np.testing.assert_array_equal(a, b)


def test_image_rows_make_it_another_text() -> None:
    def shown(seed: int) -> Prompt:
        row = np.random.default_rng(seed).normal(size=(2, CONFIG.dim)).astype(np.float32)
        keys = np.array([-1 - seed, -100 - seed])
        return Prompt(TEXT[:90], np.array([70, 71]), row, keys)

    prefixes = Prefixes(MODEL)
    for prompt in (shown(1), shown(2), Prompt(TEXT[:90]), shown(1)):
        with prefixes.before(prompt, 80) as warm, Prefixes(MODEL).before(prompt, 80) as cold:
            np.testing.assert_array_equal(warm.keys(2), cold.keys(2))


def test_beyond_the_context() -> None:
    with pytest.raises(CacheFull, match="512"), Prefixes(MODEL).before(Prompt(TEXT), 512):
        pass


def test_giving_up_leaves_what_was_known() -> None:
    def stop() -> None:
        raise KeyError("gone")

    prefixes = Prefixes(MODEL)
    with pytest.raises(KeyError), prefixes.before(Prompt(TEXT), 100, stop):
        pass
    assert len(rows(prefixes, TEXT, 100)) == CONFIG.n_layers
