"""Compiled products in a readable forward: the readable model's numbers, and a lens of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.tiny import CONFIG
from tinyllm.inside.many_rows import ManyRows
from tinyllm.inside.replay import replay_token
from tinyllm.model import Model
from tinyllm.weights import expected_shapes

# Widths in sixteens, so that the kernel does them; a vocabulary that four don't divide.
WIDE = replace(CONFIG, dim=32, hidden_dim=64, n_heads=4, n_kv_heads=2, head_dim=16)


def wide_model() -> Model:
    rng = np.random.default_rng(0)
    weights = {
        name: (np.ones(shape) if len(shape) == 1 else 0.2 * rng.standard_normal(shape)).astype("f4")
        for name, shape in expected_shapes(WIDE).items()
    }
    return Model(WIDE, weights)


@pytest.fixture(scope="module")
def model() -> Model:
    return wide_model()


def test_a_forward_is_the_models_own(model: Model) -> None:
    tokens = list(range(30))
    ours = ManyRows(model).forward(tokens, model.new_cache(30))
    np.testing.assert_allclose(ours, model.forward(tokens, model.new_cache(30)), atol=2e-5)


def test_a_lens_is_each_depths_stream_unembedded(model: Model) -> None:
    cache = model.new_cache(9)
    model.forward(list(range(8)), cache)
    replay = replay_token(model, 8, cache)
    assert replay.lens_logits.shape == (WIDE.n_layers + 1, WIDE.vocab_size)
    for depth, stream in enumerate(replay.hidden_states):
        one = model.unembed(model.norm("model.norm", stream[None]))[0]
        np.testing.assert_allclose(replay.lens_logits[depth], one, atol=2e-5)
    np.testing.assert_allclose(replay.lens_logits[-1], replay.logits, atol=2e-5)
