"""Every family's formulas give the values of its own forward, at every hook point."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.golden.families import load_goldens, tokens, write_checkpoint
from tests.tiny import bytes_tokenizer
from tinyllm.config import ModelConfig
from tinyllm.decode import Session
from tinyllm.inside.hooks import HookSet, make_hooks
from tinyllm.inside.points import HookPoint, hook_points
from tinyllm.model import Model
from tinyllm.sampler import SamplingParams
from tinyllm.step import NextToken
from tinyllm.weights import load_weights

GOLDENS = load_goldens()


def model_of(name: str, folder: Path) -> Model:
    write_checkpoint(GOLDENS[name], folder)
    config = ModelConfig.from_folder(folder)
    weights = {k: v.astype(np.float64) for k, v in load_weights(folder, config).items()}
    return Model(config, weights)


def an_entry(point: HookPoint, array: np.ndarray) -> tuple[tuple[int, ...], dict[str, int]]:
    """An entry of an array of one position, with the arguments that ask for it."""
    rng = np.random.default_rng(zlib.crc32(point.name.encode()))
    index = tuple(int(rng.integers(size)) for size in array.shape)
    asked = {}
    for axis, i in zip(point.axes, index, strict=True):
        if axis != "T":
            head = "heads" in axis or axis == "k_experts"
            asked["head" if head else "key" if axis == "S" else "dim"] = i
    return index, asked


@pytest.mark.parametrize("name", GOLDENS)
def test_formulas_give_the_forward(name: str, tmp_path: Path) -> None:
    model = model_of(name, tmp_path)
    # Longer than any window; angles are those of the whole context, as a session has it.
    session = Session(model, bytes_tokenizer(), tokens(30), SamplingParams(temperature=0))
    peeked = session.peek()
    for point in hook_points(model.config):
        array = peeked.replay.activations[point.name]
        index, asked = an_entry(point, array)
        e = peeked.explain(point.name, **asked)
        assert e.value == float(array[index])
        assert e.recomputed == pytest.approx(e.value, rel=1e-6, abs=1e-9), (point.name, repr(e))
        assert point.name.rsplit(".", 1)[-1] in e.line
        sizes = [abs(t.value) for t in e.terms]
        assert sizes == sorted(sizes, reverse=True), point.name
    for token in (5, 60):
        e = peeked.explain("logits", dim=token)
        assert e.recomputed == pytest.approx(float(peeked.logits[token]), rel=1e-6, abs=1e-9)
    assert reached(peeked) >= parts_of(model.config)


def reached(look: NextToken) -> set[str]:
    """The kinds of point that opening terms, again and again from a logit on, comes by."""
    seen: set[str] = set()
    queue: list[dict[str, Any]] = [{"name": "logits", "dim": 5}]
    while queue:
        asked = queue.pop()
        if asked["name"] not in seen:
            seen.add(asked["name"])
            e = look.explain(**asked)
            queue += [dict(t.opens) for t in e.terms[:3] if t.opens]
            queue += [dict(t.opens) for t in e.terms[-1:] if t.opens]
    return seen


def parts_of(config: ModelConfig) -> set[str]:
    """What must be come by: the first layer's every point but what is a term's second factor.

    Those are keys and values, which stand in the cache, and experts' weights.
    """
    second = ("hook_k", "hook_v", "hook_rot_k", "k_norm.hook_normalized", "hook_router",
              "hook_expert_weights")  # fmt: skip
    return {
        point.name
        for point in hook_points(config)
        if point.layer == 0 and not point.name.endswith(second)
    }


@pytest.mark.parametrize("name", ["llama longrope", "phi3 longrope"])
def test_a_past_step_turns_by_the_angles_it_was_decoded_with(name: str, tmp_path: Path) -> None:
    """Longrope chooses by how long the sequence may become, not by how long a copy of it is."""
    session = Session(model_of(name, tmp_path), bytes_tokenizer(), tokens(9),
                      SamplingParams(temperature=0))  # fmt: skip
    steps = session.run(4, beyond_end=True)
    session.rewind(3)
    session.step(token=7)  # from here on its cache isn't the old steps'
    assert steps[3].replay_error <= 1e-6
    e = steps[3].explain("blocks.1.attn.hook_rot_q", head=1, dim=2)
    assert e.recomputed == pytest.approx(e.value, rel=1e-6)


def test_a_hook_on_the_weights_chooses_other_experts(tmp_path: Path) -> None:
    model = model_of("mixtral", tmp_path)

    def fifth_alone(act: np.ndarray, *, hook: object) -> np.ndarray:
        out = np.zeros_like(act)
        out[:, 4] = 0.5
        return out

    hooks = HookSet()
    name = "blocks.2.mlp.hook_expert_weights"
    session = Session(model, bytes_tokenizer(), tokens(9), SamplingParams(), hooks=hooks)
    with hooks.set(make_hooks(model.config, [(name, fifth_alone)])):
        peeked = session.peek()
        e = peeked.explain("blocks.2.hook_mlp_out", dim=3)
        inner = peeked.explain("blocks.2.mlp.experts.hook_out", dim=3)
    assert "experts.4.down_proj" in inner.tensor
    assert e.value == pytest.approx(0.5 * inner.value) and e.recomputed == pytest.approx(e.value)
