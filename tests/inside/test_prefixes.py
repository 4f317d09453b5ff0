"""Caches of texts that were looked at: the same bits, however a text came to be known."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.tiny import CONFIG, tiny_model
from tinyllm.errors import CacheFull
from tinyllm.inside.prefixes import PREFIX_BLOCK, Prefixes
from tinyllm.model import Model
from tinyllm.prompt import Prompt
from tinyllm.weights import expected_shapes

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


def test_with_compiled_products_too() -> None:
    """A model of widths that they do: near a plain prefill, and the same bits warm and cold."""
    config = replace(CONFIG, dim=32, hidden_dim=64, n_heads=4, n_kv_heads=2, head_dim=16)
    rng = np.random.default_rng(0)
    weights = {
        name: (np.ones(shape) if len(shape) == 1 else 0.2 * rng.standard_normal(shape)).astype("f4")
        for name, shape in expected_shapes(config).items()
    }
    model = Model(config, weights)
    plain = model.new_cache(130)
    model.prefill(TEXT[:130], plain)
    warm = Prefixes(model)
    with warm.before(Prompt(TEXT), 50), warm.before(Prompt(TEXT[::-1].copy()), 20):
        pass
    with warm.before(Prompt(TEXT), 130) as a, Prefixes(model).before(Prompt(TEXT), 130) as b:
        for layer in range(config.n_layers):
            np.testing.assert_array_equal(a.keys(layer), b.keys(layer))
            np.testing.assert_array_equal(a.values(layer), b.values(layer))
            np.testing.assert_allclose(a.keys(layer), plain.keys(layer), atol=1e-4)


def test_what_is_kept_is_bounded_and_known_text_costs_nothing() -> None:
    room = 3 * PREFIX_BLOCK
    prefixes = Prefixes(MODEL, max_bytes=room * MODEL.new_cache(1).token_nbytes)
    computed = []
    length = 2 * PREFIX_BLOCK - 10
    for first in range(6):
        text = np.full(length, first, np.int32)
        for _ in range(2):
            with prefixes.before(Prompt(text), length, lambda: computed.append(1)):
                assert prefixes.n_tokens <= room
    assert len(computed) == 6 * 2  # two blocks a text, once


def test_a_text_that_grows_takes_its_cache_along() -> None:
    prefixes = Prefixes(MODEL)
    for length in range(1, 300, 7):
        rows(prefixes, TEXT, length)
    assert prefixes.n_tokens == -(-300 // PREFIX_BLOCK) * PREFIX_BLOCK


def test_what_comes_behind_is_known_to_the_blocks_end() -> None:
    prefixes, computed = Prefixes(MODEL), []
    for length in range(3 * PREFIX_BLOCK):
        with prefixes.before(Prompt(TEXT), length, lambda: computed.append(1)):
            pass
    assert len(computed) == 3


def test_threads_share_what_is_computed_and_get_the_same_bits() -> None:
    n, lengths = PREFIX_BLOCK, [5, 70, 130, 131, 200, 64, 90, 199]
    texts = [TEXT, np.concatenate([TEXT[: 2 * n + 3], TEXT[::-1]])[: len(TEXT)], TEXT[::-1].copy()]
    asked = [(text, length) for length in lengths for text in texts]
    expected = [rows(Prefixes(MODEL), text, length) for text, length in asked]
    prefixes = Prefixes(MODEL, max_bytes=12 * n * MODEL.new_cache(1).token_nbytes)
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            found = pool.map(lambda one: rows(prefixes, *one), asked)
            for got, right in zip(found, expected, strict=True):
                np.testing.assert_array_equal(np.stack(got), np.stack(right))
        rows(prefixes, TEXT, 5)
    assert prefixes.n_tokens <= 12 * n


CONTROL = 250


def conversation(first: int, rest: int, n: int = 150) -> NDArray[np.int32]:
    """A first message of so many tokens, and something else behind it."""
    text = np.random.default_rng(rest).integers(0, 200, n).astype(np.int32)
    text[:first] = TEXT[:first] % 200
    text[first] = CONTROL
    return text


@pytest.mark.parametrize("first", [3, 15, 16, 20, PREFIX_BLOCK - 1, PREFIX_BLOCK, 50])
def test_a_first_message_is_computed_once_for_all_conversations(first: int) -> None:
    prefixes, computed = Prefixes(MODEL, [CONTROL]), []
    length = 2 * PREFIX_BLOCK - 1
    for rest in range(4):
        text = Prompt(conversation(first, rest))
        with prefixes.before(text, length, lambda: computed.append(1)):
            pass
    alone = 16 <= first < PREFIX_BLOCK  # it is a block by itself
    each = 1 + -(-(length - (first if alone else PREFIX_BLOCK)) // PREFIX_BLOCK)
    shared = alone or first >= PREFIX_BLOCK
    assert len(computed) == each + 3 * (each - shared)


@pytest.mark.parametrize("first", [15, 16, 20, 39, 50])
@pytest.mark.parametrize("length", [0, 1, 15, 16, 17, 20, 21, 39, 40, 60, 61, 100, 149])
def test_the_same_bits_wherever_the_first_message_ends(first: int, length: int) -> None:
    text = conversation(first, 1)
    cold = rows(Prefixes(MODEL, [CONTROL]), text[: length + 1], length)
    warm = Prefixes(MODEL, [CONTROL])
    for other in (text[:12], text[:25], conversation(first, 2), conversation(18, 1), text):
        rows(warm, other, min(len(other) - 1, 90))
    for a, b in zip(cold, rows(warm, text, length), strict=True):
        np.testing.assert_array_equal(a, b)


def test_two_threads_with_one_text_compute_it_once() -> None:
    prefixes, computed, both = Prefixes(MODEL), [], threading.Barrier(2)

    def ask(length: int) -> None:
        both.wait()
        with prefixes.before(Prompt(TEXT), length, lambda: computed.append(1)):
            pass

    threads = [threading.Thread(target=ask, args=(3 * PREFIX_BLOCK - i,)) for i in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(computed) == 3


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


@pytest.mark.parametrize("at", [0, 10, 30, 39, 75])
@pytest.mark.parametrize("n_rows", [1, 12, 60])  # more than a block has
def test_no_block_parts_an_image_whose_rows_see_each_other(at: int, n_rows: int) -> None:
    model = Model(replace(CONFIG, images_see_ahead=True), MODEL.weights)
    rng = np.random.default_rng(at)
    where = np.arange(at, at + n_rows)
    image = rng.normal(size=(n_rows, CONFIG.dim)).astype(np.float32)
    prompt = Prompt(TEXT[:190], where, image, -1 - where)
    plain = model.new_cache(190)
    model.forward(TEXT[:190], plain, image_positions=where, image_rows=image, logits="none")
    warm = Prefixes(model)
    for length in (180, at + 1, at + n_rows // 2, at + n_rows, 189, 40, 100):
        with warm.before(prompt, length) as a, Prefixes(model).before(prompt, length) as b:
            for layer in range(CONFIG.n_layers):
                np.testing.assert_array_equal(a.keys(layer), b.keys(layer))
                np.testing.assert_allclose(a.values(layer), plain.values(layer)[:length], atol=1e-4)


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
