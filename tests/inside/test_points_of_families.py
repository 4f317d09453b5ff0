"""Hook points of every family: those that it has, and no others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.golden.families import load_goldens, tokens, write_checkpoint
from tinyllm.config import ModelConfig
from tinyllm.errors import HookError
from tinyllm.inside.points import hook_points, match_names
from tinyllm.model import Model
from tinyllm.weights import load_weights

GOLDENS = load_goldens()


@pytest.mark.parametrize("name", GOLDENS)
def test_a_forward_meets_the_points_that_are_listed(name: str, tmp_path: Path) -> None:
    write_checkpoint(GOLDENS[name], tmp_path)
    config = ModelConfig.from_folder(tmp_path)
    model = Model(config, load_weights(tmp_path, config))
    met: dict[str, tuple[int, ...]] = {}

    def tap(point: str, array: np.ndarray) -> np.ndarray:
        met[point] = array.shape
        return array

    model.forward(tokens(7), model.new_cache(7), tap=tap)
    points = hook_points(config)
    assert list(met) == [point.name for point in points]
    for point in points:
        assert met[point.name] == point.shape(config, 7, 7), point.name
        assert not point.tensor or point.tensor in model.weights, point.name


def test_a_part_that_a_family_lacks_is_named() -> None:
    config = ModelConfig.from_hf(GOLDENS["gpt2"].config)
    with pytest.raises(HookError, match=r"this .* has no such part"):
        match_names(config, "blocks.0.attn.hook_rot_q")
