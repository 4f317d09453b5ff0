"""The lab in every family: each mistake that can be made shows first where its part is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.golden.families import load_goldens, tokens, write_checkpoint
from tinyllm.config import ModelConfig
from tinyllm.errors import HookError
from tinyllm.inside.breakage import Breakage, Scene
from tinyllm.inside.hooks import Conditions
from tinyllm.inside.lab import BREAKAGES, first_difference, possible
from tinyllm.inside.replay import run_with_cache
from tinyllm.inside.wrong import _as_hidden, _scores
from tinyllm.model import Model
from tinyllm.weights import load_weights

GOLDENS = load_goldens()
# Where a mistake shows first: the ends of the points' names; a layer's number is the test's own.
WHERE = {
    "rope-": ("attn.hook_rot_q",),
    "position-off-by-one": ("attn.hook_rot_q", "hook_resid_pre"),
    "causal-mask": ("attn.hook_attn_scores",),
    "mask-behind-cache": ("attn.hook_attn_scores",),
    "window": ("attn.hook_attn_scores",),
    "kv-head-map": ("attn.hook_attn_scores",),
    "softmax-scale": ("attn.hook_attn_scores",),
    "soft-cap": ("attn.hook_attn_scores",),
    "sinks": ("attn.hook_pattern",),
    "qk-norm": ("attn.q_norm.hook_normalized",),
    "qkv-bias": ("attn.hook_q",),
    "norm-": ("ln1.hook_normalized", "ln_final.hook_normalized"),
    "layer-norm": ("ln1.hook_normalized", "ln_final.hook_normalized"),
    "rms-norm": ("ln1.hook_normalized",),
    "gate-up-swap": ("mlp.hook_post", "mlp.experts.hook_post"),
    "activation": ("mlp.hook_post", "mlp.experts.hook_post"),
    "expert-weights": ("mlp.hook_expert_weights",),
    "embedding-scale": ("hook_embed",),
}


def model_of(name: str, folder: Path) -> Model:
    write_checkpoint(GOLDENS[name], folder)
    config = ModelConfig.from_folder(folder)
    weights = {k: v.astype(np.float64) for k, v in load_weights(folder, config).items()}
    return Model(config, weights)


@pytest.mark.parametrize("name", GOLDENS)
def test_each_mistake_shows_first_where_its_part_is(name: str, tmp_path: Path) -> None:
    model = model_of(name, tmp_path)
    for mistake in possible(model.config):
        found = first_difference(model, mistake, tokens(24), tolerance=1e-9)
        assert found is not None, mistake
        ends = next(ends for key, ends in WHERE.items() if mistake.startswith(key))
        assert found.name.endswith(ends), (mistake, found)
        assert np.isfinite(found.got) or "mask" in mistake or mistake == "window"


@pytest.mark.parametrize("name", GOLDENS)
def test_what_mistakes_are_made_of_is_the_familys_own(name: str, tmp_path: Path) -> None:
    """The right forms by the same means as the wrong ones: nothing but the mistake differs."""
    model = model_of(name, tmp_path)

    def right_scores(at: Scene) -> np.ndarray:
        return _as_hidden(at, _scores(at, at.keys()))

    rebuilt = Breakage("rebuilt", "nothing", {"attn.hook_attn_scores": right_scores})
    prompt = tokens(20)
    right, _ = run_with_cache(model, prompt, ())
    again, _ = run_with_cache(model, prompt, (), under=Conditions(broken=(rebuilt,)))
    np.testing.assert_allclose(again, right, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "mistake", "why"),
    [
        ("gpt2", "rope-theta", "learned"),
        ("gpt2", "layer-norm", "layer norms"),
        ("llama", "rms-norm", "RMS"),
        ("gpt_neox", "kv-head-map", "one for each query head"),
        ("starcoder2", "gate-up-swap", "no gate"),
        ("qwen3", "soft-cap", "no cap"),
    ],
)
def test_a_mistake_that_needs_a_missing_part_says_so(
    name: str, mistake: str, why: str, tmp_path: Path
) -> None:
    model = model_of(name, tmp_path)
    assert mistake not in possible(model.config)
    with pytest.raises(HookError, match=why):
        run_with_cache(model, tokens(5), (), under=Conditions(broken=(BREAKAGES[mistake],)))


def test_every_mistake_can_be_made_in_some_family() -> None:
    made = [possible(ModelConfig.from_hf(golden.config)) for golden in GOLDENS.values()]
    assert set().union(*made) == set(BREAKAGES)
