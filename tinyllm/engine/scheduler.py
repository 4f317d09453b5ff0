"""Who runs, and what the next step of the model carries.

**Continuous batching** (Orca, Yu et al., OSDI 2022). A step is one forward of the model over a
batch of segments. Every choice that is being decoded puts its newest token into every step, so
requests join and leave at step boundaries and never wait for each other to finish.

**Chunked prefill** (Sarathi, Agrawal et al., 2023). A prompt enters in chunks beside the decoding
rows. Their size follows the clock, see `Pace`, so that a long prompt can't hold the others up.

**Lookup decoding** (lookup.py). Where few rows decode, a step verifies guesses beside them.

**Admission.** A request waits until there are rows for its n choices and pages for its worst case
(memory.py). Next is whoever's share (`Request.share`) has the fewest rows; within a share, whoever
came first. Nobody overtakes the one whose turn it is, so a large request waits for room but is
never passed by. Some rows and pages are reserved for shares of which nothing runs yet: so one that
has taken all the others doesn't keep a newcomer waiting until one of its requests ends.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tinyllm.engine.job import NO_GUESSES, Guesses, Job, LiveChoice
from tinyllm.engine.lookup import FULL, MOST_ROWS, PassTime, share_rows

RESERVED_ROWS = 4  # one for so many of max_batch, beyond it
RESERVED_PAGES = 8  # one of so many of the cache budget
OLDEST_EVERY = 4  # steps: the oldest prompt's turn, whatever its length
REMEMBERED = 600  # steps for which a share is expected to come again: about a minute


@dataclass(frozen=True)
class Decode:
    """A choice's newest token, and behind it the guesses that are verified in the same pass."""

    choice: LiveChoice
    guesses: Guesses = NO_GUESSES

    @property
    def job(self) -> Job:
        return self.choice.job


@dataclass(frozen=True)
class Prefill:
    """The next `n_tokens` of a prompt, behind a context of the tokens that are in already."""

    job: Job
    n_tokens: int
    context: int


Work = Decode | Prefill


