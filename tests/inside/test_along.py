"""Attention and lens along a session's tokens are what each of its steps says of itself."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from tests.tiny import CONFIG, bytes_tokenizer, tiny_model
from tinyllm.decode import Session
from tinyllm.errors import HookError
from tinyllm.inside.hooks import HookSet, make_hooks
from tinyllm.inside.replay import LargeActivations
from tinyllm.sampler import SamplingParams

MODEL = tiny_model()
PROMPT = list(b"Once upon")


def open_session(**more: Any) -> Session:
    session = Session(MODEL, bytes_tokenizer(), PROMPT, SamplingParams(seed=2), **more)
    session.run(5)
    return session


def test_each_position_is_what_its_step_saw() -> None:
    session = open_session()
    n = len(session.tokens)
    whole = session.attention(1)
    assert whole.shape == (CONFIG.n_heads, n, n)
    np.testing.assert_allclose(whole.sum(axis=-1), 1, atol=1e-5)
    assert not np.triu(whole[2], 1).any()
    lens = session.logit_lens()
    assert lens.shape == (CONFIG.n_layers + 1, n, CONFIG.vocab_size)
    for step in session.steps:
        newest = step.position - 1  # where the step's logits were computed
        np.testing.assert_allclose(
            whole[4, newest, : step.position], step.attention(1, 4), atol=1e-5
        )
        np.testing.assert_allclose(lens[:, newest], step.logit_lens().logits, atol=1e-4)
        np.testing.assert_allclose(lens[-1, newest], step.logits, atol=1e-4)


@pytest.mark.parametrize(
    ("where", "same"),
    [(range(2, 5), [2, 3, 4]), (slice(-3, None), [11, 12, 13]), ([-1, 0], [13, 0]), (7, [7]),
     (np.array([4, 5]), [4, 5]), ([], [])],
)  # fmt: skip
def test_positions_of_every_kind(where: Any, same: list[int]) -> None:
    session = open_session()
    assert np.array_equal(session.attention(-1, where), session.attention(2)[:, same])
    some = session.logit_lens(where, layers=[0, -1])
    np.testing.assert_allclose(some, session.logit_lens()[[0, -1]][:, same], atol=1e-5)


@pytest.mark.parametrize("where", [[14], range(13, 15), [-15], [1.0], ["a"]])
def test_a_position_that_isnt_there(where: Any) -> None:
    with pytest.raises(ValueError, match="position must be from 0 to 13"):
        open_session().attention(0, where)
    with pytest.raises(ValueError, match="layer must be from 0 to 2"):
        open_session().attention(3)
    with pytest.raises(ValueError, match="layer must be from 0 to 3"):
        open_session().logit_lens(layers=[4])


def test_hooks_count_and_mixtures_are_refused() -> None:
    hooks = HookSet()

    def silence(act: Any, *, hook: Any) -> Any:
        return np.zeros_like(act)

    some = make_hooks(CONFIG, [("blocks.0.hook_mlp_out", silence)], positions="generated")
    with hooks.set(some):
        session = open_session(hooks=hooks)
        step = session.steps[-1]
        lens = session.logit_lens([step.position - 1])
        np.testing.assert_allclose(lens[:, 0], step.logit_lens().logits, atol=1e-4)
    session.step()
    with pytest.raises(HookError, match="no one forward over all of them"):
        session.attention(0)


def test_a_large_array_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    session = open_session()
    monkeypatch.setattr("tinyllm.inside.along.LARGE_BYTES", 4 * 4 * 3 * 257)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        session.logit_lens(range(3))
    with pytest.warns(LargeActivations, match="4 depths at 4 positions"):
        session.logit_lens(range(4))
