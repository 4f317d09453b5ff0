"""Every breakage is found where it was put in, and nothing stays broken."""

from __future__ import annotations

import numpy as np
import pytest

from tests.tiny import bytes_tokenizer, tiny_model
from tinyllm.decode import Session
from tinyllm.errors import HookError
from tinyllm.inside import hooks
from tinyllm.inside.lab import BREAKAGES, break_it, first_difference
from tinyllm.kernels import reference as ops
from tinyllm.sampler import SamplingParams

MODEL = tiny_model()
PROMPT = list(b"The capital of France is Paris")

FIRST = {  # breakage → where it shows first, in which forward
    "rope-pairing": ("blocks.0.attn.hook_rot_q", 0),
    "rope-theta": ("blocks.0.attn.hook_rot_q", 0),
    "position-off-by-one": ("blocks.0.attn.hook_rot_q", 1),
    "causal-mask": ("blocks.0.attn.hook_attn_scores", 0),
    "mask-behind-cache": ("blocks.0.attn.hook_attn_scores", 1),
    "kv-head-map": ("blocks.0.attn.hook_attn_scores", 0),
    "softmax-scale": ("blocks.0.attn.hook_attn_scores", 0),
    "norm-eps": ("blocks.0.ln1.hook_normalized", 0),
    "layer-norm": ("blocks.0.ln1.hook_normalized", 0),
    "gate-up-swap": ("blocks.0.mlp.hook_post", 0),
    "activation": ("blocks.0.mlp.hook_post", 0),
}


def operations() -> dict[str, object]:
    return {name: value for name, value in vars(ops).items() if callable(value)}


def test_every_breakage_is_listed() -> None:
    assert set(FIRST) == set(BREAKAGES)


@pytest.mark.parametrize("name", BREAKAGES)
def test_the_first_difference_is_where_the_mistake_is(name: str) -> None:
    before = operations()
    # A tiny eps hardly shows on activations of order one.
    found = first_difference(MODEL, name, PROMPT, tolerance=1e-6 if name == "norm-eps" else 1e-4)
    assert found is not None
    assert (found.name, found.forward) == FIRST[name]
    assert found.name in repr(found)
    assert found.relative > 0
    assert operations() == before
    assert hooks.READABLE_ONLY == []


def test_two_equal_models_do_not_differ() -> None:
    assert first_difference(MODEL, tiny_model(), PROMPT) is None


def test_two_models_part_where_a_weight_differs() -> None:
    other = tiny_model()
    weight = other.weights["model.layers.1.mlp.up_proj.weight"]
    weight[3, 5] += 1  # type: ignore[index]
    found = first_difference(MODEL, other, PROMPT)
    assert found is not None and found.name == "blocks.1.mlp.hook_pre_linear"
    assert found.index[1] == 3
    assert found.source.startswith("model.py:")


def test_the_broken_model_is_wrong_inside_the_block_only() -> None:
    right = MODEL.forward(PROMPT, MODEL.new_cache(50))
    broken = break_it("rope-pairing")
    for _ in range(2):
        with broken:
            wrong = MODEL.forward(PROMPT, MODEL.new_cache(50))
        assert np.abs(wrong - right).max() > 0.1
    with pytest.raises(ZeroDivisionError), broken:
        raise ZeroDivisionError
    np.testing.assert_array_equal(MODEL.forward(PROMPT, MODEL.new_cache(50)), right)
    with broken, pytest.raises(RuntimeError, match="already broken"), break_it("norm-eps"):
        pass
    np.testing.assert_array_equal(MODEL.forward(PROMPT, MODEL.new_cache(50)), right)


def test_a_session_notices_that_something_was_broken_meanwhile() -> None:
    params = SamplingParams(temperature=0)
    session = Session(MODEL, bytes_tokenizer(), PROMPT, params)
    right = session.peek().logits
    with break_it("softmax-scale"):
        fresh = Session(MODEL, bytes_tokenizer(), PROMPT, params)
        np.testing.assert_array_equal(session.peek().logits, fresh.peek().logits)
        assert np.abs(fresh.peek().logits - right).max() > 0.1
    np.testing.assert_array_equal(session.peek().logits, right)


def test_the_compiled_path_does_not_pretend() -> None:
    class OtherPath:
        config, dtype, fingerprint = MODEL.config, "q8", "other"
        new_cache, forward_batch = MODEL.new_cache, MODEL.forward_batch

    session = Session(OtherPath(), bytes_tokenizer(), PROMPT, SamplingParams(temperature=0))  # type: ignore[arg-type]
    session.step()
    with break_it("norm-eps"), pytest.raises(HookError, match="compiled path"):
        session.step()


def test_mistakes_in_using_it() -> None:
    with pytest.raises(ValueError, match="rope-pairing"):
        break_it("rope")
    with pytest.raises(ValueError, match="at least 5"):
        first_difference(MODEL, "norm-eps", [1, 2])
    with pytest.raises(ValueError, match="no tokenizer"):
        first_difference(MODEL, "norm-eps", "text")
