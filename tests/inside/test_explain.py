"""The formula's value is the activation's, at every hook point."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.tiny import CONFIG, tiny_model
from tinyllm.errors import HookError
from tinyllm.inside.explain import FORMULAS, explain
from tinyllm.inside.hooks import hook_points, make_hooks
from tinyllm.inside.replay import run_with_cache

MODEL = tiny_model()
PROMPT = list(b"The cat sat on")


def test_every_hook_point_has_a_formula() -> None:
    suffixes = {p.name.split(".", 2)[2] if p.layer is not None else p.name
                for p in hook_points(CONFIG)}  # fmt: skip
    assert suffixes == set(FORMULAS)


@pytest.mark.parametrize("point", hook_points(CONFIG), ids=lambda p: p.name)
def test_the_formula_gives_the_value(point) -> None:  # type: ignore[no-untyped-def]
    _, acts = run_with_cache(MODEL, PROMPT, point.name)
    array = acts[point.name]
    rng = np.random.default_rng(1)
    for _ in range(4):
        index = tuple(int(rng.integers(n)) for n in array.shape)
        asked = {}
        for axis, i in zip(point.axes, index, strict=True):
            what = "pos" if axis == "T" else "head" if "heads" in axis else "key"
            asked[what if what != "key" or axis == "S" else "dim"] = i
        e = explain(MODEL, PROMPT, point.name, **asked)  # type: ignore[arg-type]
        assert e.value == float(array[index])
        if math.isinf(e.value):
            assert e.recomputed == e.value
        else:
            assert e.recomputed == pytest.approx(e.value, rel=1e-5, abs=1e-5)
        assert e.source == point.source
        assert point.name.rsplit(".", 1)[-1] in e.line
        if e.terms and "pattern" not in point.name:
            total = sum(t.value for t in e.terms)
            scale = math.sqrt(CONFIG.head_dim) if "scores" in point.name else 1
            assert total / scale == pytest.approx(e.recomputed, rel=1e-6, abs=1e-9)
        sizes = [abs(t.value) for t in e.terms]
        assert sizes == sorted(sizes, reverse=True)
        assert point.name in repr(e) and e.source in e._repr_html_()


def test_the_key_that_gets_most_is_the_default() -> None:
    _, acts = run_with_cache(MODEL, PROMPT, "*.attn.hook_pattern")
    row = acts["pattern", 1][3, 9]
    e = explain(MODEL, PROMPT, "blocks.1.attn.hook_pattern", 9, head=3)
    assert e.where == {"position": 9, "head": 3, "key": int(row.argmax())}
    assert e.value == float(row.max())
    assert sum(t.value for t in e.terms) == pytest.approx(1 / e.value, rel=1e-5)


def test_it_explains_what_a_hook_left() -> None:
    hooks = make_hooks(CONFIG, [("blocks.0.hook_mlp_out", lambda act, *, hook: 0 * act)])
    e = explain(MODEL, PROMPT, "blocks.0.hook_resid_post", dim=2, hooks=hooks)
    assert e.filled.endswith("+ 0")


def test_mistakes() -> None:
    with pytest.raises(HookError, match="nearest"):
        explain(MODEL, PROMPT, "blocks.0.attn.hook_pat")
    with pytest.raises(ValueError, match="has no head axis"):
        explain(MODEL, PROMPT, "hook_embed", head=1)
    with pytest.raises(ValueError, match="has no dim axis"):
        explain(MODEL, PROMPT, "blocks.0.attn.hook_pattern", dim=1)
    with pytest.raises(ValueError, match="pos must be from 0 to 13"):
        explain(MODEL, PROMPT, "hook_embed", 14)
    with pytest.raises(ValueError, match="head must be from 0 to 1"):
        explain(MODEL, PROMPT, "blocks.0.attn.hook_k", head=2)
