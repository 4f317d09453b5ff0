"""A call that is refused leaves the session as it was: the same tokens, the same next steps."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny import CONFIG, EOS, bytes_tokenizer, tiny_model
from tinyllm.decode import SETTINGS, Session
from tinyllm.errors import CacheFull, HookError, TurnEnded
from tinyllm.inside.hooks import HookSet, make_hooks
from tinyllm.sampler import SamplingParams

MODEL = tiny_model()
PROMPT = list(b"The cat sat")
REFUSED = (ValueError, TypeError, AttributeError, RuntimeError)


def opened(n_steps: int, hooks: HookSet | None = None, capacity: int = 60) -> Session:
    params = SamplingParams(temperature=0.9, top_p=0.95, frequency_penalty=0.4, seed=4)
    session = Session(MODEL, bytes_tokenizer(), PROMPT, params, hooks=hooks, capacity=capacity)
    session.run(n_steps, beyond_end=True)
    return session


def state(session: Session) -> tuple[Any, ...]:
    """All that a session's future hangs on, and a part of that future."""
    twin = session.fork()
    future = [(s.token, s.logprob, s.text_delta) for s in twin.run(3, beyond_end=True)]
    return (
        session.tokens, session.text, session.finished, session.params, session.sampler.seed,
        list(session.sampler.picked), [s.token for s in session.steps], future,
        session.peek().logits.tobytes(),
    )  # fmt: skip


CALLS: dict[str, Callable[[Session], Any]] = {
    "step(1.5)": lambda s: s.step(token=1.5),  # type: ignore[arg-type]
    "step(True)": lambda s: s.step(token=True),
    "step(-1)": lambda s: s.step(token=-1),
    "step(257)": lambda s: s.step(token=257),
    "step(nan)": lambda s: s.step(token=np.float32("nan")),  # type: ignore[arg-type]
    "step(several tokens)": lambda s: s.step(token="ab"),
    "step(no token)": lambda s: s.step(token=""),
    "run(-1)": lambda s: s.run(-1),
    "run(2.5)": lambda s: s.run(2.5),  # type: ignore[arg-type]
    "run(until='')": lambda s: s.run(until=""),
    "rewind(too far)": lambda s: s.rewind(len(s.steps) + 1),
    "rewind(-1)": lambda s: s.rewind(-1),
    "rewind(1.0)": lambda s: s.rewind(1.0),  # type: ignore[arg-type]
    "set(temperature=3)": lambda s: s.set(temperature=3),
    "set(one right, one wrong)": lambda s: s.set(top_k=5, top_p=2),
    "set(unknown)": lambda s: s.set(temprature=1),
    "set(bias beyond)": lambda s: s.set(logit_bias={257: 1.0}),
    "temperature = 2": lambda s: setattr(s, "temperature", 2),
    "steps = []": lambda s: setattr(s, "steps", []),
    "anything = 1": lambda s: setattr(s, "anything", 1),
    "step.token = 3": lambda s: setattr(s.steps[0], "token", 3),
    "explain(unknown)": lambda s: s.peek().explain("nothing"),
    "explain(head)": lambda s: s.steps[0].explain("blocks.0.attn.hook_z", head=99),
    "attention(head)": lambda s: s.peek().attention(0, 99),
    "lens(token)": lambda s: s.peek().logit_lens(token=300),
    "causal_map(layer)": lambda s: s.steps[-1].causal_map(layer=9),
    "trace(head)": lambda s: s.trace(attention=(0, [77])),
    "candidates(-1)": lambda s: s.peek().candidates(-1),
    "cache.k(9)": lambda s: s.steps[-1].cache.k(9),
}


@pytest.mark.parametrize("name", CALLS)
@settings(max_examples=4)
@given(n_steps=st.integers(1, 8))
def test_a_refused_call_leaves_everything(name: str, n_steps: int) -> None:
    session = opened(n_steps)
    before = state(session)
    with pytest.raises(REFUSED):
        CALLS[name](session)
    assert state(session) == before


JUNK = st.sampled_from(
    [None, True, -1, 0, 1, 2, 7, 99, 258, 1.5, float("nan"), float("inf"), "", "x", "ab", "東",
     b"a", [], [1], {}, {"a": 1}, np.float32(2), np.int64(1), np.zeros(3), object(), len]
)  # fmt: skip


def public_calls(session: Session) -> dict[str, Callable[..., Any]]:
    """Every public method of a session, of what comes next, of its newest step and its cache."""
    step = session.steps[-1]
    found: dict[str, Callable[..., Any]] = {}
    for owner in (session, session.peek(), step, step.cache):
        for name in dir(owner):
            method = getattr(type(owner), name, None)
            if not name.startswith("_") and callable(method) and not isinstance(method, type):
                found[f"{type(owner).__name__}.{name}"] = getattr(owner, name)
    return found


ROOM = 400  # a run of 99 steps fits: one that fills the cache keeps what it has written
N_CALLS = len(public_calls(opened(2)))


