"""model.py: against loops on small models, against the reference's stored figures on the real one.

"To 1e-5" for the real model is relative to its largest logits (about 40): float32 itself moves them
by some 5e-5 when the same sums are taken in another order. In float64 the same comparisons hold to
1e-9, which is what tells a bug from rounding.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import naive
from tests.golden.logits import first_difference, load_goldens
from tests.llama_folders import LLAMA3_ROPE, small_model
from tinyllm.config import ModelConfig
from tinyllm.decode import Session
from tinyllm.errors import CacheFull
from tinyllm.kernels import reference as ops
from tinyllm.model import Model
from tinyllm.runner import Segment
from tinyllm.sampler import SamplingParams
from tinyllm.tokenizer import Tokenizer
from tinyllm.weights import load_weights

TOKENS = [1, 17, 98, 17, 3, 0, 55, 54, 53, 17, 1, 90]
FAMILY: dict[str, dict[str, Any]] = {
    "grouped heads": {},
    "one KV head": {"num_key_value_heads": 1},
    "as many KV heads": {"num_key_value_heads": 6},
    "untied head": {"tie_word_embeddings": False},
    "tiny heads": {"head_dim": 2},
    "one layer": {"num_hidden_layers": 1},
    "linear rope": {"rope_scaling": {"type": "linear", "factor": 2.0}},
    "llama3 rope": {"rope_scaling": LLAMA3_ROPE},
    "long sums": {
        "intermediate_size": 1100,
        "num_hidden_layers": 1,
    },  # of more than linear()'s LONG_SUM terms
}
GOLDENS = load_goldens()


def whole(model: Model, tokens: list[int], **options: Any) -> Any:
    return model.forward(tokens, model.new_cache(len(tokens)), **options)


# Small models.


@pytest.mark.parametrize("name", FAMILY)
def test_logits_are_the_loops(name: str) -> None:
    model = small_model(**FAMILY[name])
    exact = naive.llama(model.config, model.weights, TOKENS)
    ours = whole(model, TOKENS)
    assert ours.dtype == np.float32
    assert ours.shape == (len(TOKENS), 99)
    np.testing.assert_allclose(ours, exact, rtol=0, atol=3e-5)
    doubled = whole(small_model(dtype=np.float64, **FAMILY[name]), TOKENS)
    assert doubled.dtype == np.float64
    # Only the rotary angles, which are float32 on purpose, are left to differ.
    np.testing.assert_allclose(doubled, exact, rtol=0, atol=3e-6)


@given(st.lists(st.integers(0, 98), min_size=1, max_size=24), st.data())
@settings(max_examples=30)
def test_cached_equals_uncached_and_chunked_equals_whole(tokens: list[int], data: Any) -> None:
    model = small_model()
    expected = whole(model, tokens)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(tokens)), max_size=5)))
    cache = model.new_cache(len(tokens))
    parts = [
        model.forward(tokens[begin:end], cache)
        for begin, end in zip([0, *cuts], [*cuts, len(tokens)], strict=True)
    ]
    np.testing.assert_allclose(np.concatenate(parts), expected, rtol=0, atol=1e-5)
    chunked = model.prefill(
        tokens, model.new_cache(24), logits="all", chunk=data.draw(st.integers(1, 24))
    )
    np.testing.assert_allclose(chunked, expected, rtol=0, atol=1e-5)


@given(st.lists(st.integers(0, 98), min_size=2, max_size=12), st.integers(0, 98))
@settings(max_examples=30)
def test_later_tokens_change_nothing_before_them(tokens: list[int], other: int) -> None:
    model = small_model()
    changed = [*tokens[:-1], other]
    np.testing.assert_array_equal(whole(model, tokens)[:-1], whole(model, changed)[:-1])


def test_which_rows_of_logits() -> None:
    model = small_model()
    rows = whole(model, TOKENS, logits="all")
    last, none = (whole(model, TOKENS, logits=wanted) for wanted in ("last", "none"))
    assert last.shape == (1, 99)
    np.testing.assert_allclose(last, rows[-1:], rtol=0, atol=1e-5)
    assert none.shape == (0, 99)
    for wanted, n_rows in (("all", 12), ("last", 1), ("none", 0)):
        out = model.prefill(TOKENS, model.new_cache(12), logits=wanted, chunk=5)  # type: ignore[arg-type]
        assert out.shape == (n_rows, 99)
        np.testing.assert_allclose(out, rows[len(rows) - n_rows :], rtol=0, atol=1e-5)


def test_no_tokens() -> None:
    model = small_model()
    cache = model.new_cache(4)
    assert model.forward([], cache).shape == (0, 99)
    assert model.prefill([], cache).shape == (0, 99)
    assert cache.length == 0


@pytest.mark.parametrize("bad", [[99], [-1], [3, 2**40], [[1, 2]], 5])
def test_bad_tokens_leave_the_cache_alone(bad: Any) -> None:
    model = small_model()
    cache = model.new_cache(4)
    for run in (model.forward, model.prefill):
        with pytest.raises(ValueError, match=r"vocabulary|one-dimensional"):
            run(bad, cache)
    assert cache.length == 0


def test_tokens_that_do_not_fit_leave_the_cache_alone() -> None:
    model = small_model()
    cache = model.new_cache(5)
    before = model.forward(TOKENS[:3], cache)
    for run in (model.forward, lambda tokens, cache: model.prefill(tokens, cache, chunk=2)):
        with pytest.raises(CacheFull):
            run(TOKENS[:3], cache)
        assert cache.length == 3
    cache.truncate(0)
    np.testing.assert_array_equal(model.forward(TOKENS[:3], cache), before)


def test_a_tap_sees_every_place_and_can_change_it() -> None:
    model = small_model()
    seen: dict[str, list[tuple[int, ...]]] = defaultdict(list)

    def look(name: str, array: Any) -> Any:
        seen[name].append(array.shape)
        return array

    expected = whole(model, TOKENS)
    np.testing.assert_array_equal(whole(model, TOKENS, tap=look), expected)
    t, c = len(TOKENS), model.config
    assert seen["hook_embed"] == [(t, c.dim)]
    assert seen["ln_final.hook_normalized"] == [(t, c.dim)]
    for i in range(c.n_layers):
        assert seen[f"blocks.{i}.attn.hook_q"] == [(t, c.n_heads, c.head_dim)]
        assert seen[f"blocks.{i}.attn.hook_k"] == [(t, c.n_kv_heads, c.head_dim)]
        assert seen[f"blocks.{i}.attn.hook_pattern"] == [(c.n_heads, t, t)]
        assert seen[f"blocks.{i}.attn.hook_z"] == [(t, c.n_heads, c.head_dim)]
        assert seen[f"blocks.{i}.mlp.hook_post"] == [(t, c.hidden_dim)]
        assert seen[f"blocks.{i}.hook_resid_post"] == [(t, c.dim)]
    assert all(len(shapes) == 1 for shapes in seen.values())

    for place in seen:
        changed = whole(
            model, TOKENS, tap=lambda name, a, place=place: a * 0.5 if name == place else a
        )
        assert not np.array_equal(changed, expected), f"{place} is not on the way to the logits"


def test_image_rows_stand_in_for_embeddings() -> None:
    model = small_model()
    other = [5, 6]
    rows = np.asarray(model.weights["model.embed_tokens.weight"])[other]
    image = {"image_positions": np.array([3, 7]), "image_rows": rows}
    expected = whole(model, [*TOKENS[:3], 5, *TOKENS[4:7], 6, *TOKENS[8:]])
    np.testing.assert_array_equal(whole(model, TOKENS, **image), expected)
    for chunk in (1, 4, 5, 100):  # the rows fall into different chunks
        chunked = model.prefill(TOKENS, model.new_cache(12), logits="all", chunk=chunk, **image)
        np.testing.assert_allclose(chunked, expected, rtol=0, atol=1e-5)
    # The embedding table itself is left as it was.
    np.testing.assert_array_equal(whole(model, TOKENS), whole(small_model(), TOKENS))


def test_a_batch_is_its_segments_one_by_one() -> None:
    model = small_model()
    caches = [model.new_cache(20) for _ in range(3)]
    segments = [
        Segment(np.array(TOKENS[:n], np.int32), cache, wanted)
        for n, cache, wanted in zip((4, 1, 7), caches, ("last", "all", "none"), strict=True)  # type: ignore[arg-type]
    ]
    out = model.forward_batch(segments)
    assert [o.shape for o in out] == [(1, 99), (1, 99), (0, 99)]
    assert [cache.length for cache in caches] == [4, 1, 7]
    np.testing.assert_allclose(out[0], whole(model, TOKENS[:4])[-1:], rtol=0, atol=1e-5)


def test_fingerprint_changes_with_the_numbers() -> None:
    same, again = small_model().fingerprint, small_model().fingerprint
    other_weights = small_model(seed=1).fingerprint
    other_theta = small_model(rope_theta=20_000.0).fingerprint
    assert same == again
    assert len({same, other_weights, other_theta}) == 3


def test_weights_are_not_written_to() -> None:
    model = small_model()
    for array in model.weights.values():
        array.flags.writeable = False
    whole(model, TOKENS, image_positions=np.array([0]), image_rows=np.ones((1, 48), np.float32))


# The real model.


@pytest.fixture(scope="module")
def real(weights_folder: Path) -> Model:
    config = ModelConfig.from_folder(weights_folder)
    return Model(config, load_weights(weights_folder, config))


# Four of the six long prompts are left to the live comparison: half of all tokens are theirs.
LONG = ["ledger, 1000 tokens", "diary, 1500 tokens"]
QUICK = [name for name, golden in GOLDENS.items() if len(golden.ids) <= 500 or name in LONG]


def by_length(name: str) -> Any:
    """A prompt to be tried by default, or a long one that `-m long` runs."""
    marks = [pytest.mark.long] if len(GOLDENS[name].ids) > 200 else []
    return pytest.param(name, marks=marks)


def test_there_are_prompts_of_every_length() -> None:
    lengths = [len(GOLDENS[name].ids) for name in QUICK]
    assert len(lengths) >= 20
    assert min(lengths) == 1
    assert 500 in lengths
    assert max(lengths) == 1500


@pytest.mark.parametrize("name", [by_length(name) for name in QUICK])
def test_logits_and_greedy_tokens_are_the_references(name: str, real: Model) -> None:
    """One forward over the prompt and the reference's 64 greedy tokens behind it."""
    golden = GOLDENS[name]
    n_prompt = len(golden.ids)
    parts: list[Any] = []

    def keep(place: str, array: Any) -> Any:
        if place == f"blocks.{real.config.n_layers - 1}.hook_resid_post":
            parts.append(array)
        return array

    ids = [*golden.ids, *golden.greedy[:-1]]
    real.prefill(ids, real.new_cache(len(ids)), logits="none", tap=keep)
    # All positions ran; the head, most of the cost, is only needed where there are figures.
    rows = np.append(golden.positions, np.arange(n_prompt, len(ids)))
    x = np.concatenate(parts)[rows]
    normed = ops.rms_norm(x, real.weights["model.norm.weight"], real.config.norm_eps)
    logits = ops.linear(normed, real.head_weight)  # (positions, then 63 greedy ones, vocab_size)

    n_positions = len(golden.positions)
    ours = np.take_along_axis(logits[:n_positions], golden.columns.astype(int), 1)
    gap = np.abs(ours - golden.logits).max()
    assert gap <= golden.tolerance, f"{gap:.2e} off"
    # The last position is the prompt's, which the first greedy token follows.
    tokens = logits[n_positions - 1 :].argmax(1).tolist()
    wrong = [
        t
        for t, (token, expected) in enumerate(zip(tokens, golden.greedy, strict=True))
        if token != expected and golden.gaps[t] > golden.tolerance
    ]
    assert not wrong


