"""What the server counts, for Prometheus. One registry an app: no globals."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from prometheus_client import Metric

    from tinyllm.api.house.service import Service

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_FAST = (0.001, 0.002, 0.004, 0.006, 0.008, 0.012, 0.016, 0.024, 0.032, 0.064, 0.125, 0.25, 0.5, 1)
_SLOW = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """What the API itself counts; the engines' counters are read when asked for.

    All of it is told to Prometheus's library when somebody asks: a server imports that then, and
    not before its first token. From the event loop's thread alone.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self.requests = Count(
            "tinyllm_http_requests", "HTTP requests by route and status",
            ("method", "route", "status"),
        )  # fmt: skip
        self.in_flight = 0
        self.request_seconds = Times(
            "tinyllm_request_seconds", "Time of a completion request, to its last byte", _SLOW
        )
        self.first_token_seconds = Times(
            "tinyllm_time_to_first_token_seconds", "Time from a request's body to its first token",
            _SLOW,
        )  # fmt: skip
        self.token_seconds = Times(
            "tinyllm_time_per_token_seconds", "Mean time between the tokens of a request", _FAST
        )
        self.finished = Count(
            "tinyllm_choices_finished", "Choices by the reason of their end", ("reason",)
        )
        self.tool_decisions = Count(
            "tinyllm_tool_decisions", "tool_choice: auto, by what the model chose", ("choice",)
        )
        self.disconnects = Count(
            "tinyllm_client_disconnects", "Clients that went away before their answer was done"
        )

    def text(self) -> bytes:
        """All of it in Prometheus text format."""
        from prometheus_client import CollectorRegistry, generate_latest
        from prometheus_client.core import GaugeMetricFamily

        in_flight = GaugeMetricFamily(
            "tinyllm_http_requests_in_flight", "HTTP requests being answered", self.in_flight
        )
        own = [mine.family() for mine in vars(self).values() if isinstance(mine, (Count, Times))]
        registry = CollectorRegistry()
        registry.register(_Collected([*own, in_flight, *_Engines(self._service).collect()]))
        return generate_latest(registry)


class Count:
    """A counter for each combination of labels that occurs."""

    def __init__(self, name: str, help: str, labels: Sequence[str] = ()) -> None:
        self._name, self._help, self._labels = name, help, labels
        self._values: dict[tuple[str, ...], int] = {} if labels else {(): 0}

    def add(self, *labels: str) -> None:
        """One more with these labels' values."""
        self._values[labels] = self._values.get(labels, 0) + 1

    def family(self) -> Metric:
        """As Prometheus's library has it."""
        from prometheus_client.core import CounterMetricFamily

        family = CounterMetricFamily(self._name, self._help, labels=self._labels)
        for labels, value in self._values.items():
            family.add_metric(labels, value)
        return family


class Times:
    """A histogram of seconds."""

    def __init__(self, name: str, help: str, bounds: Sequence[float]) -> None:
        self._name, self._help, self._bounds = name, help, bounds
        self._counts = [0] * (len(bounds) + 1)  # up to each bound, and beyond the last
        self._sum = 0.0

    def add(self, seconds: float) -> None:
        """One more."""
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self._sum += seconds

    def family(self) -> Metric:
        """As Prometheus's library has it: each bucket holds those before it."""
        from prometheus_client.core import HistogramMetricFamily
        from prometheus_client.utils import floatToGoString

        bounds = [*map(floatToGoString, self._bounds), "+Inf"]
        buckets = list(zip(bounds, accumulate(self._counts), strict=True))
        return HistogramMetricFamily(self._name, self._help, buckets, self._sum)


class _Collected:
    """Metrics at the moment of a scrape, as a registry takes them."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


class _Engines:
    """Reads every engine's counters at the moment of the scrape."""

    GAUGES: ClassVar = {
        "queue_length": ("tinyllm_queue_length", "Requests that wait"),
        "running": ("tinyllm_requests_running", "Requests that run"),
        "running_choices": ("tinyllm_choices_running", "Choices that are being decoded"),
        "batch_size": ("tinyllm_batch_size", "Sequences in the last step"),
        "step_seconds": ("tinyllm_step_seconds", "Smoothed time of a step"),
        "prefix_entries": ("tinyllm_prefix_cache_entries", "Prompts kept for reuse"),
        "n_pages": ("tinyllm_kv_cache_pages", "Pages of the KV cache"),
        "free_pages": ("tinyllm_kv_cache_pages_free", "Free pages of the KV cache"),
        "kept_for_replay": ("tinyllm_requests_kept", "Requests kept for replay"),
    }
    COUNTERS: ClassVar = {
        "requests": ("tinyllm_requests", "Requests accepted by the engine"),
        "steps": ("tinyllm_steps", "Steps of the engine"),
        "prompt_tokens": ("tinyllm_prompt_tokens", "Prompt tokens"),
        "cached_tokens": ("tinyllm_cached_tokens", "Prompt tokens found in the prefix cache"),
        "generated_tokens": ("tinyllm_generated_tokens", "Tokens generated"),
        "guessed_tokens": ("tinyllm_guessed_tokens", "Tokens run as guesses (lookup decoding)"),
        "kept_guesses": ("tinyllm_kept_guesses", "Guessed tokens that were then drawn"),
        "prefix_lookups": ("tinyllm_prefix_cache_lookups", "Prompts looked up in the prefix cache"),
        "prefix_hits": ("tinyllm_prefix_cache_hits", "Prompts of which some was in it"),
    }

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        engines = [(id, engine.stats()) for id, engine in self._service.engines.items()]
        for field, (name, help) in self.GAUGES.items():
            yield _family(GaugeMetricFamily(name, help, labels=["model"]), engines, field)
        for field, (name, help) in self.COUNTERS.items():
            yield _family(CounterMetricFamily(name, help, labels=["model"]), engines, field)
        dropped = CounterMetricFamily("tinyllm_access_log_dropped", "Log lines that were lost")
        dropped.add_metric([], self._service.access_log.dropped)
        yield dropped
        sessions = GaugeMetricFamily("tinyllm_sessions", "Sessions remembered")
        sessions.add_metric([], len(self._service.sessions))
        yield sessions


def _family(family: Any, engines: list[tuple[str, Any]], field: str) -> Metric:
    for model, stats in engines:
        family.add_metric([model], getattr(stats, field, 0))
    metric: Metric = family
    return metric
