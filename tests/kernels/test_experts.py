"""Which experts a row takes, and how rows are gathered by them; whole models are for
tests/test_compiled_experts.py.

Parts of a kernel are compiled inside of it alone: here they run as the Python that they are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tinyllm.config import ModelConfig
from tinyllm.families.parts import Experts, Layer
from tinyllm.kernels import experts, reference
from tinyllm.kernels.expert_arrays import (
    ExpertArrays,
    Groups,
    make_expert_arrays,
    make_expert_scratch,
)
from tinyllm.kernels.layout import TILE, empty_f32_rows


def plain(function: Any) -> Any:
    return getattr(function, "py_func", function)


def made(n: int, k: int, normalised: bool = True) -> ExpertArrays:
    none: Any = None
    return ExpertArrays(np.zeros(1, np.int64), none, none, none, none, none, none, n, k, normalised)


def choices(scores: np.ndarray, k: int, normalised: bool) -> tuple[np.ndarray, np.ndarray]:
    rows, n = scores.shape
    chosen, weight = np.zeros((rows, k), np.int32), np.zeros((rows, k), np.float32)
    for r in range(rows):
        plain(experts.choose)(scores, r, made(n, k, normalised), chosen, weight)
    return chosen, weight


@pytest.mark.parametrize(("n", "k"), [(1, 1), (5, 2), (6, 6), (64, 8)])
@pytest.mark.parametrize("normalised", [False, True])
def test_choosing(n: int, k: int, normalised: bool) -> None:
    """As the plain form has it; many scores are equal."""
    rng = np.random.default_rng(n)
    scores = np.concatenate(
        [rng.normal(size=(20, n)) * 3, rng.integers(0, 3, (20, n)), np.zeros((1, n))]
    ).astype(np.float32)
    chosen, weight = choices(scores, k, normalised)
    want, their_weight = reference.choose_experts(scores, k, normalised)
    np.testing.assert_array_equal(chosen, want)
    np.testing.assert_allclose(weight, their_weight, rtol=1e-5)


def test_choosing_by_hand() -> None:
    """Of four equal ones the two with the lower numbers; each takes half, or e⁰ of e¹ + 4 e⁰ …"""
    scores = np.float32([[0, 0, 1, 0, 0]])
    chosen, weight = choices(scores, 3, True)
    assert chosen.tolist() == [[2, 0, 1]]
    e = float(np.e)
    np.testing.assert_allclose(weight[0], np.array([e, 1, 1]) / (e + 2), rtol=1e-6)
    _, weight = choices(scores, 3, False)
    np.testing.assert_allclose(weight[0], np.array([e, 1, 1]) / (e + 4), rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_no_numbers_choose_experts_that_there_are(bad: float) -> None:
    for where in (slice(None), slice(0, 3), slice(4, 5)):
        scores = np.float32([[3, 1, 4, 1, 5, 9]])
        scores[0, where] = bad
        with np.errstate(invalid="ignore"):
            chosen, _ = choices(scores, 4, False)
        assert len(set(chosen[0].tolist())) == 4 and set(chosen[0].tolist()) <= set(range(6))


def one(of_all: Groups) -> Groups:
    return Groups(*(array[0] for array in of_all))


def config(n: int, k: int, *layers: Layer) -> ModelConfig:
    return ModelConfig(
        64, 96, len(layers), 2, 1, 32, 40, 128, 1e4, 1e-5, False,
        experts=Experts(n, k, 32, "softmax"), layers=layers,
    )  # fmt: skip


@pytest.mark.parametrize(("n", "k", "rows"), [(5, 2, 1), (5, 2, 3), (3, 3, 20), (64, 8, 37)])
def test_grouping(n: int, k: int, rows: int) -> None:
    """Every pair once, beside those of its expert, experts in order; tiles cut them by 8."""
    rng = np.random.default_rng(rows)
    chosen = np.stack([rng.permutation(n)[:k] for _ in range(rows)]).astype(np.int32)
    weight = rng.random((rows, k)).astype(np.float32)
    room = make_expert_scratch(config(n, k, Layer(experts=True)), empty_f32_rows, rows, 1)
    assert room is not None
    groups = one(room.groups)
    n_ranks, n_tiles = plain(experts.group)(rows, made(n, k), chosen, weight, groups)
    assert n_ranks == len(np.unique(chosen))
    found = []
    for rank in range(n_ranks):
        of_rank = range(groups.tiles[rank], groups.tiles[rank + 1])
        assert len({int(groups.expert[t]) for t in of_rank}) == 1
        assert all(groups.size[t] == TILE for t in of_rank[:-1])
    assert groups.tiles[n_ranks] == n_tiles <= room.hidden.values.shape[0]
    for tile in range(n_tiles):
        assert 1 <= groups.size[tile] <= TILE
        for pair in range(groups.first[tile], groups.first[tile] + groups.size[tile]):
            found.append((int(groups.expert[tile]), int(groups.row[pair]), groups.share[pair]))
    pairs = [(int(chosen[r, j]), r, weight[r, j]) for r in range(rows) for j in range(k)]
    assert found == sorted(pairs)


def test_a_choice_that_changes_meanwhile_is_not_written_beyond_the_end() -> None:
    """A thread that was held up counts one layer's choice and places another's."""

    class Changing:
        """All rows choose expert 0 while they are counted, and expert 2 from then on."""

        reads = 0

        def __getitem__(self, at: object) -> int:
            self.reads += 1
            return 0 if self.reads <= 6 else 2

    room = make_expert_scratch(config(3, 2, Layer(experts=True)), empty_f32_rows, 3, 1)
    assert room is not None
    weight = np.ones((3, 2), np.float32)
    plain(experts.group)(3, made(3, 2), Changing(), weight, one(room.groups))


def test_layers_know_where_their_matrices_are() -> None:
    plain_layer, with_experts = Layer(), Layer(experts=True)
    shape = config(4, 2, plain_layer, with_experts, with_experts, plain_layer, with_experts)
    packed = dict.fromkeys(("router", "expert_gate_up", "expert_down"))
    arrays = make_expert_arrays(shape, packed)
    assert arrays is not None
    assert arrays.slot.tolist() == [-1, 0, 1, -2, 2]
    assert (arrays.n, arrays.k, arrays.normalised) == (4, 2, False)
