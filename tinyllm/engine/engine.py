"""The engine: one thread that owns the model and turns requests into streams of events.

`submit` may be called from any thread. Everything else happens on the engine's own, step by
step: take in what arrived, let go of what was cancelled, ask the scheduler what the next step
carries, run the model on it, draw the tokens, tell the listeners.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tinyllm.engine.job import Choice, Job
from tinyllm.engine.memory import cache_memory
from tinyllm.engine.outcome import Answer, Collector, Outcome
from tinyllm.engine.prefix import PrefixCache, common_prefix
from tinyllm.engine.replay import Recording, ReplayResult, ReplayStore, compare
from tinyllm.engine.sampling import CompiledSampler, RowScratch, look, top_logprobs
from tinyllm.engine.scheduler import Decode, Prefill, Scheduler, Work
from tinyllm.engine.types import (
    Done,
    Draining,
    Event,
    Finished,
    FinishReason,
    PromptTooLong,
    QueueFull,
    Request,
    Started,
    Token,
)
from tinyllm.errors import CacheFull
from tinyllm.kv_cache import Cache
from tinyllm.runner import Runner, Segment
from tinyllm.sampler import Logits, log_normalizer

log = logging.getLogger(__name__)


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
    prefix_lookups: int
    prefix_hits: int
    prefix_entries: int
    n_pages: int
    free_pages: int
    page_size: int
    kept_for_replay: int
    draining: bool


@dataclass
class _Counters:
    steps: int = 0
    step_seconds: float = 0.0
    batch_size: int = 0
    requests: int = 0
    finished: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    prefix_lookups: int = 0
    prefix_hits: int = 0
    request_seconds: float = 1.0  # smoothed time that a request runs


class Ticket:
    """The handle of a submitted request."""

    def __init__(self, engine: Engine, job: Job) -> None:
        self._engine = engine
        self._job = job

    def cancel(self) -> None:
        """Give the request up; its slot is free within a step. Safe from any thread, twice too."""
        self._job.cancelled = True
        self._engine._wake()


class Engine:
    """Serves many requests with one model.

    Args:
        runner: the model; the engine's thread is the only one that uses it.
        max_batch: choices that are decoded together at most.
        max_queue: requests that may wait; more are refused with QueueFull.
        kv_cache_mb: memory for caches, where the runner has no page pool of its own.
        prefill_chunk: prompt tokens a step at most. It bounds how late a cancellation is noticed.
        prefix_cache: reuse the caches of finished requests.
        keep_replays: how many requests are kept for replay; 0 keeps none.
    """

    def __init__(
        self,
        runner: Runner,
        *,
        max_batch: int = 16,
        max_queue: int = 64,
        kv_cache_mb: int = 512,
        prefill_chunk: int = 256,
        prefix_cache: bool = True,
        keep_replays: int = 256,
    ) -> None:
        for name, value, least in (
            ("max_batch", max_batch, 1),
            ("max_queue", max_queue, 0),
            ("kv_cache_mb", kv_cache_mb, 1),
            ("prefill_chunk", prefill_chunk, 1),
            ("keep_replays", keep_replays, 0),
        ):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, not {value}")
        self.runner = runner
        self.max_queue = max_queue
        self._memory = cache_memory(runner, kv_cache_mb)
        # What a request can use: the context, or less where the budget is smaller.
        self.n_ctx = min(runner.config.max_seq_len, self._memory.n_pages * self._memory.page_size)
        self._scheduler = Scheduler(max_batch, self._memory.n_pages, prefill_chunk)
        self._use_prefixes = prefix_cache
        self._prefixes = PrefixCache(self._memory)
        self._replays = ReplayStore(keep_replays)
        self._scratch = RowScratch(runner.config.vocab_size)
        self._counters = _Counters()
        self._orders = 0
        self._outbox: list[tuple[Job, Event]] = []

        self._changed = threading.Condition()  # guards the fields below
        self._inbox: deque[Job] = deque()
        self._n_waiting = 0  # in the inbox or in the scheduler's queue
        self._n_open = 0  # accepted and not yet Done
        self._draining = False
        self._stopping = False
        self._thread: threading.Thread | None = None

    # -- from any thread ---------------------------------------------------------------------

    def start(self) -> None:
        """Start the engine's thread; requests may have been submitted before."""
        with self._changed:
            if self._thread is not None:
                raise RuntimeError("the engine has been started already")
            self._thread = threading.Thread(target=self._run, name="tinyllm-engine", daemon=True)
        self._thread.start()

    def submit(self, request: Request, on_event: Callable[[Event], None]) -> Ticket:
        """Queue a request. `on_event` is called on the engine's thread and must not block.

        Raises:
            QueueFull: `max_queue` requests wait already.
            Draining: the engine is shutting down.
            PromptTooLong: the prompt fits neither the context nor the cache budget.
            ValueError: an empty prompt, a token outside the vocabulary, n or max_tokens out of
                range.
        """
        return self._submit(request, on_event, reuse=True)

    def run(self, request: Request, timeout: float | None = None) -> Outcome:
        """Submit a request and wait for the whole of it; TimeoutError gives it up."""
        return self._run_whole(request, timeout, reuse=True)

    def replay(self, request_id: str, key: str, timeout: float | None = None) -> ReplayResult:
        """Run a kept request again, from a cold start, and compare every bit. Blocks.

        Raises NotKept, TimeoutError, and what `submit` raises.
        """
        recording = self._replays.get(request_id, key)
        outcome = self._run_whole(self._replays.rerun(recording), timeout, reuse=False)
        return compare(recording, outcome)

    def drain(self) -> None:
        """Take no new requests from now on; those accepted go on."""
        with self._changed:
            self._draining = True
            self._changed.notify_all()

    def stop(self, drain_timeout: float = 0.0) -> None:
        """Drain, wait up to `drain_timeout` seconds, then cancel what still runs, and end.

        A second call, from another thread, with a shorter time cuts the first one short.
        """
        self.drain()
        deadline = time.monotonic() + drain_timeout
        with self._changed:
            while self._n_open and not self._stopping and self._thread is not None:
                left = deadline - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    break
            self._stopping = True
            self._changed.notify_all()
            thread = self._thread
        if thread is None:
            self._close()
        elif thread is not threading.current_thread():
            thread.join()

    def stats(self) -> EngineStats:
        """How it is doing. Cheap, and safe from any thread."""
        counters, scheduler = self._counters, self._scheduler
        running = list(scheduler.running)
        return EngineStats(
            queue_length=self._n_waiting,
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
            prefix_lookups=counters.prefix_lookups,
            prefix_hits=counters.prefix_hits,
            prefix_entries=len(self._prefixes),
            n_pages=self._memory.n_pages,
            free_pages=self._memory.free_pages,
            page_size=self._memory.page_size,
            kept_for_replay=len(self._replays),
            draining=self._draining,
        )

    def _submit(self, request: Request, on_event: Callable[[Event], None], reuse: bool) -> Ticket:
        job = self._make_job(request, on_event, reuse)
        with self._changed:
            if self._draining:
                raise Draining("the engine is shutting down and takes no new requests")
            # Those who are about to find a free row don't count as waiting.
            if self._n_waiting - self._scheduler.free_rows >= self.max_queue:
                raise QueueFull(self._retry_after())
            job.order = self._orders
            self._orders += 1
            self._n_waiting += 1
            self._n_open += 1
            self._counters.requests += 1
            self._inbox.append(job)
            self._changed.notify_all()
        return Ticket(self, job)

    def _make_job(self, request: Request, on_event: Callable[[Event], None], reuse: bool) -> Job:
        n_prompt = len(request.prompt.tokens)
        if not n_prompt:
            raise ValueError("prompt: it has no tokens")
        low, high = int(request.prompt.tokens.min()), int(request.prompt.tokens.max())
        if low < 0 or high >= self.runner.config.vocab_size:
            raise ValueError(f"prompt: token {low if low < 0 else high} is not in the vocabulary")
        if request.score_from is not None and request.score_from < 1:
            raise ValueError(f"score_from must be at least 1, not {request.score_from}")
        if request.max_tokens < 0:
            raise ValueError(f"max_tokens must be at least 0, not {request.max_tokens}")
        if not 1 <= request.n <= self._scheduler.max_batch:
            raise ValueError(f"n must be 1 … {self._scheduler.max_batch}, not {request.n}")
        if n_prompt > self.n_ctx:
            raise PromptTooLong(n_prompt, self.n_ctx)
        # What doesn't fit behind the prompt ends with "length", as at the end of the context.
        room = min(self.n_ctx - n_prompt, self._memory.max_tokens(n_prompt, request.n))
        if room < 0:
            raise PromptTooLong(n_prompt, self.n_ctx // request.n)
        if request.params.seed is None:
            request = replace(request, params=replace(request.params, seed=secrets.randbits(63)))
        max_tokens = min(request.max_tokens, room)
        return Job(
            request=request,
            on_event=on_event,
            max_tokens=max_tokens,
            pages=self._memory.worst_case(n_prompt, max_tokens, request.n) if max_tokens else 0,
            order=0,
            ids=request.prompt.match_ids(),
            reuse=reuse and self._use_prefixes,
        )

    def _run_whole(self, request: Request, timeout: float | None, reuse: bool) -> Outcome:
        collector = Collector(request.n)
        ticket = self._submit(request, collector, reuse)
        try:
            return collector.wait(timeout)
        except BaseException:
            ticket.cancel()
            raise

    def _retry_after(self) -> float:
        """Seconds until a place in the queue should be free."""
        rounds = (self._n_waiting + 1) / self._scheduler.max_batch
        return max(1.0, rounds * self._counters.request_seconds)

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    # -- on the engine's thread ----------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._inbox and not self._stopping and not self._has_work():
                    self._changed.wait()
                if self._stopping:
                    break
            try:
                self.step()
            except Exception:  # a fault of ours: no request may take the others down
                log.exception("a step failed; its requests are given up")
                for job in list(self._scheduler.running):
                    with contextlib.suppress(Exception):
                        self._end_job(job, "error", "internal error")
                self._deliver()
        self._close()

    def _close(self) -> None:
        """Cancel all that is left and give every page back."""
        self._take_in()
        for job in [*self._scheduler.running, *self._scheduler.waiting]:
            self._end_job(job, "cancelled")
        self._prefixes.clear()
        self._deliver()

    def _has_work(self) -> bool:
        return bool(self._scheduler.running or self._n_waiting)

    def step(self) -> bool:
        """One round of the loop; False when there was nothing to run."""
        started = time.perf_counter()
        self._take_in()
        self._drop_lost()
        for job in self._scheduler.admit():
            with self._changed:
                self._n_waiting -= 1
            job.admitted = started
            if not job.max_tokens:
                self._tell(job, Started(len(job.ids), 0))
                self._end_job(job, "length")
        plan = self._scheduler.plan(self._open_prompt)
        for choice, logits in self._forward(plan):
            if choice.reason is None:  # its request may have failed a moment ago
                self._draw(choice, logits)
        if plan:
            self._observe(plan, time.perf_counter() - started)
        self._deliver()
        return bool(plan)

    def _take_in(self) -> None:
        """Move what arrived into the scheduler's queue."""
        with self._changed:
            arrived = list(self._inbox)
            self._inbox.clear()
        for job in arrived:
            self._scheduler.add(job)

    def _drop_lost(self) -> None:
        """Let go of jobs that were cancelled or are past their deadline."""
        now = time.monotonic()
        for job in [*self._scheduler.running, *self._scheduler.waiting]:
            if job.cancelled:
                self._end_job(job, "cancelled")
            elif job.request.deadline is not None and now > job.request.deadline:
                self._end_job(job, "timeout")

    def _observe(self, plan: Sequence[Work], seconds: float) -> None:
        prefills = [work for work in plan if isinstance(work, Prefill)]
        n_prefill = sum(work.n_tokens for work in prefills)
        context = sum(work.n_tokens * work.context for work in prefills) / max(n_prefill, 1)
        self._scheduler.pace.observe(len(plan) - len(prefills), n_prefill, seconds, context)
        counters = self._counters
        counters.steps += 1
        counters.batch_size = len(plan)
        counters.step_seconds += 0.05 * (seconds - counters.step_seconds)

    # -- the model -----------------------------------------------------------------------------

    def _open_prompt(self, job: Job) -> bool:
        """Give a job its cache: a fork of the longest prefix that is cached, or an empty one."""
        capacity = len(job.ids) + max(job.max_tokens - 1, 0)
        while True:
            source, length = self._longest_prefix(job)
            try:
                if source is None:
                    job.prompt_cache = self._memory.new(capacity)
                else:
                    job.prompt_cache = self._memory.fork(source, length, capacity)
                break
            except CacheFull as error:
                if not self._prefixes.evict():
                    self._end_job(job, "error", str(error))
                    return False
        job.cached_tokens = length
        self._counters.prefix_lookups += 1
        self._counters.prefix_hits += length > 0
        return True

    def _longest_prefix(self, job: Job) -> tuple[Cache | None, int]:
        """The cache, finished or running, that shares most with a job's prompt, and how much."""
        if not job.reuse:
            return None, 0
        # The last token is always computed: the answer starts from its logits. So are those whose
        # successors are to be scored.
        last = len(job.ids) if job.request.score_from is None else job.request.score_from
        ids = job.ids[: last - 1]
        source, length = self._prefixes.find(job.request.key, ids)
        for other in self._scheduler.running:
            live = other.live
            cache = live[0].cache if live else other.prompt_cache
            if cache is not None and other.request.key == job.request.key:
                shared = common_prefix(other.ids[: cache.length], ids)
                if shared > length:
                    source, length = cache, shared
        return source, length

    def _reserve(self, job: Job, cache: Cache, n_tokens: int) -> bool:
        """Room for a step's tokens; what is kept for later gives way to what runs."""
        while True:
            try:
                self._memory.reserve(cache, n_tokens)
                return True
            except CacheFull as error:
                if not self._prefixes.evict():  # only if others use the runner's pool as well
                    self._end_job(job, "error", str(error))
                    return False

    def _forward(self, plan: Sequence[Work]) -> list[tuple[Choice, Logits]]:
        """Run a step; returns the choices that can draw a token, with their logits (vocab,)."""
        ready: list[tuple[Choice, Logits]] = []
        batch: list[tuple[Work, Segment]] = []
        for item in plan:
            if not item.job.over:  # an earlier row of it may have failed
                segment = _segment(item)
                if self._reserve(item.job, segment.cache, len(segment.tokens)):
                    batch.append((item, segment))
        batch = [(item, segment) for item, segment in batch if not item.job.over]
        results = self._run_model(batch)
        for (item, _), logits in zip(batch, results, strict=True):
            if logits is None or item.job.over:
                continue
            if isinstance(item, Decode):
                ready.append((item.choice, logits[-1]))
                continue
            _score_prompt(item, logits)
            if not item.job.n_left:
                ready.extend((choice, logits[-1]) for choice in self._begin_decoding(item.job))
        return ready

    def _run_model(
        self, batch: Sequence[tuple[Work, Segment]]
    ) -> Sequence[NDArray[np.float32] | None]:
        """The logits of each segment; None for those whose request had to be given up."""
        if not batch:
            return []
        lengths = [segment.cache.length for _, segment in batch]
        try:
            return self.runner.forward_batch([segment for _, segment in batch])
        except Exception:
            log.exception("a forward of %d segments failed; trying them one by one", len(batch))
        for (_, segment), length in zip(batch, lengths, strict=True):
            segment.cache.truncate(min(length, segment.cache.length))
        results: list[NDArray[np.float32] | None] = []
        for item, segment in batch:
            if item.job.over:
                results.append(None)
                continue
            try:
                results.extend(self.runner.forward_batch([segment]))
            except Exception as error:
                results.append(None)
                self._end_job(item.job, "error", f"the model failed: {error}")
        return results

    def _begin_decoding(self, job: Job) -> list[Choice]:
        """The prompt is in: fork its cache for each choice."""
        cache = job.prompt_cache
        assert cache is not None
        caches = [cache]
        try:
            for _ in range(1, job.request.n):
                caches.append(self._fork_for_choice(cache))
        except CacheFull as error:
            for fork in caches[1:]:
                self._memory.free(fork)
            self._end_job(job, "error", str(error))
            return []
        job.prompt_cache = None
        make_guide = job.request.guide
        try:
            guides = [make_guide(i) if make_guide else None for i in range(job.request.n)]
        except Exception as error:
            guides = None
            problem = f"the guide failed: {error}"
        job.choices = [
            Choice(
                job=job,
                index=i,
                sampler=CompiledSampler(job.request.params, i, self._scratch),
                guide=guides[i] if guides else None,
                cache=caches[i],
            )
            for i in range(job.request.n)
        ]
        if guides is None:
            self._end_job(job, "error", problem)
            return []
        self._counters.prompt_tokens += len(job.ids)
        self._counters.cached_tokens += job.cached_tokens
        scores = tuple(job.prompt_logprobs)
        self._tell(job, Started(len(job.ids), job.cached_tokens, scores))
        return job.choices

    def _fork_for_choice(self, cache: Cache) -> Cache:
        while True:
            try:
                return self._memory.fork(cache, cache.length, cache.capacity)
            except CacheFull:
                if not self._prefixes.evict():
                    raise

    # -- tokens ----------------------------------------------------------------------------------

    def _draw(self, choice: Choice, logits: Logits) -> None:
        """Draw a choice's next token, tell it, and end the choice when that was the last."""
        request = choice.job.request
        try:
            forced = choice.guide.forced() if choice.guide else None
            allowed = choice.guide.allowed() if choice.guide and forced is None else None
            pick = choice.sampler.pick(logits, allowed, forced)
            k = request.top_logprobs
            top = top_logprobs(logits, k, self._scratch) if k else []
            trace = request.trace
            seen = look(trace, logits, choice.sampler, allowed, pick) if trace else None
            complete = choice.guide.accept(pick.token) if choice.guide else False
        except Exception as error:  # a guide that raises, or one that allows nothing
            log.warning("request %s failed: %r", request.id, error)
            self._end_job(choice.job, "error", str(error))
            return
        choice.tokens.append(pick.token)
        choice.logprobs.append(pick.logprob)
        self._counters.generated_tokens += 1
        self._tell(choice.job, Token(choice.index, pick.token, pick.logprob, top, seen))
        if complete or pick.token in request.stop_ids:
            self._end_choice(choice, "stop")
        elif len(choice.tokens) >= choice.job.max_tokens:
            self._end_choice(choice, "length")
        if not choice.job.live:
            self._end_job(choice.job, "stop")

    def _end_choice(self, choice: Choice, reason: FinishReason, message: str = "") -> None:
        """Close one choice and give its cache to the prefix store."""
        choice.reason = reason
        cache, choice.cache = choice.cache, None
        if cache is not None:
            n_drawn = cache.length - len(choice.job.ids)
            ids = np.concatenate([choice.job.ids, np.array(choice.tokens[:n_drawn], np.int64)])
            self._give_back(choice.job, ids, cache, reason)
        self._counters.finished[reason] += 1
        self._tell(choice.job, Finished(choice.index, reason, message))

    def _end_job(self, job: Job, reason: FinishReason, message: str = "") -> None:
        """Close a job: every choice that is still open ends with `reason`."""
        if job.over:
            return
        job.over = True
        for choice in job.live:
            self._end_choice(choice, reason, message)
        if not job.choices:  # still waiting, or in prefill
            cache, job.prompt_cache = job.prompt_cache, None
            if cache is not None:
                self._give_back(job, job.ids[: cache.length], cache, reason)
            for index in range(job.request.n):
                self._counters.finished[reason] += 1
                self._tell(job, Finished(index, reason, message))
        self._scheduler.remove(job)
        self._record(job)
        if job.admitted is None:
            with self._changed:
                self._n_waiting -= 1
        else:
            seconds = time.perf_counter() - job.admitted
            self._counters.request_seconds += 0.1 * (seconds - self._counters.request_seconds)
        self._tell(job, Done())

    def _give_back(
        self, job: Job, ids: NDArray[np.int64], cache: Cache, reason: FinishReason
    ) -> None:
        """A cache that isn't needed any more: keep it for its prefix, or free it."""
        if self._use_prefixes and reason != "error":
            self._prefixes.put(job.request.key, ids, cache)
        else:
            self._memory.free(cache)

    def _record(self, job: Job) -> None:
        """Keep a request that ran to its end, if it asked for that."""
        if not job.request.keep or not all(c.reason in ("stop", "length") for c in job.choices):
            return
        answers = tuple(Answer(c.tokens, c.logprobs, c.reason) for c in job.choices)
        if answers:
            self._replays.put(Recording(replace(job.request, keep=False), answers))

    # -- listeners -------------------------------------------------------------------------------

    def _tell(self, job: Job, event: Event) -> None:
        """Have an event delivered at the end of the step."""
        self._outbox.append((job, event))

    def _deliver(self) -> None:
        """Hand the step's events over. By now what they say is true: slots and pages are free."""
        outbox, self._outbox = self._outbox, []
        for job, event in outbox:
            try:
                job.on_event(event)
            except Exception:  # nobody listens any more
                log.exception("the listener of request %s failed", job.request.id)
                job.cancelled = True
            if isinstance(event, Done):
                with self._changed:
                    self._n_open -= 1
                    self._changed.notify_all()


def _segment(work: Work) -> Segment:
    """The piece of a batch that a plan's item stands for."""
    if isinstance(work, Decode):
        cache = work.choice.cache
        assert cache is not None
        return Segment(np.array(work.choice.tokens[-1:], np.int32), cache)
    cache, prompt = work.job.prompt_cache, work.job.request.prompt
    assert cache is not None
    start, stop = cache.length, cache.length + work.n_tokens
    positions, rows = prompt.images_between(start, stop)
    return Segment(
        np.ascontiguousarray(prompt.tokens[start:stop], np.int32),
        cache,
        _wanted_logits(work, stop),
        positions,
        rows,
    )


def _wanted_logits(work: Prefill, stop: int) -> Literal["last", "all", "none"]:
    """Which rows of logits a chunk of a prompt that ends before position `stop` needs."""
    request = work.job.request
    if request.score_from is not None and stop >= request.score_from:
        return "all"
    return "last" if stop == len(request.prompt.tokens) else "none"


def _score_prompt(work: Prefill, logits: NDArray[np.float32]) -> None:
    """Note how likely the model found the prompt's own tokens, from `score_from` on."""
    first, tokens = work.job.request.score_from, work.job.request.prompt.tokens
    if first is None or len(logits) < work.n_tokens or work.job.prompt_cache is None:
        return
    stop = work.job.prompt_cache.length  # the chunk is in by now
    for position in range(max(first, stop - work.n_tokens + 1), min(stop + 1, len(tokens))):
        row = logits[position - 1 - stop]  # what followed the token before
        work.job.prompt_logprobs.append(float(row[tokens[position]]) - log_normalizer(row))
