"""Hooks: what they are given, what they may give back, and that none stays behind."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from tests.tiny import CONFIG, bytes_tokenizer, tiny_model
from tinyllm.decode import Session
from tinyllm.errors import HookError
from tinyllm.inside.hooks import (
    Conditions,
    HookContext,
    HookNeverRan,
    HookSet,
    HookTap,
    make_hooks,
)
from tinyllm.inside.points import (
    POINTS,
    HookPoints,
    Point,
    check_points,
    hook_points,
    match_names,
)
from tinyllm.inside.replay import run_with_cache
from tinyllm.runner import Array
from tinyllm.sampler import SamplingParams

MODEL = tiny_model()
PROMPT = list(b"The cat sat on")


def session(hook_set: HookSet, prompt: list[int] = PROMPT, **sampling: Any) -> Session:
    params = SamplingParams(**{"temperature": 0.0, **sampling})
    return Session(MODEL, bytes_tokenizer(), prompt, params, hooks=hook_set)


def zero(act: Array, *, hook: HookContext) -> Array:
    return np.zeros_like(act)


def test_the_table_is_what_a_forward_meets() -> None:
    met: dict[str, tuple[int, ...]] = {}

    def tap(name: str, array: Array) -> Array:
        assert name not in met
        met[name] = array.shape
        return array

    cache = MODEL.new_cache(40)
    MODEL.forward(PROMPT, cache)
    MODEL.forward(PROMPT[:3], cache, tap=tap)
    points = hook_points(CONFIG)
    assert list(met) == [p.name for p in points]  # in this order, too
    for point in points:
        assert met[point.name] == point.shape(CONFIG, 3, len(PROMPT) + 3), point


def test_each_hook_point_names_its_line_and_tensor() -> None:
    from pathlib import Path

    from tinyllm import model as module

    lines = Path(module.__file__).read_text(encoding="utf-8").splitlines()
    for point in hook_points(CONFIG):
        file, number = point.source.split(":")
        assert file == "model.py"
        assert point.name.rsplit(".", 1)[-1] in lines[int(number) - 1]
        assert not point.tensor or point.tensor in MODEL.weights
    assert sum(bool(p.tensor) for p in hook_points(CONFIG)) == 9 * CONFIG.n_layers + 2
    table = HookPoints(hook_points(CONFIG))
    assert "the same for layers 1 to 2" in repr(table)
    assert "blocks.0.attn.hook_rot_k" in table._repr_html_()


def test_names_and_globs() -> None:
    assert match_names(CONFIG, "blocks.1.attn.hook_z") == ["blocks.1.attn.hook_z"]
    assert match_names(CONFIG, "*.attn.hook_pattern") == [
        f"blocks.{i}.attn.hook_pattern" for i in range(3)
    ]
    assert match_names(CONFIG, ["ln_final.*", "hook_embed"])[0] == "hook_embed"
    assert match_names(CONFIG, lambda name: name.endswith("resid_mid"))[0].startswith("blocks.0")
    # A Llama's: 18 in a layer, the embedding, and the last norm.
    assert len(match_names(CONFIG, None)) == 18 * CONFIG.n_layers + 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("blocks.1.attn.hook_patern", "blocks.1.attn.hook_pattern"),
        ("blocks.0.hook_z", "blocks.0.attn.hook_z"),
        ("blocks.7.attn.hook_z", "layers are 0 to 2"),
        ("*.hook_mlp", r"hook_points\(\) lists all"),
        (["hook_embed", "hook_nothing"], "hook_nothing"),
        (lambda name: False, "selects no hook point"),
    ],
)
def test_an_unknown_name_raises_with_the_nearest(wrong: Any, message: str) -> None:
    with pytest.raises(HookError, match=message):
        match_names(CONFIG, wrong)
    with pytest.raises(HookError, match=message):
        make_hooks(CONFIG, [(wrong, zero)])


def test_none_leaves_the_array_and_a_replacement_is_used() -> None:
    plain, acts = run_with_cache(MODEL, PROMPT)
    seen = []

    def look(act: Array, *, hook: HookContext) -> None:
        seen.append((hook.name, hook.layer, hook.positions.tolist(), act.shape))

    looked, _ = run_with_cache(
        MODEL, PROMPT, under=Conditions(tuple(make_hooks(CONFIG, [("*.hook_q", look)])))
    )
    np.testing.assert_array_equal(looked, plain)
    n = len(PROMPT)
    assert seen == [(f"blocks.{i}.attn.hook_q", i, list(range(n)), (n, 6, 4)) for i in range(3)]
    hooked, changed = run_with_cache(
        MODEL,
        PROMPT,
        under=Conditions(tuple(make_hooks(CONFIG, [("blocks.1.hook_mlp_out", zero)]))),
    )
    assert np.abs(hooked - plain).max() > 0.1
    np.testing.assert_array_equal(changed["blocks.0.hook_resid_post"], acts["resid_post", 0])
    np.testing.assert_array_equal(changed["resid_post", 1], changed["resid_mid", 1])
    assert not changed["mlp_out", 1].any()  # recorded as it went on


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda a: a[:1], r"returned float32 \(1, 24\); the array there is float32 \(14, 24\)"),
        (lambda a: a.astype(np.float64), "returned float64"),
        (lambda a: a.tolist(), "returned list"),
        (lambda a: 0.0, "returned float"),
    ],
)
def test_a_result_that_does_not_fit_raises(result: Any, message: str) -> None:
    hooks = make_hooks(CONFIG, [("hook_embed", lambda act, *, hook: result(act))])
    with pytest.raises(HookError, match=message):
        run_with_cache(MODEL, PROMPT, under=Conditions(tuple(hooks)))


def test_a_change_in_place_raises() -> None:
    def scribble(act: Array, *, hook: HookContext) -> None:
        act[0] = 0

    for positions in ("all", [1]):
        hooks = make_hooks(CONFIG, [("hook_embed", scribble)], positions)  # type: ignore[arg-type]
        with pytest.raises(HookError, match="in place; change a copy and return that"):
            run_with_cache(MODEL, PROMPT, under=Conditions(tuple(hooks)))


@pytest.mark.parametrize("positions", ["everywhere", [-1], [], [0.5], [[1]]])
def test_positions_are_checked(positions: Any) -> None:
    with pytest.raises(HookError, match="positions"):
        make_hooks(CONFIG, [("hook_embed", zero)], positions)
    with pytest.raises(HookError, match="must be a function"):
        make_hooks(CONFIG, [("hook_embed", None)])  # type: ignore[list-item]


@pytest.mark.parametrize("name", ["blocks.1.attn.hook_z", "blocks.1.attn.hook_attn_scores"])
def test_positions_are_absolute_with_and_without_the_cache(name: str) -> None:
    """The same hook over one forward, and over a forward a token."""
    positions, seen = [3, 9, 12], []

    def half(act: Array, *, hook: HookContext) -> Array:
        seen.extend(hook.positions.tolist())
        axis = hook.point.position_axis
        assert act.shape[axis] == len(hook.positions)
        return act * np.float32(0.5)

    hooks = make_hooks(CONFIG, [(name, half)], positions)
    whole, _ = run_with_cache(MODEL, PROMPT, under=Conditions(tuple(hooks)))
    assert seen == positions
    seen.clear()
    cache, rows = MODEL.new_cache(40), []
    for token in PROMPT:
        tap = HookTap(MODEL, cache, Conditions(tuple(hooks)), len(PROMPT))
        rows.append(MODEL.forward([token], cache, tap=tap)[-1])
    assert seen == positions
    np.testing.assert_allclose(np.stack(rows), whole, atol=5e-5)
    cache, seen_in_chunks = MODEL.new_cache(40), len(seen)
    tap = HookTap(MODEL, cache, Conditions(tuple(hooks)), len(PROMPT))
    chunked = MODEL.prefill(PROMPT, cache, logits="all", chunk=4, tap=tap)
    assert seen[seen_in_chunks:] == positions
    np.testing.assert_allclose(chunked, whole, atol=5e-5)
    plain, _ = run_with_cache(MODEL, PROMPT)
    np.testing.assert_allclose(whole[:3], plain[:3], atol=1e-6)  # nothing before position 3 moved
    assert np.abs(whole[3] - plain[3]).max() > 1e-3


def test_prompt_and_generated_positions() -> None:
    hook_set = HookSet()
    seen: dict[str, list[int]] = {"prompt": [], "generated": []}

    def note(which: str) -> Any:
        return lambda act, *, hook: seen[which].extend(hook.positions.tolist())

    for which in ("prompt", "generated"):
        with hook_set.set(make_hooks(CONFIG, [("hook_embed", note(which))], which)):  # type: ignore[arg-type]
            s = session(hook_set)
            for _ in range(3):
                s.step()
    n = len(PROMPT)
    assert seen == {"prompt": list(range(n)), "generated": [n, n + 1]}


def test_hooked_decoding_equals_hooked_prefill() -> None:
    """What a session gives token by token under hooks, one forward under the same hooks gives."""
    hook_set = HookSet()
    hooks = make_hooks(CONFIG, [("blocks.1.attn.hook_pattern", zero), ("*.hook_k", zero)])
    with hook_set.set(hooks):
        s = session(hook_set)
        steps = [s.step() for _ in range(5)]
        whole, _ = run_with_cache(MODEL, s.tokens[:-1], under=Conditions(tuple(hooks)))
        for step in steps:
            np.testing.assert_allclose(step.logits, whole[step.position - 1], atol=5e-5)
            assert step.replay_error < 1e-5  # a replay runs under the step's own hooks
    assert steps[2].replay_error < 1e-5  # also once they are gone


def test_hooks_set_and_removed_in_the_middle_of_a_session() -> None:
    hook_set = HookSet()
    plain = session(HookSet())
    without = [plain.step() for _ in range(6)]
    s = session(hook_set)
    np.testing.assert_array_equal(s.peek().logits, without[0].logits)  # computed before the hook
    with hook_set.set(make_hooks(CONFIG, [("blocks.2.hook_resid_post", zero)])):
        assert not s.peek().logits.any()  # and again under it: a hook is never passed by
    np.testing.assert_array_equal(s.peek().logits, without[0].logits)
    s.step(), s.step()
    with hook_set.set(make_hooks(CONFIG, [("blocks.2.hook_resid_post", zero)])):
        hooked = s.step()
        assert not hooked.logits.any()
        assert not s.fork().peek().logits.any()
    s.rewind(1)
    np.testing.assert_allclose(s.peek().logits, without[2].logits, atol=1e-6)


def test_no_hook_stays_behind() -> None:
    hook_set = HookSet()

    def fail(act: Array, *, hook: HookContext) -> None:
        raise ZeroDivisionError

    with (
        pytest.raises(ZeroDivisionError),
        hook_set.set(make_hooks(CONFIG, [("hook_embed", fail)])),
    ):
        session(hook_set)
    assert hook_set.active == ()
    outer, inner = (make_hooks(CONFIG, [("hook_embed", zero)]) for _ in range(2))
    with hook_set.set(outer):
        with hook_set.set(inner):
            assert hook_set.active == (*outer, *inner)
            session(hook_set)
        assert hook_set.active == (*outer,)
    assert hook_set.active == ()


def test_a_hook_that_never_ran_is_told_of() -> None:
    hook_set = HookSet()
    with (
        pytest.warns(HookNeverRan, match="hook_embed"),
        hook_set.set(make_hooks(CONFIG, [("hook_embed", zero)])),
    ):
        pass
    with (
        pytest.warns(HookNeverRan, match="positions: generated"),
        hook_set.set(make_hooks(CONFIG, [("hook_embed", zero)], "generated")),
    ):
        session(hook_set)
    with warnings.catch_warnings(), hook_set.set(make_hooks(CONFIG, [("hook_embed", zero)])):
        session(hook_set)


class OtherPath:
    """A runner without hook points."""

    config, dtype, fingerprint = CONFIG, "q8", "other"
    new_cache = staticmethod(MODEL.new_cache)
    forward_batch = staticmethod(MODEL.forward_batch)


def test_the_compiled_path_refuses_hooks() -> None:
    hook_set = HookSet()
    s = Session(OtherPath(), bytes_tokenizer(), PROMPT, SamplingParams(seed=0), hooks=hook_set)
    s.step()
    with (
        pytest.raises(HookError, match="opened on the compiled path"),
        hook_set.set(make_hooks(CONFIG, [("hook_embed", zero)])),
    ):
        s.step()
    s.step()


def test_the_table_of_points_is_held_against_model_py() -> None:
    """A row too many or too few is said by its name, when the module is imported."""
    tapped = {p.suffix.removeprefix("attn.").removeprefix("mlp.") for p in POINTS}
    check_points(POINTS, tapped)
    check_points(POINTS, [])  # no source at hand
    with pytest.raises(RuntimeError, match="no row for hook_new, which model"):
        check_points(POINTS, {*tapped, "hook_new"})
    with pytest.raises(RuntimeError, match="a row for hook_embed, which model"):
        check_points(POINTS, tapped - {"hook_embed"})
    with pytest.raises(RuntimeError, match="two rows for hook_embed"):
        check_points([*POINTS, POINTS[0]], tapped)
    odd = Point("hook_embed", ("T", "width"), "", "", POINTS[0].formula)
    with pytest.raises(RuntimeError, match=r"axes .*lacks a meaning"):
        check_points([odd, *POINTS[1:]], tapped)
