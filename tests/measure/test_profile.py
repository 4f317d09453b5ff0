"""What `tinyllm bench --profile` counts; never how long it takes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.tiny_compiled import tiny_compiled
from tinyllm.families.parts import Experts
from tinyllm.kernels.layout import Q8
from tinyllm.measure.profile import profile, work


def test_work_by_hand() -> None:
    """32 inputs a row; two heads of 16, one of keys; q8: 34 bytes a group, two byte products."""
    model = tiny_compiled("q8")
    done = work(model, rows=4, behind=10)
    blocks = model.arrays.qkv.values.shape[1]
    assert done["qkv"].nbytes == 2 * blocks * 544
    assert done["qkv"].operations == 2 * 2 * 2 * blocks * 16 * 32 * 4
    heads = model.config.n_heads * model.config.head_dim
    assert done["attention"].operations == 4 * 2 * heads * (11 + 12 + 13 + 14)


def test_work_of_experts_by_hand() -> None:
    """Two layers of 4 experts, 2 a row, 32 wide, and one layer without; 64 inputs."""
    experts = SimpleNamespace(
        gate_up=Q8(np.zeros((8, 4, 2, 544), np.uint8)), down=Q8(np.zeros((8, 4, 1, 544), np.uint8))
    )
    plain = Q8(np.zeros((1, 6, 2, 544), np.uint8))
    arrays = SimpleNamespace(qkv=plain, out=plain, head=plain, gate_up=plain, down=None,
                             experts=experts)  # fmt: skip
    config = SimpleNamespace(dim=64, hidden_dim=48, n_layers=3, n_heads=2, head_dim=32,
                             experts=Experts(4, 2, 32, "softmax"))  # fmt: skip
    pool = SimpleNamespace(page_nbytes=64, page_size=64)
    model: Any = SimpleNamespace(config=config, arrays=arrays, dtype="q8", pool=pool)
    one, many = work(model, rows=1, behind=0), work(model, rows=3, behind=0)
    assert one["gate_up"].nbytes == 6 * 2 * 544 + 8 * 4 * 2 * 544 // 2
    assert many["gate_up"].nbytes == 6 * 2 * 544 + 8 * 4 * 2 * 544  # six choices among four
    assert one["down"].nbytes == 8 * 4 * 544 // 2
    assert one["down"].operations == 2 * 2 * 2 * 2 * 64 * 32  # two layers, two experts each
    assert many["down"].operations == 3 * one["down"].operations


def test_profile() -> None:
    model = tiny_compiled("q8")
    found = profile(model, context=8, rounds=1, limits={"bandwidth": 1e10, "peak": 1e12})
    assert set(found) == {"decode", "prefill"} and found["decode"]["tokens"] == 1
    for call in found.values():
        assert sum(one["share"] for one in call["operations"]) == pytest.approx(1)
        times = [one["microseconds"] for one in call["operations"]]
        assert times == sorted(times, reverse=True)
        assert sum(times) == pytest.approx(call["microseconds"])
    assert "share_of_roof" in next(
        one for one in found["decode"]["operations"] if one["operation"] == "qkv"
    )