class Scheduler:
    """The queue, the running jobs, and each step's plan. It touches neither model nor caches.

    Args:
        max_batch: choices that run together at most.
        n_pages: of the cache budget.
        prefill_chunk: prompt tokens a step at most.
        lookup: whether tokens are guessed.
    """

    def __init__(
        self, max_batch: int, n_pages: int, prefill_chunk: int, lookup: bool = False
    ) -> None:
        self.max_batch = max_batch
        self.n_pages = n_pages
        self.pace = Pace(prefill_chunk)
        self._lookup = lookup
        self._pass_time = PassTime()
        self.running: list[Job] = []
        self._waiting: dict[str, deque[Job]] = {}  # by share; served longest ago first
        self._steps = 0
        self._plans = 0
        self._seen: dict[str, int] = {}  # share → the last plan in which something of it ran

    # -- admission ---------------------------------------------------------------------------

    @property
    def waiting(self) -> list[Job]:
        """Everyone who waits."""
        return [job for queue in self._waiting.values() for job in queue]

    def add(self, job: Job) -> None:
        """Put a job at the end of its share's queue."""
        self._waiting.setdefault(job.share, deque()).append(job)

    def remove(self, job: Job) -> None:
        """Take a job out, wherever it is."""
        if job in self.running:
            self.running.remove(job)
            return
        queue = self._waiting[job.share]
        queue.remove(job)
        if not queue:
            del self._waiting[job.share]

    def admit(self) -> Iterator[Job]:
        """Move jobs from the queue to `running` while the next one fits."""
        while self._waiting:
            rows: dict[str, int] = dict.fromkeys(self._waiting, 0)
            for job in self.running:
                if job.share in rows:
                    rows[job.share] += job.n_slots
            share = min(rows, key=rows.__getitem__)  # ties: the share served longest ago
            job = self._waiting[share][0]
            if not self._fits(job):
                return
            queue = self._waiting.pop(share)
            queue.popleft()
            if queue:
                self._waiting[share] = queue  # to the end: it was just served
            self.running.append(job)
            yield job

    @property
    def has_waiting(self) -> bool:
        """Whether anybody waits."""
        return bool(self._waiting)

    @property
    def free_rows(self) -> int:
        """Rows of a step that nobody has, and that aren't reserved for newcomers."""
        return max(0, self.max_batch - sum(job.n_slots for job in list(self.running)))

    def _fits(self, job: Job) -> bool:
        n_rows = job.n_slots + sum(other.n_slots for other in self.running)
        n_pages = job.pages + sum(other.pages for other in self.running)
        if any(other.share == job.share for other in self.running):
            n_for_all = self.n_pages - self.n_pages // RESERVED_PAGES
            return n_rows <= self.max_batch and n_pages <= n_for_all
        reserved = self.max_batch // RESERVED_ROWS
        return n_rows <= self.max_batch + reserved and n_pages <= self.n_pages

    # -- the next step -----------------------------------------------------------------------

    def plan(self, open_prompt: Callable[[Job], bool]) -> list[Work]:
        """What the next step carries; empty when there is nothing to do.

        `open_prompt` gives a job its cache, as late as possible: a prompt that waited for a
        chunk finds what its neighbours have cached meanwhile. False: it had to be given up.
        """
        choices = [choice for job in self.running for choice in job.live]
        decodes = [Decode(choice) for choice in choices]
        prompts = [job for job in self.running if not job.choices]
        decoding = Counter(choice.job.share for choice in choices)
        shared = self._is_shared()
        budget = self.pace.prefill_tokens(len(decodes), 0, shared) if prompts else 0
        if budget:
            self._steps += 1
        prefills: list[Work] = []
        taken, newcomer = 0, False
        while taken < budget and prompts:
            # Shares that nothing is decoded of go first: else a flood of short prompts is always
            # ahead of somebody's longer one. Among equals the shortest first gives the earliest
            # answers; the oldest can't be starved by it.
            oldest = self._steps % OLDEST_EVERY == 0 and not prefills
            if oldest:
                job = min(prompts, key=lambda j: j.order)
            else:
                job = min(prompts, key=lambda j: (decoding[j.share], j.n_left))
            if newcomer and decoding[job.share]:
                break  # its first token comes out of a step that nobody else makes longer
            prompts.remove(job)
            if job.prompt_cache is None and not open_prompt(job):
                continue
            context = len(job.ids) - job.n_left
            budget = min(budget, self.pace.prefill_tokens(len(decodes), context, shared))
            if taken < budget:
                n_tokens = job.uncut(min(job.n_left, budget - taken))
                taken += n_tokens
                newcomer |= bool(decodes) and not decoding[job.share]
                prefills.append(Prefill(job, n_tokens, context))
        if self._lookup and not prefills and 0 < len(decodes) < FULL:
            return self._with_guesses(choices)
        return [*decodes, *prefills]

    def _is_shared(self) -> bool:
        """Whether several shares ask: then one of them may come in the middle of a step."""
        self._plans += 1
        self._seen.update((job.share, self._plans) for job in self.running)
        if len(self._seen) > 1:
            oldest = self._plans - REMEMBERED
            self._seen = {share: plan for share, plan in self._seen.items() if plan > oldest}
        return len(self._seen) > 1

    def _with_guesses(self, choices: Sequence[LiveChoice]) -> list[Work]:
        """The choices' newest tokens, and as many guesses as should save time."""
        guesses = [choice.guesses(MOST_ROWS) for choice in choices]
        counts = share_rows([g.odds for g in guesses], self._pass_time, MOST_ROWS)
        return [
            Decode(choice, g.first(n))
            for choice, g, n in zip(choices, guesses, counts, strict=True)
        ]

    def observe(self, plan: Sequence[Work], seconds: float) -> None:
        """Learn from a step that was run."""
        prefills = [work for work in plan if isinstance(work, Prefill)]
        decodes = [work for work in plan if isinstance(work, Decode)]
        n_prefill = sum(work.n_tokens for work in prefills)
        n_guesses = sum(len(work.guesses.tokens) for work in decodes)
        if not prefills:
            self._pass_time.observe(len(decodes) + n_guesses, seconds)
        if not n_guesses:
            context = sum(work.n_tokens * work.context for work in prefills) / max(n_prefill, 1)
            self.pace.observe(len(decodes), n_prefill, seconds, context)