@settings(max_examples=150)
@given(which=st.integers(0, N_CALLS - 1), data=st.data())
def test_any_public_call_with_anything_changes_nothing_if_it_refuses(
    which: int, data: st.DataObject
) -> None:
    session = opened(2, capacity=ROOM)
    calls = public_calls(session)
    assert len(calls) == N_CALLS > 25
    call = calls[sorted(calls)[which]]
    words = {}
    for one in inspect.signature(call).parameters.values():
        if one.kind is one.VAR_KEYWORD:
            words |= data.draw(st.dictionaries(st.sampled_from(SETTINGS), JUNK, max_size=2))
        elif one.default is one.empty or data.draw(st.booleans()):
            words[one.name] = data.draw(JUNK, label=one.name)
    before = state(session)
    try:
        call(**words)
    except Exception:
        assert state(session) == before


def test_a_full_context_refuses_and_stays_as_it_was() -> None:
    session = opened(0, capacity=len(PROMPT) + 2)
    session.run(3, beyond_end=True)
    tokens, steps = session.tokens, list(session.steps)
    for refused in (session.step, session.peek):
        with pytest.raises(CacheFull):
            refused()
    assert (session.tokens, session.steps) == (tokens, steps)
    session.rewind()
    assert session.step(beyond_end=True).token == tokens[-1]


@pytest.mark.parametrize("name", ["hook_embed", "blocks.1.hook_mlp_out"])
def test_a_hook_that_raises_leaves_no_half_of_a_forward(name: str) -> None:
    hooks = HookSet()
    session = opened(3, hooks)
    before = state(session)

    def breaks(act: Any, *, hook: Any) -> Any:
        raise ZeroDivisionError

    with hooks.set(make_hooks(CONFIG, [(name, breaks)])):
        for refused in (session.step, session.peek):
            with pytest.raises(ZeroDivisionError):
                refused()
    assert state(session) == before
    with (
        hooks.set(make_hooks(CONFIG, [(name, lambda act, *, hook: act[:0])])),
        pytest.raises(HookError),
    ):
        session.step()
    assert state(session) == before


def test_the_end_of_a_turn_stays_reached() -> None:
    session = opened(1)
    session.step(token=EOS, beyond_end=True)
    assert session.finished
    before = state(session)
    with pytest.raises(TurnEnded, match="beyond_end=True"):
        session.step()
    with pytest.raises(TurnEnded):
        session.run(2)
    assert state(session) == before
    session.step(beyond_end=True)
    assert session.finished
    session.rewind(2)
    assert session.finished == (EOS in session.sampler.picked)


def test_parameters_are_changed_from_the_next_step_on() -> None:
    session = opened(2)
    past = [(s.params, s.uniform, [x.n_kept for x in s.stages]) for s in session.steps]
    with pytest.raises(AttributeError, match=r"session\.set\(temperature=…\)"):
        session.temperature = 2  # type: ignore[attr-defined]
    session.set(temperature=0.0, top_k=3)
    step = session.step(beyond_end=True)
    assert (step.chosen_by, step.params.temperature, step.params.top_k) == ("argmax", 0.0, 3)
    assert [(s.params, s.uniform, [x.n_kept for x in s.stages]) for s in session.steps[:2]] == past
    session.set(seed=99, temperature=1.0)
    other = session.step(beyond_end=True)
    assert other.uniform != opened(4).steps[3].uniform
    # Going back gives the parameters that held, and so the same token again.
    session.rewind(2)
    assert session.params.top_k == 3 and session.step(beyond_end=True).token == step.token


def test_run_ends_where_it_is_told_to() -> None:
    assert len(opened(0).run(4, beyond_end=True)) == 4
    session = opened(0)
    steps = session.run(until=lambda step: step.index == 2, beyond_end=True)
    assert [s.index for s in steps] == [0, 1, 2]
    text = "".join(s.text_delta for s in opened(6).steps)
    wanted = text[2:4]
    assert wanted in "".join(s.text_delta for s in opened(0).run(until=wanted, beyond_end=True))
    small = opened(0, capacity=len(PROMPT) + 5)
    assert len(small.run(beyond_end=True)) == 6 and len(small.tokens) == len(PROMPT) + 6


def test_looking_before_choosing_is_looking_after() -> None:
    session = opened(3)
    peeked = session.peek()
    attention, lens = peeked.attention(1, 2), peeked.lens(3)
    assert lens.target == peeked.candidates(1)[0].token
    step = session.step(beyond_end=True)
    np.testing.assert_array_equal(step.attention(1, 2), attention)
    np.testing.assert_array_equal(step.logit_lens(3).logits, lens.logits)
    assert peeked.replay_error < 1e-5


def test_bytes_are_those_of_the_tokens_whatever_comes_later() -> None:
    session = opened(2)
    sizes = [step.cache.nbytes for step in session.steps]
    session.run(5, beyond_end=True)
    assert [step.cache.nbytes for step in session.steps[:2]] == sizes
    formula = 2 * CONFIG.n_layers * CONFIG.n_kv_heads * CONFIG.head_dim * 4
    assert sizes == [formula * step.position for step in session.steps[:2]]
