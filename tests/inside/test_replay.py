"""Recording and replay."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from tests.tiny import CONFIG, bytes_tokenizer, tiny_model
from tinyllm.errors import HookError
from tinyllm.inside import replay as trace
from tinyllm.inside.points import hook_points, match_names
from tinyllm.inside.replay import (
    LargeActivations,
    LogitLens,
    activation_bytes,
    clipped_cache,
    replay_token,
    run_with_cache,
)

MODEL = tiny_model()
PROMPT = list(b"The cat sat on the mat")


def test_run_with_cache_gives_the_models_logits_and_all_activations() -> None:
    logits, acts = run_with_cache(MODEL, PROMPT)
    np.testing.assert_array_equal(logits, MODEL.forward(PROMPT, MODEL.new_cache(30)))
    assert list(acts) == match_names(CONFIG, None)
    assert acts.nbytes == activation_bytes(CONFIG, None, len(PROMPT))
    _, some = run_with_cache(MODEL, PROMPT, "*.attn.hook_pattern")
    assert len(some) == 3
    np.testing.assert_array_equal(some["pattern", 2], acts["blocks.2.attn.hook_pattern"])
    np.testing.assert_array_equal(some["pattern", -1], acts["pattern", 2])
    assert "3 arrays" in repr(some)


def test_patterns_are_causal_and_sum_to_one() -> None:
    _, acts = run_with_cache(MODEL, PROMPT, "*.attn.hook_pattern")
    for pattern in acts.values():
        np.testing.assert_allclose(pattern.sum(-1), 1, atol=1e-6)
        assert not np.triu(pattern, 1).any()
        assert (pattern >= 0).all()


def test_an_activation_that_is_not_there_raises() -> None:
    _, acts = run_with_cache(MODEL, PROMPT, "*.attn.hook_pattern")
    with pytest.raises(KeyError, match=r"blocks\.0\.attn\.hook_z was not recorded"):
        acts["blocks.0.attn.hook_z"]
    with pytest.raises(KeyError, match=r"nearest are blocks\.0\.attn\.hook_z"):
        acts["blocks.0.attn.hook_zz"]
    with pytest.raises(KeyError):
        acts["nothing", 0]
    with pytest.raises(HookError, match="nearest"):
        run_with_cache(MODEL, PROMPT, "hook_embedding")


def test_a_huge_recording_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "LARGE_BYTES", activation_bytes(CONFIG, None, len(PROMPT)) - 1)
    with pytest.warns(LargeActivations, match="names_filter"):
        run_with_cache(MODEL, PROMPT)
    with warnings.catch_warnings():
        run_with_cache(MODEL, PROMPT, "*.hook_resid_post")


def test_a_replayed_token_has_the_rows_of_the_whole_run() -> None:
    logits, acts = run_with_cache(MODEL, PROMPT)
    cache = MODEL.new_cache(40)
    MODEL.forward(PROMPT, cache)
    for position in (0, 7, len(PROMPT) - 1):
        clipped = clipped_cache(MODEL, cache, position, position + 1)
        replay = replay_token(MODEL, PROMPT[position], clipped)
        np.testing.assert_allclose(replay.logits, logits[position], atol=1e-5)
        for point in hook_points(CONFIG):
            here = replay.activations[point.name]
            row = acts[point.name].take([position], axis=point.position_axis)
            if point.axes[-1] == "S":
                row = row[..., : position + 1]
            np.testing.assert_allclose(here, row, atol=2e-5, err_msg=point.name)
        np.testing.assert_allclose(replay.attention(1, 2), acts["pattern", 1][2, position,
                                   : position + 1], atol=1e-6)  # fmt: skip


def test_the_lens_norms_each_depth_by_itself() -> None:
    cache = MODEL.new_cache(40)
    MODEL.forward(PROMPT[:-1], cache)
    replay = replay_token(MODEL, PROMPT[-1], cache)
    lens = replay.logit_lens(4, target=65, tokenizer=bytes_tokenizer())
    weights, eps = MODEL.weights, CONFIG.norm_eps
    for depth, x in enumerate(replay.hidden_states.astype(np.float64)):
        normed = x / np.sqrt((x**2).mean() + eps) * weights["model.norm.weight"]
        expected = normed @ weights["model.embed_tokens.weight"].T
        np.testing.assert_allclose(lens.logits[depth], expected, atol=1e-5)
        p = np.exp(expected - expected.max()) / np.exp(expected - expected.max()).sum()
        row = lens[depth]
        assert row.p == pytest.approx(p[65], rel=1e-4)
        assert row.rank == (expected > expected[65]).sum()
        assert [t for t, _, _ in row.top] == np.argsort(-expected, kind="stable")[:4].tolist()
        assert row.top[0][2] == pytest.approx(p.max(), rel=1e-4)
    assert isinstance(lens, LogitLens)
    assert len(list(lens)) == 4


def test_timing_accounts_for_every_operation() -> None:
    replay = replay_token(MODEL, 65, MODEL.new_cache(1))
    timing = replay.timing
    assert set(timing.seconds) == {*(p.kind.operation for p in hook_points(CONFIG)), "unembedding"}
    assert all(s >= 0 for s in timing.seconds.values())
    assert 0 < timing.by_layer.sum() < timing.total
    assert "ms" in repr(timing)