class Pace:
    """How many prompt tokens a step may carry, so that no stream waits for long.

    A usual step is one that only decodes, with as many rows; what is promised is that a prompt
    makes none longer by more than three of them. A chunk of n tokens behind a context of c adds

        price · (n + CHUNK) · (1 + c / FAR)

    since attention looks at all of the context for each token, and has to fetch it once however
    few tokens there are. The price is learnt from the steps that are run: quickly when it turns
    out higher, slowly when it turns out lower. Nothing but speed depends on the chunks, since the
    model gives the same bits whatever they are (and the tests compare them).

    Where nothing is decoded a chunk is whole; but 256 tokens far into a context take seconds, and
    whoever comes meanwhile waits for them. So among several shares a chunk costs as much as SHARED
    tokens at a context's start.
    """

    STRETCH = 2.4  # what a mixed step should take, in usual steps; four are promised
    CHUNK = 2.0  # what a chunk costs by itself, in tokens
    FAR = 850.0  # tokens of context that double a token's price
    SHARED = 40  # tokens: less than a tenth of a second
    FIRST = 4  # tokens, as long as the price isn't known
    REFRESH = 32  # mixed steps, after which one goes without prefill to measure again

    def __init__(self, max_chunk: int) -> None:
        self.max_chunk = max_chunk
        self._usual: dict[int, float] = {}  # rows → seconds of a step that only decodes
        self._price: float | None = None  # seconds
        self._mixed_steps = 0
        self._tried = 0  # the most tokens that a step has had

    def prefill_tokens(self, n_decoding: int, context: int = 0, shared: bool = False) -> int:
        """Tokens for the next step of a prompt with `context` before them, beside so many rows.

        `shared`: whether somebody else may come meanwhile.
        """
        room = max(self.max_chunk - n_decoding, 1)  # all rows of a step fit one pass of the model
        if not n_decoding:
            return (
                max(1, min(room, int(self.SHARED / (1 + context / self.FAR)))) if shared else room
            )
        if n_decoding not in self._usual or self._mixed_steps >= self.REFRESH:
            return 0
        if self._price is None:
            return min(self.FIRST, room)
        spare = (self.STRETCH - 1) * self._usual[n_decoding]
        price = self._price * (1 + context / self.FAR)
        n_tokens = int(spare / price - self.CHUNK) if price else room
        return max(1, min(n_tokens, room, 2 * self._tried + 2))  # no leap far past it

    def observe(
        self, n_decoding: int, n_prefill: int, seconds: float, context: float = 0.0
    ) -> None:
        """Learn from a step that was run; `context` is the mean of its prompt tokens'."""
        if not n_decoding:
            return
        usual = self._usual.get(n_decoding, seconds)
        if not n_prefill:
            # Down at once and up slowly: what a step takes when nothing else is in its way.
            self._usual[n_decoding] = usual + (0.1 if seconds > usual else 0.5) * (seconds - usual)
            self._mixed_steps = 0
            return
        self._mixed_steps += 1
        self._tried = max(self._tried, n_prefill)
        size = (n_prefill + self.CHUNK) * (1 + context / self.FAR)
        price = max(seconds - usual, 0.0) / size
        before = price if self._price is None else self._price
        if before:
            price = min(price, 2 * before)  # a step that something else held up isn't the rule
        self._price = before + (0.5 if price > before else 0.1) * (price - before)
