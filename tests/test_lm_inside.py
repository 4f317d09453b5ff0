"""The glass box on the real weights, through `LM`: what a reader of the notebooks types."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tinyllm
from tinyllm.errors import HookError
from tinyllm.inside.hooks import HookContext
from tinyllm.inside.lab import break_it, first_difference
from tinyllm.lm import LM
from tinyllm.runner import Array

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def lm(weights_folder: Path) -> LM:
    return tinyllm.load(weights_folder)


def test_stepping_is_generating(lm: LM) -> None:
    sampling = {"temperature": 0.7, "top_k": 40, "top_p": 0.9, "seed": 0}
    steps = list(lm.decode_steps(QUESTION, max_tokens=6, **sampling))
    whole = lm.generate(QUESTION, max_tokens=6, **sampling)
    assert [s.token for s in steps] == whole.tokens
    assert [s.logprob for s in steps] == whole.logprobs
    for step in steps:
        assert step.replay_error <= 1e-4
        np.testing.assert_allclose(step.logit_lens(1).logits[-1], step.logits, atol=1e-4)
    assert "".join(s.text_delta for s in steps) == whole.text


def test_a_hook_changes_the_answer_and_goes_again(lm: LM) -> None:
    plain = lm.generate(QUESTION, max_tokens=6, temperature=0).tokens
    seen = []

    def remove(act: Array, *, hook: HookContext) -> Array:
        seen.append((hook.layer, hook.positions.tolist()))
        return np.zeros_like(act)

    n_prompt = len(lm.encode_prompt(QUESTION))
    with lm.hooks([("blocks.1.hook_attn_out", remove)], positions="generated"):
        hooked = lm.generate(QUESTION, max_tokens=6, temperature=0).tokens
    assert hooked != plain
    assert seen == [(1, [n_prompt + i]) for i in range(5)]
    assert lm.generate(QUESTION, max_tokens=6, temperature=0).tokens == plain
    logits = lm.run_with_hooks(QUESTION, [("*.hook_mlp_out", remove)], positions=[0, 3])
    assert logits.shape == (n_prompt, lm.config.vocab_size)
    with pytest.raises(HookError, match=r"nearest are blocks\.1\.hook_attn_out"):
        lm.run_with_hooks(QUESTION, [("blocks.1.hook_attn_outt", remove)])


def test_a_recording(lm: LM) -> None:
    _, acts = lm.run_with_cache("The capital of France is", "*.attn.hook_pattern")
    assert len(acts) == lm.config.n_layers
    for pattern in acts.values():
        assert pattern.shape == (9, 5, 5)
        np.testing.assert_allclose(pattern.sum(-1), 1, atol=1e-5)
        assert not np.triu(pattern, 1).any()
    # 528 MB at 256 tokens, as the documentation says.
    from tinyllm.inside.replay import activation_bytes

    assert activation_bytes(lm.config, None, 256) == pytest.approx(528e6, rel=0.25)


def test_explaining_what_ran_last(lm: LM) -> None:
    step = next(lm.decode_steps(QUESTION, max_tokens=1, temperature=0))
    e = lm.explain("blocks.3.attn.hook_pattern", head=2, pos=-1)
    assert e.where["position"] == step.position - 1
    assert e.value == pytest.approx(float(step.attention(3, 2).max()), abs=1e-5)
    assert e.recomputed == pytest.approx(e.value, rel=1e-4)
    e = lm.explain("blocks.29.hook_mlp_out", prompt="Hello", dim=100)
    assert e.recomputed == pytest.approx(e.value, rel=1e-3, abs=1e-4)
    assert len(e.terms) == lm.config.hidden_dim


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("hook_embed", {"dim": 7}),
        ("blocks.2.ln1.hook_normalized", {"dim": 9}),
        ("blocks.2.attn.hook_q", {"head": 4, "dim": 33}),
        ("blocks.2.attn.hook_rot_k", {"head": 1, "dim": 40}),
        ("blocks.2.attn.hook_attn_scores", {"head": 4, "key": 1}),
        ("blocks.2.attn.hook_pattern", {"head": 4}),
        ("blocks.2.attn.hook_z", {"head": 8, "dim": 5}),
        ("blocks.2.hook_attn_out", {"dim": 70}),
        ("blocks.2.hook_resid_mid", {"dim": 70}),
        ("blocks.2.mlp.hook_post", {"dim": 1000}),
        ("blocks.2.hook_mlp_out", {"dim": 3}),
        ("ln_final.hook_normalized", {"dim": 3}),
    ],
)
def test_the_compiled_kernel_beside_the_formula(lm: LM, name: str, asked: dict[str, int]) -> None:
    e = lm.explain(name, prompt="The capital of France is", **asked)  # type: ignore[arg-type]
    assert e.kernel is not None
    assert e.kernel == pytest.approx(e.value, rel=1e-4, abs=1e-5)
    assert "compiled kernel" in repr(e)


def test_the_wrong_pairing_loses_paris(lm: LM) -> None:
    assert "Paris" in lm.chat("What is the capital of France?", max_tokens=10)
    with break_it("rope-pairing"):
        assert "Paris" not in lm.chat("What is the capital of France?", max_tokens=10)
    found = first_difference(lm, "rope-pairing")
    assert found is not None and found.name == "blocks.0.attn.hook_rot_q"


def test_a_causal_map(lm: LM) -> None:
    session = lm.session("The capital of France is", temperature=0)
    step = session.step()
    assert lm.tokenizer.token_text(step.token) == " Paris"
    causal = step.causal_map(layer=5)
    assert causal.logprob == pytest.approx(step.logprob, abs=1e-4)
    assert causal.attn.shape == causal.mlp.shape == (30,)
    assert causal.heads.shape == (9,) and causal.pattern.shape == (9, step.position)
    name, effect = causal.top(1)[0]

    def remove(act: Array, *, hook: HookContext) -> Array:
        return np.zeros_like(act)

    # The same thing by hand, with a hook at the last position.
    logits = lm.run_with_hooks(
        "The capital of France is", [(name, remove)], positions=[step.position - 1]
    )[-1].astype(np.float64)
    logprob = logits[step.token] - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
    assert step.logprob - logprob == pytest.approx(effect, abs=1e-3)
