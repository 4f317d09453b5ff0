"""A small team of threads that share one forward pass, and how they synchronise.

All threads run the same function over the same *regions* (a matrix product, an attention, …).
A region is cut into chunks of outputs. Every thread has a share of them, claims its own one by one,
and then claims what is left of the others'; a region is over when its chunks are *done*, not when
every thread has arrived. So a thread that the operating system holds up costs no more than the
chunk it was working on: the others take the rest and go on, and it catches up by finding every
later region claimed. And since a chunk computes whole outputs, who does it can't change a bit.

A counter is one 64-bit word, (job << 24 | count): a new job finds the words of the last one and
takes them for zero, so that nothing needs resetting while a late thread may still look at it.

A job can be timed: each thread then writes down when it came to a region, when it found no more
chunks and when the region was over (`timeline.py` reads that).

The team itself, which Python starts and calls, is `team.py`.

Waiting spins for some microseconds, which is what a region takes when all cores are ours, and then
sleeps for short times, so that the scheduler can give the core to the thread that is waited for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from llvmlite import ir
from numba.core import types as _types
from numba.extending import intrinsic
from numpy.typing import NDArray

from tinyllm.kernels.build import part
from tinyllm.kernels.emit import call
from tinyllm.kernels.processor import JIT
from tinyllm.kernels.team import (
    CAME,
    CHUNKS,
    COUNT_BITS,
    COUNT_MASK,
    DID,
    JOB,
    LEFT,
    N_REGIONS,
    NOTES,
    REGIONS,
    TIMES,
    WORD,
)

# numba is typed in parts, differently from release to release.
types: Any = _types

Array = NDArray[Any]

SPINS = 3000  # polls before sleeping: about 50 microseconds
SLEEP = 50  # microseconds
SLEEPS_BETWEEN_JOBS = 100  # then a helper goes back to Python and sleeps until it is called


# --- atomic operations --------------------------------------------------------------------------


def _operation(plain: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    """Decorate the compiled form of `plain`, which stands in where numba is switched off."""

    def choose(typer: Callable[..., Any]) -> Any:
        typer.__doc__ = plain.__doc__
        return intrinsic(typer) if JIT else plain

    return choose


def _load(words: Array, index: int) -> int:
    """words[index], int64; sequentially consistent, like all of these."""
    return int(words[index])


def _add(words: Array, index: int, amount: int) -> int:
    """words[index] += amount; returns what was there before."""
    words[index] += amount
    return int(words[index]) - amount


def _compare_and_swap(words: Array, index: int, expected: int, new: int) -> int:
    """words[index] = new if it was `expected`; returns what was there."""
    old = int(words[index])
    if old == expected:
        words[index] = new
    return old


def _pause() -> None:
    """Tell the processor that this is a spin loop."""


def _sleep(microseconds: int) -> None:
    """Sleep; a lone thread in plain Python never has to."""
    del microseconds


def _word(context: Any, builder: Any, signature: Any, array: Any, index: Any) -> Any:
    """Pointer to a counter."""
    data = context.make_array(signature.args[0])(context, builder, value=array).data
    return builder.gep(data, [index])


def _clock() -> int:
    """Nanoseconds since some moment, as `time.monotonic_ns`."""
    return time.monotonic_ns()


@_operation(_load)
def atomic_load(typing_context, words, index):  # type: ignore[no-untyped-def]
    del typing_context

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.load_atomic(_word(context, builder, signature, *values), "seq_cst", 8)

    return types.int64(words, index), codegen


@_operation(_add)
def atomic_add(typing_context, words, index, amount):  # type: ignore[no-untyped-def]
    del typing_context

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        word = _word(context, builder, signature, *values[:2])
        return builder.atomic_rmw("add", word, values[2], "seq_cst")

    del amount
    return types.int64(words, index, types.int64), codegen


@_operation(_compare_and_swap)
def compare_and_swap(typing_context, words, index, expected, new):  # type: ignore[no-untyped-def]
    del typing_context, expected, new

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        word = _word(context, builder, signature, *values[:2])
        pair = builder.cmpxchg(word, values[2], values[3], "seq_cst", "seq_cst")
        return builder.extract_value(pair, 0)

    return types.int64(words, index, types.int64, types.int64), codegen


@_operation(_pause)
def pause(typing_context):  # type: ignore[no-untyped-def]
    del typing_context

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        del signature, values
        machine = builder.module.triple.split("-")[0]
        if machine in ("x86_64", "i686"):
            call(builder, "llvm.x86.sse2.pause", ir.VoidType())
        elif machine in ("aarch64", "arm64"):
            yield_hint = ir.Constant(ir.IntType(32), 1)
            call(builder, "llvm.aarch64.hint", ir.VoidType(), yield_hint)
        return context.get_dummy_value()

    return types.void(), codegen


@_operation(_sleep)
def sleep(typing_context, microseconds):  # type: ignore[no-untyped-def]
    del typing_context

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        del signature
        length = builder.trunc(values[0], ir.IntType(32))
        call(builder, "usleep", ir.IntType(32), length)  # the C library's
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@_operation(_clock)
def clock(typing_context):  # type: ignore[no-untyped-def]
    del typing_context
    i32, i64 = ir.IntType(32), ir.IntType(64)

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        del context, signature, values
        # The clocks that Python's is: Linux's CLOCK_MONOTONIC, macOS's CLOCK_UPTIME_RAW.
        which = i32(8) if "darwin" in builder.module.triple else i32(1)
        with builder.goto_entry_block():
            moment = builder.alloca(i64, 2)  # seconds, nanoseconds
        call(builder, "clock_gettime", i32, which, moment)
        seconds, rest = (builder.load(builder.gep(moment, [i32(i)])) for i in range(2))
        return builder.add(builder.mul(seconds, i64(1_000_000_000)), rest)

    return types.int64(), codegen


# --- regions ------------------------------------------------------------------------------------


class Worker(NamedTuple):
    """One thread's place in a job."""

    control: Array
    thread: int
    n_threads: int
    job: int


