"""A look is a notebook's Step: every kind of view, to the bit, whatever was looked at before."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.tiny import CONFIG, bytes_tokenizer, tiny_model
from tinyllm.decode import Session, Step
from tinyllm.errors import HookError
from tinyllm.inside.look import Want, logits_in_short, look, packed
from tinyllm.inside.prefixes import Prefixes
from tinyllm.prompt import Prompt
from tinyllm.sampler import SamplingParams

MODEL = tiny_model()
TEXT = [int(t) for t in np.random.default_rng(2).integers(0, 256, 150)]
PARAMS = SamplingParams(temperature=0.8, top_k=30, top_p=0.9, seed=11)
EVERYTHING = Want(
    candidates=5, logits=True, attention=(1, None), lens=3, activations="blocks.1.attn.hook_z",
    timing=True, cache=True,
)  # fmt: skip


def unpacked(entry: dict[str, Any]) -> NDArray[Any]:
    raw = np.frombuffer(base64.b64decode(entry["data"]), entry["dtype"])
    return raw.reshape(entry["shape"])


def looked(prefixes: Prefixes, position: int, want: Want, n_prompt: int = 100) -> dict[str, Any]:
    with prefixes.before(Prompt(np.array(TEXT, np.int32)), position - 1) as cache:
        prompt, said = TEXT[:position][:n_prompt], TEXT[n_prompt:position]
        session = Session(MODEL, bytes_tokenizer(), prompt, PARAMS, said=said, cache=cache)
        out = look(session.step(TEXT[position]), want)
    out.pop("timing", None)
    return out


def notebook_step(position: int, n_prompt: int = 100) -> Step:
    """The step as a notebook gets it: a session stepped to there."""
    session = Session(MODEL, bytes_tokenizer(), TEXT[: min(n_prompt, position)], PARAMS)
    for token in TEXT[len(session.prompt) : position]:
        session.step(token)
    return session.step(TEXT[position])


@pytest.mark.parametrize("position", [1, 64, 99, 100, 101, 140])
def test_equals_the_notebooks_step(position: int) -> None:
    got, step = looked(Prefixes(MODEL), position, EVERYTHING), notebook_step(position)
    assert (got["position"], got["index"]) == (position, step.index)
    assert got["uniform"] == step.uniform
    assert got["logprob"] == pytest.approx(step.logprob, abs=1e-4)
    for mine, theirs in zip(got["candidates"], step.candidates(5), strict=False):
        assert (mine["token"], mine["cut_by"]) == (theirs.token, theirs.cut_by)
        assert mine["p"] == pytest.approx(theirs.p, abs=1e-4)
    weights = unpacked(got["attention"]["weights"])
    for head in range(CONFIG.n_heads):
        np.testing.assert_allclose(weights[head], step.attention(1, head), atol=1e-3)
    values = unpacked(got["activations"]["values"])
    np.testing.assert_allclose(
        values, step.activations("blocks.1.attn.hook_z")["blocks.1.attn.hook_z"], atol=2e-2
    )
    assert got["cache"]["nbytes"] == step.cache.nbytes


@pytest.mark.parametrize("position", [1, 64, 100, 140])
def test_the_same_bits_cold_warm_and_behind_a_fork(position: int) -> None:
    cold = looked(Prefixes(MODEL), position, EVERYTHING)
    warm = Prefixes(MODEL)
    for other in (149, 3, 70):
        looked(warm, other, Want(lens=1))
    fork = np.array([*TEXT[:position], 7, 7, 7], np.int32)
    with warm.before(Prompt(fork), position + 2):
        pass
    assert looked(warm, position, EVERYTHING) == cold


def test_a_look_is_the_step_of_a_session_over_the_same_cache_to_the_bit() -> None:
    position = 120
    got = looked(Prefixes(MODEL), position, EVERYTHING)
    with Prefixes(MODEL).before(Prompt(np.array(TEXT, np.int32)), position - 1) as cache:
        session = Session(
            MODEL, bytes_tokenizer(), TEXT[:100], PARAMS, said=TEXT[100:position], cache=cache
        )
        step = session.step(TEXT[position])
        assert got["logprob"] == step.logprob and got["entropy"] == step.entropy
        assert [c["logit"] for c in got["candidates"][:5]] == [c.logit for c in step.candidates(5)]
        assert [s["mass"] for s in got["stages"]] == [s.mass for s in step.stages]
        weights = unpacked(got["attention"]["weights"])
        for head in range(CONFIG.n_heads):
            np.testing.assert_array_equal(weights[head], step.attention(1, head).astype("f2"))
        lens = step.logit_lens(3)
        assert [row["p"] for row in got["lens"]] == [row.p for row in lens]
        name = "blocks.1.attn.hook_z"
        np.testing.assert_array_equal(
            unpacked(got["activations"]["values"]), step.activations(name)[name].astype("f2")
        )


def test_all_layers_attention_comes_as_bytes() -> None:
    got = looked(Prefixes(MODEL), 120, Want(attention=(None, None)))
    weights = unpacked(got["attention"]["weights"])
    assert weights.shape == (CONFIG.n_layers, CONFIG.n_heads, 120) and weights.dtype == np.uint8
    np.testing.assert_allclose(weights.sum(axis=-1), 255, atol=60)  # each is rounded by itself


def test_the_logits_in_short_hold_all_of_the_mass() -> None:
    logits = np.random.default_rng(0).normal(0, 3, 5000).astype(np.float32)
    short = logits_in_short(logits)
    ids, values = unpacked(short["ids"]), unpacked(short["values"])
    np.testing.assert_array_equal(values, logits[ids])
    assert sum(short["tail"]["counts"]) == 5000 - 256
    p = np.exp(logits.astype(np.float64) - logits.max())
    mass = np.exp(values.astype(np.float64) - values[0]).sum() + sum(short["tail"]["exp_sums"])
    assert mass == pytest.approx(p.sum(), rel=1e-9)


def test_a_vocabulary_smaller_than_the_best_list() -> None:
    short = logits_in_short(np.array([1, 3, 2], np.float32))
    assert unpacked(short["ids"]).tolist() == [1, 2, 0] and not sum(short["tail"]["counts"])


def test_a_name_or_a_layer_that_is_not_there() -> None:
    with pytest.raises(HookError, match=r"blocks\.1\.attn\.hook_z"):
        looked(Prefixes(MODEL), 5, Want(activations="blocks.1.attn.hook_zz"))
    with pytest.raises(HookError, match=r"'blocks\.\*\.hook_resid_post' fits \d+ hook points"):
        looked(Prefixes(MODEL), 5, Want(activations="blocks.*.hook_resid_post"))
    with pytest.raises(ValueError, match="layer must be from 0 to 2"):
        looked(Prefixes(MODEL), 5, Want(attention=(9, None)))


def test_packed_says_its_shape() -> None:
    assert packed(np.zeros((2, 3), np.float16)) == {
        "shape": [2, 3], "dtype": "float16", "data": base64.b64encode(bytes(12)).decode()
    }  # fmt: skip
