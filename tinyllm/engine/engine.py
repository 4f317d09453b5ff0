"""The engine: one thread that owns the model and turns requests into streams of events.

`submit` may be called from any thread. All else happens on the engine's own, step by step: take in
what arrived, let go of what was cancelled, ask the scheduler what the next step carries, run the
model on it, draw the tokens, tell the listeners.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from tinyllm.engine.caches import Caches
from tinyllm.engine.drawing import begin_choices, draw_token
from tinyllm.engine.forward import forward, score_prompt, segment_of
from tinyllm.engine.intake import Intake, check_limits
from tinyllm.engine.job import NO_GUESSES, Guesses, Job, LiveChoice, Ticket
from tinyllm.engine.memory import cache_memory
from tinyllm.engine.outcome import Collector, Outcome
from tinyllm.engine.replay import Recording, ReplayResult, ReplayStore, compare, rerun
from tinyllm.engine.sampling import RowScratch
from tinyllm.engine.scheduler import Decode, Scheduler, Work
from tinyllm.engine.stats import Counters, EngineStats, snapshot
from tinyllm.engine.types import (
    Done,
    Draining,
    Event,
    Finished,
    FinishReason,
    Guess,
    QueueFull,
    Request,
    Started,
)
from tinyllm.engine.waiting import NoPlace, Places
from tinyllm.errors import CacheFull
from tinyllm.runner import Runner, Segment
from tinyllm.sampler import Logits

log = logging.getLogger(__name__)


class Engine:
    """Serves many requests with one model.

    Args:
        runner: the model; the engine's thread is the only one that uses it.
        max_batch: choices that are decoded together at most.
        max_queue: requests that may wait; more are refused with QueueFull, or another share's give
            place ("crowded out"), see waiting.py.
        kv_cache_mb: memory for caches, where the runner has no page pool of its own.
        prefill_chunk: prompt tokens a step at most. It bounds how late a cancellation is noticed.
        prefix_cache: reuse the caches of finished requests.
        lookup: guess tokens, where the runner gives them the same bits in any batch.
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
        lookup: bool = True,
        keep_replays: int = 256,
    ) -> None:
        check_limits(
            max_batch=(max_batch, 1),
            max_queue=(max_queue, 0),
            kv_cache_mb=(kv_cache_mb, 1),
            prefill_chunk=(prefill_chunk, 1),
            keep_replays=(keep_replays, 0),
        )
        self.runner = runner
        self.max_queue = max_queue
        memory = cache_memory(runner, kv_cache_mb)
        # What a request can use: the context, or less where the budget is smaller.
        self.n_ctx = min(runner.config.max_seq_len, memory.n_pages * memory.page_size)
        self._intake = Intake(runner.config.vocab_size, max_batch, self.n_ctx, memory)
        self._caches = Caches(memory, keep=prefix_cache)
        lookup = lookup and runner.batch_invariant
        self._scheduler = Scheduler(max_batch, memory.n_pages, prefill_chunk, lookup)
        self._replays = ReplayStore(keep_replays)
        self._scratch = RowScratch(runner.config.vocab_size)
        self._counters = Counters()
        self._orders = 0
        self._outbox: list[tuple[Job, Event]] = []
        self._changed = threading.Condition()  # guards the fields below
        self._inbox: deque[Job] = deque()
        self._places = Places(max_queue)  # of those in the inbox or in the scheduler's queue
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

    def check_place(self, share: str) -> None:
        """Raises QueueFull if a request of that share would be refused, before it is prepared."""
        with self._changed:
            try:
                self._places.check(share, about_to_run=self._scheduler.free_rows)
            except NoPlace:
                raise QueueFull(self._retry_after()) from None

    def submit(self, request: Request, on_event: Callable[[Event], None]) -> Ticket:
        """Queue a request. `on_event` is called on the engine's thread and must not block.

        Raises:
            QueueFull: `max_queue` requests wait already.
            Draining: the engine is shutting down.
            PromptTooLong: the prompt fits neither the context nor the cache budget.
            ValueError: an empty prompt, a token outside the vocabulary, n or max_tokens out of
                range.
        """
        job = self._intake.job(request, on_event)
        with self._changed:
            if self._draining:
                raise Draining("the engine is shutting down and takes no new requests")
            # Those who are about to find a free row don't count as waiting.
            try:
                self._places.take(job, about_to_run=self._scheduler.free_rows)
            except NoPlace:
                raise QueueFull(self._retry_after()) from None
            job.order = self._orders
            self._orders += 1
            self._n_open += 1
            self._counters.requests += 1
            self._inbox.append(job)
            self._changed.notify_all()
        return Ticket(job, self._wake)

    def run(self, request: Request, timeout: float | None = None) -> Outcome:
        """Submit a request and wait for the whole of it; TimeoutError gives it up."""
        collector = Collector(request.n)
        ticket = self.submit(request, collector)
        try:
            return collector.wait(timeout)
        except BaseException:
            ticket.cancel()
            raise

    def replay(self, request_id: str, key: str, timeout: float | None = None) -> ReplayResult:
        """Run a kept request again, from a cold start, and compare every bit. Blocks.

        Raises NotKept, TimeoutError, and what `submit` raises.
        """
        recording = self.recording(request_id, key)
        return compare(recording, self.run(rerun(recording), timeout))

    def recording(self, request_id: str, key: str) -> Recording:
        """A kept request and what came of it; NotKept if there is none of that key's."""
        return self._replays.get(request_id, key)

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
        return snapshot(
            self._counters,
            self._caches,
            running=list(self._scheduler.running),
            n_waiting=len(self._places),
            kept_for_replay=len(self._replays),
            draining=self._draining,
        )

    def _retry_after(self) -> float:
        """Seconds until a place in the queue should be free."""
        rounds = (len(self._places) + 1) / self._scheduler.max_batch
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
        self._caches.prefixes.clear()
        self._deliver()

    def _has_work(self) -> bool:
        return bool(self._scheduler.running or self._scheduler.has_waiting)

    def step(self) -> bool:
        """One round of the loop; False when there was nothing to run."""
        started = time.perf_counter()
        self._take_in()
        self._drop_lost()
        for job in self._scheduler.admit():
            with self._changed:
                self._places.leave(job)
            job.admitted = started
            if not job.max_tokens and job.request.score_from is None:
                self._tell(job, Started(len(job.ids), 0))
                self._end_job(job, "length")
        plan = self._scheduler.plan(self._open_prompt)
        for choice, logits, guesses in self._forward(plan):
            if choice.reason is None:  # its request may have failed a moment ago
                self._draw(choice, logits, guesses)
        if plan:
            seconds = time.perf_counter() - started
            self._scheduler.observe(plan, seconds)
            self._counters.steps += 1
            self._counters.batch_size = len(plan)
            self._counters.step_seconds += 0.05 * (seconds - self._counters.step_seconds)
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
            elif job.crowded_out:
                self._end_job(job, "crowded out")
            elif job.request.deadline is not None and now > job.request.deadline:
                self._end_job(job, "timeout")

    # -- the model -----------------------------------------------------------------------------

    def _open_prompt(self, job: Job) -> bool:
        """Give a job its cache; False if it had to be given up."""
        try:
            job.prompt_cache, job.cached_tokens = self._caches.open(job, self._scheduler.running)
        except CacheFull as error:
            self._end_job(job, "error", str(error))
            return False
        self._counters.prefix_lookups += 1
        self._counters.prefix_hits += job.cached_tokens > 0
        return True

    def _forward(self, plan: Sequence[Work]) -> list[tuple[LiveChoice, Logits, Guesses]]:
        """Run a step; returns the choices that can draw, with their logits (1 + guesses, vocab)."""
        batch: list[tuple[Work, Segment]] = []
        for work in plan:
            if work.job.over:  # an earlier row of it may have failed
                continue
            segment = segment_of(work)
            try:
                self._caches.reserve(segment.cache, len(segment.tokens))
            except CacheFull as error:
                self._end_job(work.job, "error", str(error))
                continue
            batch.append((work, segment))
        batch = [(work, segment) for work, segment in batch if not work.job.over]
        results = forward(self.runner, [segment for _, segment in batch])
        ready: list[tuple[LiveChoice, Logits, Guesses]] = []
        for (work, _), logits in zip(batch, results, strict=True):
            if work.job.over:
                continue
            if isinstance(logits, Exception):
                self._end_job(work.job, "error", f"the model failed: {logits}")
            elif isinstance(work, Decode):
                ready.append((work.choice, logits, work.guesses))
            else:
                score_prompt(work, logits)
                if not work.job.n_left:
                    choices = self._begin_decoding(work.job)
                    ready.extend((choice, logits[-1:], NO_GUESSES) for choice in choices)
        return ready

    def _begin_decoding(self, job: Job) -> list[LiveChoice]:
        """The prompt is in: fork its cache for each choice."""
        cache = job.prompt_cache
        assert cache is not None
        caches = [cache]
        try:
            for _ in range(1, job.request.n):
                caches.append(self._caches.fork(cache))
            job.choices = begin_choices(job, caches, self._scratch)
        except Exception as error:  # no page is left, or the guide can't be made
            for fork in caches[1:]:
                self._caches.memory.free(fork)
            problem = str(error) if isinstance(error, CacheFull) else f"the guide failed: {error}"
            self._end_job(job, "error", problem)
            return []
        job.prompt_cache = None
        self._counters.prompt_tokens += len(job.ids)
        self._counters.cached_tokens += job.cached_tokens
        scores, tops = tuple(job.prompt_logprobs), tuple(job.prompt_top)
        self._tell(job, Started(len(job.ids), job.cached_tokens, scores, tops))
        if not job.max_tokens:  # it was to be scored alone
            self._end_job(job, "length")
            return []
        return job.choices

    # -- tokens ----------------------------------------------------------------------------------

    def _draw(self, choice: LiveChoice, logits: Logits, guesses: Guesses) -> None:
        """Draw a choice's next tokens, one from each row of logits (1 + guesses, vocab).

        As far as what is drawn was guessed, that is, for each row is that of the text before it.
        """
        self._counters.guessed_tokens += len(guesses.tokens)
        for i, row in enumerate(logits):
            guess = guesses.at(i)
            self._draw_one(choice, row, guess)
            kept = guess is not None and choice.tokens[-1:] == [guess.token]
            self._counters.kept_guesses += kept
            if not kept or choice.reason is not None:
                break
        if choice.cache is not None and choice.cache.length > choice.n_seen:
            choice.cache.truncate(choice.n_seen)

    def _draw_one(self, choice: LiveChoice, logits: Logits, guess: Guess | None) -> None:
        """Draw a choice's next token, tell it, and end the choice when that was the last."""
        try:
            token, is_last = draw_token(choice, logits, self._scratch, guess)
        except Exception as error:  # a guide that raises, or one that allows nothing
            log.warning("request %s failed: %r", choice.job.request.id, error)
            self._end_job(choice.job, "error", str(error))
            return
        self._counters.generated_tokens += 1
        self._tell(choice.job, token)
        if is_last:
            self._end_choice(choice, "stop")
        elif len(choice.tokens) >= choice.job.max_tokens:
            self._end_choice(choice, "length")
        if not choice.job.live:
            self._end_job(choice.job, "stop")

    def _end_choice(self, choice: LiveChoice, reason: FinishReason, message: str = "") -> None:
        """Close one choice and give its cache to the prefix store."""
        choice.reason = reason
        cache, choice.cache = choice.cache, None
        if cache is not None:
            cache.truncate(min(cache.length, choice.n_seen))  # guesses that weren't drawn
            n_drawn = cache.length - len(choice.job.ids)
            ids = np.concatenate([choice.job.ids, np.array(choice.tokens[:n_drawn], np.int64)])
            self._caches.give_back(choice.job.request.key, ids, cache, reason != "error")
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
                ids = job.ids[: cache.length]
                self._caches.give_back(job.request.key, ids, cache, reason != "error")
            for index in range(job.request.n):
                self._counters.finished[reason] += 1
                self._tell(job, Finished(index, reason, message))
        self._scheduler.remove(job)
        self._replays.note(job)
        if job.admitted is None:
            with self._changed:
                self._places.leave(job)
        else:
            seconds = time.perf_counter() - job.admitted
            self._counters.request_seconds += 0.1 * (seconds - self._counters.request_seconds)
        self._tell(job, Done())

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
