"""What must hold for stepping, a test a line, for text and for image prompts, tiny and real.

The files beside this one go into each; here is the list itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinyllm
from tests.tiny import CONFIG, bytes_tokenizer, tiny_model
from tinyllm.decode import Session, decode_steps, generate
from tinyllm.inside.hooks import Conditions, HookContext, HookSet, make_hooks, make_tap
from tinyllm.inside.replay import run_with_cache
from tinyllm.inside.trace_file import read_trace
from tinyllm.kv_cache import KVCache
from tinyllm.lm import LM
from tinyllm.model import Model
from tinyllm.runner import Array
from tinyllm.sampler import SamplingParams

Make = Callable[..., Session]
TINY = tiny_model()
PROMPT = list(b"What is the capital of France?")
IMAGE_AT = np.array([3, 4, 5, 9])
IMAGE_ROWS = np.random.default_rng(4).standard_normal((4, CONFIG.dim)).astype(np.float32)
SAMPLED: dict[str, Any] = {"temperature": 0.9, "top_k": 50, "top_p": 0.95, "seed": 5}


@pytest.fixture(scope="module")
def lm(weights_folder: Path) -> LM:
    return tinyllm.load(weights_folder)


REAL = pytest.param("the real model", marks=pytest.mark.long)


@pytest.fixture(params=["text", "images", REAL])
def make(request: pytest.FixtureRequest) -> Make:
    """Opens sessions: make(hooks=…, **sampling)."""
    return maker(request)


@pytest.fixture(params=["text", "images"])
def make_tiny(request: pytest.FixtureRequest) -> Make:
    """The same without the real model."""
    return maker(request)


def maker(request: pytest.FixtureRequest) -> Make:
    if request.param == "the real model":
        real: LM = request.getfixturevalue("lm")
        ids = real.encode_prompt([{"role": "user", "content": "What is the capital of France?"}])
        images: dict[str, Any] = {}
        model, tokenizer = real.model, real.tokenizer
    else:
        ids, model, tokenizer = PROMPT, TINY, bytes_tokenizer()
        images = {"image_positions": IMAGE_AT, "image_rows": IMAGE_ROWS}
        images = images if request.param == "images" else {}

    def open_session(hooks: HookSet | None = None, **sampling: Any) -> Session:
        params = SamplingParams(**{**SAMPLED, **sampling})
        return Session(model, tokenizer, ids, params, capacity=len(ids) + 40, hooks=hooks, **images)

    return open_session


def logits_at_once(session: Session, chunk: int = 1000, hooks: HookSet | None = None) -> Array:
    """All logits of a session's tokens from one forward without its cache, or from chunks."""

    model = session.runner
    assert isinstance(model, Model)
    cache = model.new_cache(len(session.tokens))
    tap = make_tap(model, cache, Conditions(hooks.active if hooks else ()), len(session.prompt))
    return model.prefill(
        session.tokens, cache, logits="all", chunk=chunk, tap=tap,
        image_positions=session.image_positions, image_rows=session.image_rows,
    )  # fmt: skip


def same_steps(ours: Session, theirs: Session) -> None:
    assert [(s.token, s.logprob, s.chosen_by, s.text_delta) for s in ours.steps] == [
        (s.token, s.logprob, s.chosen_by, s.text_delta) for s in theirs.steps
    ]
    for a, b in zip(ours.steps, theirs.steps, strict=True):
        np.testing.assert_array_equal(a.logits, b.logits)
    np.testing.assert_array_equal(ours.peek().logits, theirs.peek().logits)


def test_step_equals_generate(make: Make) -> None:
    for sampling in (SAMPLED, {"temperature": 0.0}):
        steps = list(decode_steps(make(**sampling), 5))
        whole = generate(make(**sampling), 5)
        assert [s.token for s in steps][: len(whole.tokens)] == whole.tokens
        assert [s.logprob for s in steps][: len(whole.tokens)] == whole.logprobs


@pytest.mark.parametrize("hooked", [False, True])
def test_cached_equals_uncached_chunked_prefill_too_and_under_hooks(
    make: Make, hooked: bool
) -> None:
    def lean(act: Array, *, hook: HookContext) -> Array:
        return act * np.float32(0.5)

    hooks = HookSet()
    config = make().runner.config
    pairs = make_hooks(config, [("blocks.1.hook_mlp_out", lean)], "generated")
    with hooks.set(pairs if hooked else []):
        session = make(hooks=hooks)
        for _ in range(4):
            session.step()
        session.peek()
        cached = [s.logits for s in session.steps]
        for chunk in (1000, 7):
            whole = logits_at_once(session, chunk, hooks)
            rows = whole[len(session.prompt) - 1 : -1]
            np.testing.assert_allclose(cached, rows, atol=1e-4)
    if hooked:  # and the hook did something
        unhooked = logits_at_once(session)[len(session.prompt) : -1]
        assert np.abs(unhooked - cached[1:]).max() > 1e-3


