"""What the server counts, for Prometheus. One registry an app: no globals."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

if TYPE_CHECKING:
    from tinyllm.api.house.service import Service

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_FAST = (0.001, 0.002, 0.004, 0.006, 0.008, 0.012, 0.016, 0.024, 0.032, 0.064, 0.125, 0.25, 0.5, 1)
_SLOW = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """The counters that the API itself keeps; those of the engines are read when asked for."""

    def __init__(self, service: Service) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "tinyllm_http_requests", "HTTP requests by route and status",
            ["method", "route", "status"], registry=registry,
        )  # fmt: skip
        self.in_flight = Gauge(
            "tinyllm_http_requests_in_flight", "HTTP requests being answered", registry=registry
        )
        self.request_seconds = Histogram(
            "tinyllm_request_seconds", "Time of a completion request, to its last byte",
            buckets=_SLOW, registry=registry,
        )  # fmt: skip
        self.first_token_seconds = Histogram(
            "tinyllm_time_to_first_token_seconds", "Time from a request's body to its first token",
            buckets=_SLOW, registry=registry,
        )  # fmt: skip
        self.token_seconds = Histogram(
            "tinyllm_time_per_token_seconds", "Mean time between the tokens of a request",
            buckets=_FAST, registry=registry,
        )  # fmt: skip
        self.finished = Counter(
            "tinyllm_choices_finished", "Choices by the reason of their end", ["reason"],
            registry=registry,
        )  # fmt: skip
        self.tool_decisions = Counter(
            "tinyllm_tool_decisions", "tool_choice: auto, by what the model chose", ["choice"],
            registry=registry,
        )  # fmt: skip
        self.disconnects = Counter(
            "tinyllm_client_disconnects", "Clients that went away before their answer was done",
            registry=registry,
        )  # fmt: skip
        registry.register(_Engines(service))

    def text(self) -> bytes:
        """All of it in Prometheus text format."""
        return generate_latest(self.registry)


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

    def describe(self) -> Iterable[Metric]:
        """Nothing ahead of time: the engines may still be loading."""
        return []

    def collect(self) -> Iterator[Metric]:
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
