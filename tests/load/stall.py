"""What a 4,000-token prompt does to the next token of a stream that is being decoded.

    python -m tests.load.stall

One stream decodes; then a long prompt arrives and is taken in beside it. The time between the
stream's tokens is shown as a histogram for both phases, in units of the stream's usual step. That
is its median while nothing else runs; and since a stream's steps get longer with its own context,
it is taken before the prompt came and again after it, and between them on the line that joins the
two. The promise: the prompt delays no token by more than three usual steps, so no gap is longer
than four. Prints the same for the engine called directly (`--direct`), where no socket or client
blurs it.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from tests.load import servers
from tests.load.client import Call, stream_chat
from tests.load.workload import WORDS
from tinyllm.engine.engine import Engine
from tinyllm.engine.types import Event, Prompt, Request, Token
from tinyllm.lm import load
from tinyllm.sampler import SamplingParams

EDGES = (0.0, 0.5, 0.9, 1.1, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0, float("inf"))


@dataclass
class Stall:
    """The time between a stream's tokens, before and beside a long prompt."""

    streams: int
    before: float  # the usual step, in seconds
    after: float  # the same once the prompt was in
    alone: list[float]  # gaps before the prompt, in usual steps
    beside: list[float]  # gaps while it was being taken in, in the usual steps of their time
    prefill_seconds: float
    prompt_tokens: int

    def text(self) -> str:
        """The two histograms side by side."""
        lines = [
            f"{self.streams} stream(s), usual step {1e3 * self.before:.2f} ms, after the prompt "
            f"{1e3 * self.after:.2f} ms; prompt of {self.prompt_tokens} tokens taken in within "
            f"{self.prefill_seconds:.2f} s",
            f"{'usual steps':>14}  {'alone':>7}  {'beside the prompt':>18}",
        ]
        for low, high in pairwise(EDGES):
            counts = [sum(low <= gap < high for gap in gaps) for gaps in (self.alone, self.beside)]
            bar = "#" * round(40 * counts[1] / max(len(self.beside), 1))
            lines.append(f"{low:>6.1f} … {high:<5.1f}  {counts[0]:>7}  {counts[1]:>7}  {bar}")
        for name, gaps in (("alone", self.alone), ("beside", self.beside)):
            ordered = sorted(gaps)
            p99 = ordered[int(0.99 * (len(ordered) - 1))]
            lines.append(f"{name}: p99 {p99:.2f}, largest {ordered[-1]:.2f} usual steps")
        return "\n".join(lines)


def long_prompt(n_tokens: int, seed: int) -> str:
    """About `n_tokens` of words (of the vocabulary used here nearly every word is one token)."""
    rng = random.Random(seed)
    return " ".join(rng.choice(WORDS) for _ in range(n_tokens))


def judge(
    arrivals: Sequence[Sequence[float]], begin: float, end: float, prompt_tokens: int
) -> Stall:
    """What a prompt that was taken in from `begin` to `end` did to streams of such arrivals."""
    gaps = [(b, b - a) for times in arrivals for a, b in pairwise(times[2:])]
    alone = [gap for at, gap in gaps if at <= begin]
    before = statistics.median(alone)
    # A gap that spans the end of the prompt is neither beside it nor after it.
    after = statistics.median([gap for at, gap in gaps if at - gap >= end])

    def usual(at: float) -> float:
        return before + (after - before) * (at - begin) / (end - begin)

    return Stall(
        streams=len(arrivals),
        before=before,
        after=after,
        alone=[gap / before for gap in alone],
        beside=[gap / usual(at) for at, gap in gaps if begin < at <= end],
        prefill_seconds=end - begin,
        prompt_tokens=prompt_tokens,
    )


async def over_http(port: int, streams: int, n_tokens: int, seed: int) -> Stall:
    """Measure through a server."""

    def body(text: str, max_tokens: int) -> dict[str, object]:
        return {
            "model": "smollm2-135m-instruct",
            "messages": [{"role": "user", "content": text}],
            "max_tokens": max_tokens,
            "logit_bias": {"2": -100},
        }

    calls = [Call() for _ in range(streams)]
    decoding = [
        asyncio.create_task(
            stream_chat(
                port,
                body(f"Count to a thousand. {seed} {i}", min(4000, 16_000 // streams)),
                call=call,
            )
        )
        for i, call in enumerate(calls)
    ]
    await asyncio.sleep(2.0)
    begin = time.perf_counter()
    prompt = await stream_chat(port, body(long_prompt(n_tokens, seed), 2))
    end = prompt.arrivals[0]
    await asyncio.sleep(1.0)
    if any(task.done() for task in decoding):
        raise RuntimeError(f"a stream ended too early: {[c.error for c in calls]}")
    for task in decoding:
        task.cancel()
    await asyncio.gather(*decoding, return_exceptions=True)
    return judge([c.arrivals for c in calls], begin, end, prompt.prompt_tokens)


def directly(engine: Engine, streams: int, n_tokens: int, seed: int) -> Stall:
    """Measure at the engine: the times at which it hands tokens out."""
    rng = np.random.default_rng(seed)
    params = SamplingParams(temperature=0)
    arrivals: list[list[float]] = [[] for _ in range(streams)]

    def prompt(length: int) -> Prompt:
        return Prompt(rng.integers(100, engine.runner.config.vocab_size, length).astype(np.int32))

    length = min(4000, 16_000 // streams)
    tickets = []
    for i in range(streams):

        def listen(event: Event, times: list[float] = arrivals[i]) -> None:
            if isinstance(event, Token):
                times.append(time.perf_counter())

        tickets.append(engine.submit(Request(f"s{seed}-{i}", prompt(20), params, length), listen))
    time.sleep(2.0)
    begin = time.perf_counter()
    engine.run(Request(f"long{seed}", prompt(n_tokens), params, 1))
    end = time.perf_counter()
    time.sleep(1.0)
    for ticket in tickets:
        ticket.cancel()
    return judge(arrivals, begin, end, n_tokens)


def main(argv: Sequence[str] | None = None) -> list[Stall]:
    """Print the histograms; returns what was measured."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.load.stall", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--streams", default="1,4,15", help="levels, with commas between")
    parser.add_argument("--prompt-tokens", type=int, default=4000)
    parser.add_argument("--direct", action="store_true", help="the engine without a server")
    parser.add_argument("--dtype", default="q8")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--server", default="", help="options of the server that is started")
    args = parser.parse_args(argv)
    levels = [int(n) for n in args.streams.split(",")]
    if args.direct:
        lm = load("smollm2-135m-instruct", dtype=args.dtype, backend="compiled",
                  threads=args.threads)  # fmt: skip
        lm.runner.pool.claim_memory(1 << 30)  # all: as in a server that has run for a while
        engine = Engine(lm.runner)
        engine.start()
        stalls = [directly(engine, n, args.prompt_tokens, n) for n in levels]
        engine.stop()
    else:
        with servers.tinyllm(*args.server.split()) as server:
            stalls = [asyncio.run(over_http(server.port, n, args.prompt_tokens, n)) for n in levels]
    print("\n\n".join(stall.text() for stall in stalls))
    return stalls


if __name__ == "__main__":
    main()
