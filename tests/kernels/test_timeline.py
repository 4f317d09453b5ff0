"""What threads note of a call."""

from __future__ import annotations

import numpy as np
import pytest

from tests.tiny_compiled import tiny_compiled
from tinyllm.kernels.timeline import Span, Timeline, timed


def test_a_call_is_noted_region_by_region() -> None:
    """In order, every chunk once, within the call; and not at all outside of `timed`."""
    model = tiny_compiled("q8")
    cache = model.new_cache()
    model.forward(np.arange(20, dtype=np.int32), cache)
    with timed(model) as timeline:
        alone = model.forward(np.arange(20, dtype=np.int32), cache)
    spans = timeline.of(0)
    layer = ["norm", "qkv", "attention", "out", "norm", "gate_up", "down"]
    names = ["embed", *layer, *layer, "norm", "head"]
    assert [span.operation for span in spans] == names
    assert [span.layer for span in spans] == [None, *[0] * 7, *[1] * 7, None, None]
    moments = [t for span in spans for t in (span.came, span.did, span.left)]
    assert moments == sorted(moments) and moments[0] >= 0 and moments[-1] <= timeline.nanoseconds
    chunks = {
        name: sum(span.chunks for span in timeline.spans if span.operation == name)
        for name in ("embed", "attention")
    }
    # 20 rows are 3 tiles; attention goes by one key head and rows of its 20 tokens, in 2 layers
    assert chunks["embed"] == 3 and chunks["attention"] >= 2
    assert sum(timeline.shares().values()) == pytest.approx(1)

    cache.truncate(20)
    again = model.forward(np.arange(20, dtype=np.int32), cache)
    assert np.array_equal(alone, again)
    assert not model._team.note_times(False).any()


def test_shares_by_hand() -> None:
    """Two threads and 100 ns: what they do, wait, do for themselves, and when they aren't there."""
    timeline = Timeline(2)
    timeline.nanoseconds = 100
    timeline.spans = [
        Span(0, "qkv", 0, 10, 30, 40, 1),
        Span(0, "out", 0, 45, 85, 90, 3),
        Span(1, "out", 0, 60, 80, 90, 1),
    ]
    want = {"wait": 25, "own work": 5, "outside": 10 + 10 + 60 + 10, "qkv": 20, "out": 60}
    assert timeline.shares() == pytest.approx({name: ns / 200 for name, ns in want.items()})
