"""What the server counts, beside the counters of Prometheus's own library."""

from __future__ import annotations

import prometheus_client as theirs
import pytest

from tinyllm.api.house.metrics import Count, Times, _Collected


def _text(*metrics: Count | Times) -> list[str]:
    registry = theirs.CollectorRegistry()
    registry.register(_Collected([metric.family() for metric in metrics]))
    return theirs.generate_latest(registry).decode().splitlines()


def _their_text(registry: theirs.CollectorRegistry) -> list[str]:
    """Without the times at which they were made, which ours doesn't tell."""
    lines = theirs.generate_latest(registry).decode().splitlines()
    return [line for line in lines if "_created" not in line]


def test_counts_are_told_as_prometheus_tells_its_own() -> None:
    registry = theirs.CollectorRegistry()
    ours = Count("a", "what", ("x", "y")), Count("b", "nothing yet")
    other = theirs.Counter("a", "what", ["x", "y"], registry=registry)
    theirs.Counter("b", "nothing yet", registry=registry)
    for labels in (("1", "2"), ("1", 'a "quoted"\nline'), ("1", "2")):
        ours[0].add(*labels)
        other.labels(*labels).inc()
    assert 'a_total{x="1",y="2"} 2.0' in _text(*ours)
    assert _text(*ours) == _their_text(registry)


@pytest.mark.parametrize("seconds", [[], [0.5], [0.25, 0.250001, 1, 7, 0, 1e9]])
def test_times_fall_into_the_same_buckets(seconds: list[float]) -> None:
    """A time at a bound belongs below it; every bucket holds those before it."""
    registry = theirs.CollectorRegistry()
    ours = Times("t", "how long", (0.25, 1, 10))
    other = theirs.Histogram("t", "how long", buckets=(0.25, 1, 10), registry=registry)
    for value in seconds:
        ours.add(value)
        other.observe(value)
    assert _text(ours) == _their_text(registry)
