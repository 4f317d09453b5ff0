"""How the engine is doing: the counters it keeps, and the snapshot that others see."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from tinyllm.engine.caches import Caches
from tinyllm.engine.job import Job


@dataclass(frozen=True)
class EngineStats:
    """A snapshot. Counters run from the start of the engine; times are in seconds."""

    queue_length: int  # requests that wait
    running: int  # requests that run
    running_choices: int  # rows that the running requests take
    prefilling: int  # requests whose prompt is being taken in
    batch_size: int  # segments of the last step
    steps: int
    step_seconds: float  # smoothed time of a step
    requests: int  # accepted
    finished: dict[str, int]  # choices by finish reason
    prompt_tokens: int  # of requests whose prefill is over
    cached_tokens: int  # of those, found in the prefix cache
    generated_tokens: int
    guessed_tokens: int  # run as guesses, see lookup.py
    kept_guesses: int  # of those, that were drawn
    prefix_lookups: int
    prefix_hits: int
    prefix_entries: int
    n_pages: int
    free_pages: int
    page_size: int
    kept_for_replay: int
    draining: bool


@dataclass
class Counters:
    """Counted on the engine's thread, from its start."""

    steps: int = 0
    step_seconds: float = 0.0
    batch_size: int = 0
    requests: int = 0
    finished: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    guessed_tokens: int = 0
    kept_guesses: int = 0
    prefix_lookups: int = 0
    prefix_hits: int = 0
    request_seconds: float = 1.0  # smoothed time that a request runs


def snapshot(
    counters: Counters,
    caches: Caches,
    *,
    running: Sequence[Job],
    n_waiting: int,
    kept_for_replay: int,
    draining: bool,
) -> EngineStats:
    """All of it at this moment; from any thread, so sums may be a step apart."""
    memory = caches.memory
    return EngineStats(
        queue_length=n_waiting,
        running=len(running),
        running_choices=sum(job.n_slots for job in running),
        prefilling=sum(not job.choices for job in running),
        batch_size=counters.batch_size,
        steps=counters.steps,
        step_seconds=counters.step_seconds,
        requests=counters.requests,
        finished=dict(counters.finished),
        prompt_tokens=counters.prompt_tokens,
        cached_tokens=counters.cached_tokens,
        generated_tokens=counters.generated_tokens,
        guessed_tokens=counters.guessed_tokens,
        kept_guesses=counters.kept_guesses,
        prefix_lookups=counters.prefix_lookups,
        prefix_hits=counters.prefix_hits,
        prefix_entries=len(caches.prefixes),
        n_pages=memory.n_pages,
        free_pages=memory.free_pages,
        page_size=memory.page_size,
        kept_for_replay=kept_for_replay,
        draining=draining,
    )