DECODED = [
    "question",
    *(pytest.param(n, marks=pytest.mark.long) for n in ("json", "chinese", "chat, default turn")),
]


@pytest.mark.parametrize("name", DECODED)
def test_greedy_decoding_is_the_references(name: str, real: Model, weights_folder: Path) -> None:
    """The same, token by token through a session."""
    golden = GOLDENS[name]
    tokenizer = Tokenizer.from_folder(weights_folder)
    session = Session(real, tokenizer, golden.ids, SamplingParams(temperature=0.0), capacity=1024)
    tokens = [session.step(beyond_end=True).token for _ in golden.greedy]
    assert first_difference(tokens, golden) is None


@pytest.mark.parametrize("dtype", [np.float32, pytest.param(np.float64, marks=pytest.mark.long)])
def test_real_cached_equals_uncached_and_chunked_equals_whole(dtype: Any, real: Model) -> None:
    if dtype == np.float64:
        weights = {name: array.astype(dtype) for name, array in real.weights.items()}
        model, limit = Model(real.config, weights), 1e-9
    else:
        model, limit = real, 1e-5
    tokens = GOLDENS["code"].ids[:20]
    expected = whole(model, tokens)
    cache = model.new_cache(20)
    one_by_one = np.concatenate([model.forward([t], cache) for t in tokens])
    chunked = model.prefill(tokens, model.new_cache(20), logits="all", chunk=7)
    for other in (one_by_one, chunked):
        assert np.abs(other - expected).max() <= limit * np.abs(expected).max()


def test_the_wrong_rotary_pairing_would_show(real: Model) -> None:
    """GGUF files order the rows of Q and K for interleaved pairs; read as they are, Paris goes."""
    golden = GOLDENS["question"]
    weights = dict(real.weights)
    for name in weights:
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            rows, dim = weights[name].shape
            halves = weights[name].reshape(rows // 64, 2, 32, dim)
            weights[name] = halves.swapaxes(1, 2).reshape(rows, dim).copy()
    wrong = whole(Model(real.config, weights), golden.ids, logits="last")
    right = whole(real, golden.ids, logits="last")
    assert right[0].argmax() == golden.greedy[0]
    assert np.abs(wrong - right).max() > 1.0
