"""What `tinyllm bench --profile` counts; never how long it takes."""

from __future__ import annotations

import pytest

from tests.tiny_compiled import tiny_compiled
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