@part
def _count(word: int, job: int) -> int:
    """How far `job` has counted in this word; a later job's word means: past the end."""
    owner = word >> COUNT_BITS
    if owner == job:
        return word & COUNT_MASK
    return 0 if owner < job else COUNT_MASK


@part
def share(n_chunks: int, thread: int, n_threads: int) -> int:
    """The first of the chunks that are a thread's own; the next thread's first is its end."""
    return n_chunks * thread // n_threads


@part
def next_chunk(worker: Worker, region: int, n_chunks: int) -> int:
    """Claim a chunk of a region: its number, or -1 when all are taken.

    A thread takes its own share first, in order, so that it reads memory in one long run; then what
    the others have left of theirs.
    """
    for i in range(worker.n_threads):
        owner = (worker.thread + i) % worker.n_threads
        first = share(n_chunks, owner, worker.n_threads)
        size = share(n_chunks, owner + 1, worker.n_threads) - first
        index = (REGIONS + (worker.n_threads + 1) * region + owner) * WORD
        word = atomic_load(worker.control, index)
        while True:
            count = _count(word, worker.job)
            if count >= size:
                break
            claim = (worker.job << COUNT_BITS) | (count + 1)
            seen = compare_and_swap(worker.control, index, word, claim)
            if seen == word:
                return first + count
            word = seen
    return -1


@part
def end_region(worker: Worker, region: int, n_chunks: int, mine: int) -> None:
    """Report `mine` chunks as done and wait until all of the region's are."""
    index = (REGIONS + (worker.n_threads + 1) * region + worker.n_threads) * WORD
    word = atomic_load(worker.control, index)
    while mine > 0:
        total = (worker.job << COUNT_BITS) | (_count(word, worker.job) + mine)
        seen = compare_and_swap(worker.control, index, word, total)
        if seen == word:
            break
        word = seen
    spins = 0
    while _count(atomic_load(worker.control, index), worker.job) < n_chunks:
        spins += 1
        if spins < SPINS:
            pause()
        else:
            sleep(SLEEP)


@part  # numba can't load a generator from its cache
def chunks(worker: Worker, region: int, n_chunks: int) -> Iterator[int]:
    """The chunks of a region that fall to this thread; the loop ends when the region is over.

    Raises:
        IndexError: the team was made for fewer regions.
    """
    n_regions, notes = worker.control[N_REGIONS], worker.control[TIMES]
    if region >= n_regions:
        raise IndexError("a job has more regions than its team was made for")
    if notes > 0:
        notes += (worker.thread * n_regions + region) * NOTES
        worker.control[notes + CAME] = clock()
    mine = 0
    chunk = next_chunk(worker, region, n_chunks)
    while chunk >= 0:
        yield chunk
        mine += 1
        chunk = next_chunk(worker, region, n_chunks)
    if notes > 0:
        worker.control[notes + DID] = clock()
    end_region(worker, region, n_chunks, mine)
    if notes > 0:
        worker.control[notes + LEFT] = clock()
        worker.control[notes + CHUNKS] = mine


@part
def next_job(control: Array, thread: int, last: int) -> int:
    """Wait for a job later than `last`; 0 if none comes for some milliseconds.

    Thread 0 brings its job with it: that is `last`.
    """
    if thread == 0:
        return last
    for waits in range(SPINS + SLEEPS_BETWEEN_JOBS):
        job: int = atomic_load(control, JOB * WORD)
        if job > last and job % 2 == 0:
            return job
        if waits < SPINS:
            pause()
        else:
            sleep(SLEEP)
    return 0


@part
def begin(control: Array, thread: int, job: int) -> bool:
    """Start a job as thread 0, whom the others may then join; or join it, if it isn't over."""
    if thread == 0:
        atomic_add(control, JOB * WORD, 1)  # even: it runs
        return True
    return bool(atomic_load(control, JOB * WORD) == job)


@part
def finish(control: Array, thread: int) -> bool:
    """End a job as thread 0, who goes back to Python; others look for the next one."""
    if thread == 0:
        atomic_add(control, JOB * WORD, 1)  # odd: it is over
        return True
    return False
