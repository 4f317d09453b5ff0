"""The causal map against the same ablations by hooks, part by part."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.test_what_must_hold import IMAGE_AT, IMAGE_ROWS
from tests.tiny import CONFIG, bytes_tokenizer, tiny_model
from tinyllm.decode import Session
from tinyllm.inside.hooks import Conditions, HookContext, HookSet, make_hooks
from tinyllm.inside.replay import run_with_cache
from tinyllm.runner import Array
from tinyllm.sampler import SamplingParams, log_normalizer

MODEL = tiny_model()
PROMPT = list(b"The cat sat on the mat")
LAST_IMAGE = np.append(IMAGE_AT[:3], len(PROMPT) - 1)


def open_session(hooks: HookSet | None = None, **images: Any) -> Session:
    params = SamplingParams(temperature=0.9, seed=2)
    return Session(MODEL, bytes_tokenizer(), PROMPT, params, hooks=hooks, **images)


def by_hooks(session: Session, index: int, name: str, head: int | None = None) -> float:
    """The token's log-probability with a part set to zero at the position before it."""
    step = session.steps[index]

    def zero(act: Array, *, hook: HookContext) -> Array:
        out = act.copy()
        if head is None:
            out[:] = 0
        else:
            out[:, head] = 0
        return out

    hooks = make_hooks(CONFIG, [(name, zero)], [step.position - 1])
    logits, _ = run_with_cache(
        MODEL, step.tokens_before, (), under=Conditions(tuple(hooks)),
        image_positions=session.image_positions, image_rows=session.image_rows,
    )  # fmt: skip
    return float(logits[-1][step.token]) - log_normalizer(logits[-1].astype(np.float32))


@pytest.mark.parametrize(
    "images",
    [
        {},
        {"image_positions": IMAGE_AT, "image_rows": IMAGE_ROWS},
        {"image_positions": LAST_IMAGE, "image_rows": IMAGE_ROWS},  # the newest "token" is one
    ],
)
def test_every_effect_is_that_of_a_hook(images: dict[str, Any]) -> None:
    session = open_session(**images)
    for _ in range(3):
        session.step()
    for index in (0, 2):
        causal = session.steps[index].causal_map(layer=1)
        assert causal.logprob == pytest.approx(session.steps[index].logprob, abs=1e-5)
        for layer in range(CONFIG.n_layers):
            attn = causal.logprob - by_hooks(session, index, f"blocks.{layer}.hook_attn_out")
            mlp = causal.logprob - by_hooks(session, index, f"blocks.{layer}.hook_mlp_out")
            assert causal.attn[layer] == pytest.approx(attn, abs=1e-4)
            assert causal.mlp[layer] == pytest.approx(mlp, abs=1e-4)
        for head in range(CONFIG.n_heads):
            effect = causal.logprob - by_hooks(session, index, "blocks.1.attn.hook_z", head)
            assert causal.heads[head] == pytest.approx(effect, abs=1e-4)
        np.testing.assert_allclose(causal.pattern[2], session.steps[index].attention(1, 2))
        assert len(causal.tokens) == session.steps[index].position


def test_the_layer_whose_attention_matters_most_is_taken_apart() -> None:
    step = open_session().step()
    causal = step.causal_map()
    assert causal.layer == int(np.abs(causal.attn).argmax())
    assert step.causal_map(layer=-1).layer == CONFIG.n_layers - 1
    with pytest.raises(ValueError, match="layer must be from 0 to 2"):
        step.causal_map(layer=3)
    name, effect = causal.top(1)[0]
    everything = np.concatenate([causal.attn, causal.mlp])
    assert abs(effect) == pytest.approx(np.abs(everything).max())
    assert name in repr(causal)


def test_it_is_asked_under_the_steps_own_hooks() -> None:
    """What a hook has silenced already has no effect left to lose."""

    def silence(act: Array, *, hook: HookContext) -> Array:
        return np.zeros_like(act)

    hooks = HookSet()
    with hooks.set(make_hooks(CONFIG, [("blocks.1.hook_mlp_out", silence)])):
        step = open_session(hooks).step()
    causal = step.causal_map()
    assert causal.mlp[1] == 0
    assert causal.logprob == pytest.approx(step.logprob, abs=1e-5)


def test_it_leaves_the_session_as_it_was() -> None:
    session, fresh = open_session(), open_session()
    for _ in range(3):
        session.step(), fresh.step()
    session.steps[1].causal_map()
    np.testing.assert_array_equal(session.peek().logits, fresh.peek().logits)
    np.testing.assert_array_equal(session.steps[2].cache.v(2), fresh.steps[2].cache.v(2))
