"""Every breakage is found where it was put in, and nothing stays broken."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.tiny import CONFIG, bytes_tokenizer, tiny_model
from tinyllm.decode import Session
from tinyllm.errors import HookError
from tinyllm.inside.hooks import Conditions
from tinyllm.inside.lab import break_it, breakages, broken_tap, first_difference, possible
from tinyllm.inside.replay import run_with_cache
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


def test_every_breakage_of_a_llama_is_listed() -> None:
    assert set(FIRST) == set(possible(CONFIG))


@pytest.mark.parametrize("name", FIRST)
def test_the_first_difference_is_where_the_mistake_is(name: str) -> None:
    before = operations()
    # A tiny eps hardly shows on activations of order one.
    found = first_difference(MODEL, name, PROMPT, tolerance=1e-6 if name == "norm-eps" else 1e-4)
    assert found is not None
    assert (found.name, found.forward) == FIRST[name]
    assert found.name in repr(found)
    assert found.relative > 0
    assert operations() == before


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


def logits_of(broken: tuple[str, ...] = ()) -> np.ndarray:
    return run_with_cache(MODEL, PROMPT, (), under=Conditions(broken=breakages(broken)))[0]


def test_one_caller_is_broken_and_another_whole_at_the_same_time() -> None:
    """A breakage is an argument: no other forward notices, in whatever thread it runs."""
    right, wrong = logits_of(), logits_of(("rope-pairing",))
    assert np.abs(wrong - right).max() > 0.1
    together = threading.Barrier(2, timeout=60)

    def run(broken: tuple[str, ...]) -> list[np.ndarray]:
        together.wait()
        return [logits_of(broken) for _ in range(20)]

    with ThreadPoolExecutor(2) as pool:
        whole, broken = pool.submit(run, ()), pool.submit(run, ("rope-pairing",))
        for a, b in zip(whole.result(), broken.result(), strict=True):
            np.testing.assert_array_equal(a, right)
            np.testing.assert_array_equal(b, wrong)


def test_a_with_block_breaks_this_thread_alone() -> None:
    params = SamplingParams(temperature=0)

    def peeked() -> np.ndarray:
        return Session(MODEL, bytes_tokenizer(), PROMPT, params).peek().logits

    right = peeked()
    with break_it("rope-pairing"), ThreadPoolExecutor(1) as pool:
        assert np.abs(peeked() - right).max() > 0.1
        np.testing.assert_array_equal(pool.submit(peeked).result(), right)
    with pytest.raises(ZeroDivisionError), break_it("rope-pairing"):
        raise ZeroDivisionError
    np.testing.assert_array_equal(peeked(), right)


def test_a_bare_forward_is_broken_by_its_tap() -> None:
    """Notebook 05 runs a model without an LM: in a `with` block its mistakes did nothing."""
    ids = [5, 6, 7, 8, 9, 10]
    whole = MODEL.forward(ids, MODEL.new_cache(8))

    def in_two(name: str | None) -> np.ndarray:
        cache = MODEL.new_cache(8)
        tap = broken_tap(MODEL, cache, name)
        return np.concatenate([MODEL.forward(part, cache, tap=tap) for part in (ids[:3], ids[3:])])

    np.testing.assert_allclose(in_two(None), whole, atol=1e-4)
    for name in ("position-off-by-one", "mask-behind-cache"):
        off = np.abs(in_two(name) - whole).max(axis=1)
        assert off[:3].max() < 1e-4 and off[3:].max() > 0.01


def test_two_parts_can_be_broken_at_once() -> None:
    both = logits_of(("rope-pairing", "activation"))
    assert np.abs(both - logits_of(("rope-pairing",))).max() > 0.01
    assert np.abs(both - logits_of(("activation",))).max() > 0.01


def test_a_broken_session_is_looked_into_as_it_is() -> None:
    """Replay, lens and causal map are of the broken forward."""
    params = SamplingParams(temperature=0)
    broken = breakages("softmax-scale")
    session = Session(MODEL, bytes_tokenizer(), PROMPT, params, broken=broken)
    steps = session.run(3, beyond_end=True)
    assert all(step.replay_error < 1e-5 for step in steps)
    assert steps[1].causal_map().logprob == pytest.approx(steps[1].logprob, abs=1e-4)


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
