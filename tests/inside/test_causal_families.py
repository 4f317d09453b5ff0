"""Causal map and lens where layers aren't a Llama's: against forwards with hooks, and by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.golden.families import load_goldens, tokens, write_checkpoint
from tests.tiny import bytes_tokenizer
from tinyllm.config import ModelConfig
from tinyllm.decode import Session
from tinyllm.inside.hooks import HookContext, HookSet, make_hooks
from tinyllm.model import Model
from tinyllm.sampler import SamplingParams, log_normalizer
from tinyllm.weights import load_weights

GOLDENS = load_goldens()


def logprob(logits: np.ndarray, token: int) -> float:
    return float(logits[token]) - log_normalizer(logits)


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "gemma2", "olmo2", "qwen3_moe", "cohere2"])
def test_effects_and_depths(name: str, tmp_path: Path) -> None:
    write_checkpoint(GOLDENS[name], tmp_path)
    config = ModelConfig.from_folder(tmp_path)
    weights = {k: v.astype(np.float64) for k, v in load_weights(tmp_path, config).items()}
    model = Model(config, weights)
    hooks, prompt, token = HookSet(), tokens(11), 42

    def session() -> Session:
        return Session(model, bytes_tokenizer(), prompt, SamplingParams(), hooks=hooks)

    def zero(act: np.ndarray, *, hook: HookContext) -> np.ndarray:
        return np.zeros_like(act)

    look = session().peek()
    found = look.causal_map(token=token, layer=1)
    base = logprob(look.logits, token)
    for part, effects in (("attn", found.attn), ("mlp", found.mlp)):
        for layer in (0, config.n_layers - 1):
            at = f"blocks.{layer}.hook_{part}_out"
            with hooks.set(make_hooks(config, [(at, zero)], positions=[len(prompt) - 1])):
                without = logprob(session().peek().logits, token)
            assert effects[layer] == pytest.approx(base - without, abs=1e-6)
    assert found.logprob == pytest.approx(base, abs=1e-6) and np.abs(found.heads).max() > 0

    lens = look.logit_lens(token=token)
    np.testing.assert_allclose(lens.logits[-1], look.logits, atol=1e-5)
    depth = look.activations()["blocks.1.hook_resid_post"]
    by_hand = model.unembed(model.norm("model.norm", depth))[0]
    np.testing.assert_allclose(lens.logits[2], by_hand, atol=1e-5)
    assert lens[2].rank == int((by_hand > by_hand[token]).sum())
