"""The formula's value is the activation's, at every hook point; then, what the sampler did."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tests.tiny import CONFIG, bytes_tokenizer, tiny_model
from tinyllm.decode import Session
from tinyllm.errors import HookError
from tinyllm.inside.explain_choice import CHOICE_NAMES
from tinyllm.inside.hooks import HookSet, make_hooks
from tinyllm.inside.points import HookPoint, hook_points
from tinyllm.sampler import SamplingParams
from tinyllm.step import NextToken

MODEL = tiny_model()
PROMPT = list(b"The cat sat on")
SAMPLING = {"temperature": 0.7, "top_k": 20, "top_p": 0.8, "min_p": 0.05, "seed": 5,
            "repetition_penalty": 1.3, "frequency_penalty": 0.5, "presence_penalty": 0.25,
            "logit_bias": {65: 2.0}}  # fmt: skip


def session(hooks: HookSet | None = None, **sampling: Any) -> Session:
    return Session(MODEL, bytes_tokenizer(), PROMPT, SamplingParams(**sampling), hooks=hooks)


@pytest.fixture(scope="module")
def peeked() -> NextToken:
    return session().peek()


@pytest.mark.parametrize("point", hook_points(CONFIG), ids=lambda p: p.name)
def test_the_formula_gives_the_value(point: HookPoint, peeked: NextToken) -> None:
    array = peeked.replay.activations[point.name]
    rng = np.random.default_rng(1)
    for _ in range(4):
        index = tuple(int(rng.integers(n)) for n in array.shape)
        asked = {}
        for axis, i in zip(point.axes, index, strict=True):
            if axis != "T":
                asked["head" if "heads" in axis else "key" if axis == "S" else "dim"] = i
        e = peeked.explain(point.name, **asked)
        assert e.value == float(array[index])
        assert e.recomputed == pytest.approx(e.value, rel=1e-5, abs=1e-5)
        assert e.source == point.source
        assert point.name.rsplit(".", 1)[-1] in e.line
        if "pattern" not in point.name and "hook_post" not in point.name and e.terms:
            total = sum(t.value for t in e.terms)
            scale = math.sqrt(CONFIG.head_dim) if "scores" in point.name else 1
            assert total / scale == pytest.approx(e.recomputed, rel=1e-6, abs=1e-9)
        sizes = [abs(t.value) for t in e.terms]
        assert sizes == sorted(sizes, reverse=True)
        assert point.name in repr(e) and e.source in e._repr_html_()


def opened(look: NextToken, name: str, **where: Any) -> set[str]:
    """The names of everything that opening the largest terms, again and again, comes by."""
    seen, queue = set(), [{"name": name, **where}]
    while queue:
        e = look.explain(**queue.pop())
        if e.name not in seen:
            seen.add(e.name)
            queue += [dict(t.opens) for t in e.terms[:2] if t.opens]
    return seen


def test_every_term_opens_the_next_down_to_the_embedding(peeked: NextToken) -> None:
    """From a probability through all of the model: no formula is a dead end but the table."""
    seen = opened(peeked, "p", dim=peeked.best(1)[0].token)
    assert {"p", "top_p", "logits", "ln_final.hook_normalized", "hook_embed"} <= seen
    assert any("mlp.hook_post" in name or "attn.hook_z" in name for name in seen)
    for point in hook_points(CONFIG):
        e = peeked.explain(point.name)
        assert e.name == "hook_embed" or any(t.opens for t in e.terms)


@pytest.mark.parametrize("sampling", [SAMPLING, {"temperature": 0.0, "seed": 1}, {"seed": 2}])
def test_what_the_sampler_did_to_a_token(sampling: dict[str, Any]) -> None:
    s = session(**sampling)
    s.run(4, beyond_end=True)
    for step in (s.steps[0], s.steps[3]):
        stages = {stage.name: stage.logits for stage in step.stages}
        tokens = [c.token for c in step.candidates(30)] + s.sampler.picked + [65]
        for token in tokens:
            found = {name: step.explain(name, dim=token) for name in CHOICE_NAMES
                     if name in ("logits", "p_raw", "p", *stages)}  # fmt: skip
            for name, e in found.items():
                expected = {"logits": step.logits[token], "p_raw": step.choice.p_raw[token],
                            "p": step.choice.p[token]}.get(name)  # fmt: skip
                expected = stages[name][token] if expected is None else expected
                assert e.value == pytest.approx(float(expected), abs=1e-5), (name, token)
                assert e.recomputed == pytest.approx(float(expected), abs=1e-5), (name, token)
                assert e.where["dim"] == token
                assert e.source.startswith(("model.py:", "sampler.py:")) and e.line
                assert name in repr(e)
    assert s.steps[3].explain("p").where["dim"] == s.steps[3].token


def test_each_explains_its_own_forward() -> None:
    """Not the one that was opened last, nor the newest."""
    first, second = session(temperature=0), session(temperature=0)
    second.step(token="x")
    step = first.step()
    name = "blocks.2.hook_resid_post"
    expected = float(step.activations(name)[name][0, 3])
    second.peek()
    first.step(beyond_end=True)
    assert step.explain(name, dim=3).value == expected
    assert second.peek().explain(name, dim=3).value != expected


def test_the_key_that_gets_most_is_the_default(peeked: NextToken) -> None:
    row = peeked.attention(1, 3)
    e = peeked.explain("blocks.1.attn.hook_pattern", head=3)
    assert e.where == {"position": len(PROMPT) - 1, "head": 3, "key": int(row.argmax())}
    assert e.value == float(row.max())
    assert sum(t.value for t in e.terms) == pytest.approx(1 / e.value, rel=1e-5)


def test_it_explains_what_a_hook_left() -> None:
    hooks = HookSet()
    zero = make_hooks(CONFIG, [("blocks.0.hook_mlp_out", lambda act, *, hook: 0 * act)])
    with hooks.set(zero):
        e = session(hooks).peek().explain("blocks.0.hook_resid_post", dim=2)
    assert e.filled.endswith("+ 0")


def test_mistakes(peeked: NextToken) -> None:
    with pytest.raises(HookError, match="nearest"):
        peeked.explain("blocks.0.attn.hook_pat")
    with pytest.raises(ValueError, match="has no head axis"):
        peeked.explain("hook_embed", head=1)
    with pytest.raises(ValueError, match="has no key axis"):
        peeked.explain("p", key=1)
    with pytest.raises(ValueError, match="has no dim axis"):
        peeked.explain("blocks.0.attn.hook_pattern", dim=1)
    with pytest.raises(ValueError, match="token must be from 0 to 256"):
        peeked.explain("logits", dim=257)
    with pytest.raises(ValueError, match="head must be from 0 to 1"):
        peeked.explain("blocks.0.attn.hook_k", head=2)
