"""Pictures of a call: bands where they belong, and points under the roof."""

from __future__ import annotations

import pytest

from tinyllm.inside.pictures import SCALE, SERIES
from tinyllm.inside.pictures_of_speed import WAIT, WIDTH, roofline, threads
from tinyllm.kernels.timeline import Span, Timeline


def test_threads() -> None:
    """Half a call of work and a quarter of waiting are as wide as that."""
    timeline = Timeline(1)
    timeline.nanoseconds = 1000
    timeline.spans = [Span(0, "qkv", 3, 0, 500, 750, 1)]
    image = threads(timeline).image
    row = [image.getpixel((x, (56 + 16 + 13) * SCALE)) for x in range(image.width)]
    assert row.count(SERIES[0]) == pytest.approx(WIDTH * SCALE / 2, abs=2)
    assert row.count(WAIT) == pytest.approx(WIDTH * SCALE / 4, abs=2)
    assert threads(timeline, [3]).image.height > image.height


def test_nothing_noted() -> None:
    with pytest.raises(ValueError, match="nothing was timed"):
        threads(Timeline(2))


def test_roofline() -> None:
    """A point for each operation of which it is known what it computes."""
    known = {"operation": "qkv", "operations_per_byte": 4.0, "gop_per_s": 100.0}
    found = {"decode": [known, {"operation": "wait"}], "prefill": [known]}
    assert roofline(found, 5e10, 1e12).told == "2 operations under the roof"