@pytest.mark.parametrize("dtype", [pytest.param("f32", marks=pytest.mark.long), "q8"])
def test_the_readable_path_is_about_the_compiled_path(
    lm: LM, weights_folder: Path, dtype: Any
) -> None:
    fast = tinyllm.load(weights_folder, dtype=dtype, backend="compiled", kv_cache_mb=64)
    ours = lm.session("The capital of France is", temperature=0)
    theirs = fast.session("The capital of France is", temperature=0)
    for _ in range(4):
        token = ours.step().token
        theirs.step(token=token)
    for a, b in zip(ours.steps, theirs.steps, strict=True):
        gap = float(np.abs(a.logits - b.logits).max())
        assert gap < (1e-3 if dtype == "f32" else 3.0)
        assert int(np.argmax(b.logits)) == a.token
    assert theirs.steps[-1].replay_error < (1e-3 if dtype == "f32" else 3.0)


def test_rewind_and_step_equal_a_fresh_run(make: Make) -> None:
    session, fresh = make(), make()
    forced = session.prompt[0]
    for token in (None, None, forced, None, None):
        session.step(token=token)
    session.rewind(4)
    session.step(), session.step(token=forced), session.step()
    for token in (None, None, forced, None):
        fresh.step(token=token)
    same_steps(session, fresh)


def test_forks_do_not_touch_each_other(make: Make) -> None:
    session = make()
    session.step(), session.step()
    twin, third = session.fork(), session.fork()
    session.step(token=session.prompt[0]), session.step()
    twin.rewind(1), twin.step(), twin.step()
    third.cache.truncate(3)  # even if one's memory is trampled on
    fresh, other = make(), make()
    fresh.step(), fresh.step(), fresh.step()
    other.step(), other.step(), other.step(token=session.prompt[0]), other.step()
    same_steps(twin, fresh)
    same_steps(session, other)


def test_the_lenss_last_row_is_the_logits(make: Make) -> None:
    session = make()
    for step in (session.step(), session.step()):
        lens = step.logit_lens(k=3)
        np.testing.assert_allclose(lens.logits[-1], step.logits, atol=1e-4)
        assert lens.rows[-1].rank == step.choice.candidate(step.token).rank


def test_patterns_are_causal_and_their_rows_sum_to_1(make: Make) -> None:
    session = make()
    session.step()
    model = session.runner
    assert isinstance(model, Model)
    _, acts = run_with_cache(
        model, session.tokens, "*.attn.hook_pattern", image_positions=session.image_positions,
        image_rows=session.image_rows,
    )  # fmt: skip
    assert len(acts) == model.config.n_layers
    for pattern in acts.values():
        assert not np.triu(pattern, 1).any()
        np.testing.assert_allclose(pattern.sum(-1), 1, atol=1e-5)
    step = session.step()
    for head in range(model.config.n_heads):
        assert step.attention(0, head).sum() == pytest.approx(1, abs=1e-5)


def test_the_replay_error_is_reported_and_at_most_1e_4(make: Make) -> None:
    session = make()
    for step in [session.step() for _ in range(4)]:
        gap = np.abs(step.replay.logits - step.logits).max()
        assert step.replay_error == gap <= 1e-4
    step.kept_logits[0] = step.logits + np.float32(0.25)  # it would be seen
    session._choice = None
    assert step.replay_error == pytest.approx(0.25, abs=1e-3)


def test_json_round_trips(make: Make) -> None:
    session = make()
    session.step(), session.step(token=session.prompt[0]), session.step()
    trace = session.trace(candidates=4, lens=2, attention=(1, [0, 1]))
    assert read_trace(trace.to_json()) == trace
    assert json.loads(json.dumps(trace.to_dict())) == json.loads(trace.to_json())
    assert [s.token for s in trace.steps] == [s.token for s in session.steps]


# -- and of how it is done -----------------------------------------------------------------------


def test_a_replay_leaves_the_session_as_it_was(make_tiny: Make) -> None:
    """It runs over the session's own cache, lent for so long."""
    session, fresh = make_tiny(), make_tiny()
    steps = [session.step() for _ in range(4)]
    session.peek()
    assert isinstance(session.cache, KVCache)
    before = session.cache._k.copy(), session.cache._v.copy(), session.cache.length
    for step in (steps[0], steps[2], steps[3]):
        _ = step.replay
    np.testing.assert_array_equal(session.cache._k, before[0])
    np.testing.assert_array_equal(session.cache._v, before[1])
    assert session.cache.length == before[2]
    for _ in range(4):
        fresh.step()
    same_steps(session, fresh)


def test_a_replay_that_fails_leaves_the_session_as_it_was(make_tiny: Make) -> None:
    hooks = HookSet()
    fail = False

    def sometimes(act: Array, *, hook: HookContext) -> None:
        if fail:
            raise RuntimeError

    config = make_tiny().runner.config
    with hooks.set(make_hooks(config, [("blocks.1.hook_mlp_out", sometimes)])):
        session, fresh = make_tiny(hooks=hooks), make_tiny(hooks=hooks)
        steps = [session.step() for _ in range(3)]
        fail = True
        with pytest.raises(RuntimeError):
            _ = steps[1].replay
        fail = False
        session.step()
        for _ in range(4):
            fresh.step()
        same_steps(session, fresh)
        assert steps[1].replay_error <= 1e-4
