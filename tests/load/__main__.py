"""Throughput and latencies under 1, 4, 16 and 64 streaming clients, beside a peer.

    python -m tests.load --seconds 20 --peer llama-server=PATH --peer-model FILE.gguf

The servers run at the same time but are loaded in turns, level by level and round by round, so
that a busy hour of the machine hits both. Figures are medians over the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from tests.load import servers
from tests.load.client import Call, stream_chat
from tests.load.workload import MIXES, Mix, chat_body

WARM_UP = 0.15  # of a window, left out of the figures


@dataclass
class Figures:
    """One window of load. Seconds; percentiles are (p50, p95, p99)."""

    server: str
    clients: int
    tokens_per_s: float  # generated
    prompt_tokens_per_s: float
    first_token: tuple[float, float, float]
    between_tokens: tuple[float, float, float]
    requests: int
    refused: int
    failed: int


def percentiles(values: Sequence[float]) -> tuple[float, float, float]:
    """p50, p95, p99."""
    ordered = sorted(values) or [float("nan")]
    p50, p95, p99 = (
        ordered[min(int(len(ordered) * q), len(ordered) - 1)] for q in (0.5, 0.95, 0.99)
    )
    return p50, p95, p99


async def load(
    name: str, port: int, clients: int, seconds: float, mix: Mix, seed: int, eos_id: int
) -> Figures:
    """Keep `clients` streams going for a while; each asks again as soon as it is answered."""
    calls: list[Call] = []
    begin = time.perf_counter()
    end = begin + seconds

    async def client(number: int) -> None:
        rng = random.Random(f"{seed}-{clients}-{number}")
        while time.perf_counter() < end:
            call = Call(time.perf_counter(), status=-1)
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                call = await stream_chat(port, chat_body(mix, rng, eos_id))
            calls.append(call)
            if call.status != 200:
                await asyncio.sleep(0.2)

    await asyncio.gather(*(client(i) for i in range(clients)))

    warm = begin + WARM_UP * seconds
    good = [c for c in calls if c.status == 200 and c.arrivals and not c.error]
    tokens = prompt_tokens = 0.0
    for call in good:  # a piece is about a token; usage says how many they were exactly
        inside = sum(warm <= t <= end for t in call.arrivals)
        tokens += inside * call.completion_tokens / len(call.arrivals)
        if warm <= call.arrivals[0] <= end:
            prompt_tokens += call.prompt_tokens - call.cached_tokens
    timed = [c for c in good if warm <= c.arrivals[0] <= end]
    return Figures(
        server=name,
        clients=clients,
        tokens_per_s=tokens / (end - warm),
        prompt_tokens_per_s=prompt_tokens / (end - warm),
        first_token=percentiles([c.first for c in timed]),
        between_tokens=percentiles([gap for c in timed for gap in c.gaps]),
        requests=len(good),
        refused=sum(c.status in (429, 503) for c in calls),
        failed=sum(c.status not in (200, 429, 503) or bool(c.error) for c in calls)
        - sum(c.status in (429, 503) for c in calls if c.error),
    )


def summary(rounds: Sequence[Figures]) -> Figures:
    """The median of each figure."""
    middle = {
        name: tuple(map(statistics.median, zip(*values, strict=True)))
        if isinstance(values[0], tuple)
        else statistics.median(values)
        for name in asdict(rounds[0])
        if name not in ("server", "clients")
        for values in [[getattr(r, name) for r in rounds]]
    }
    return Figures(server=rounds[0].server, clients=rounds[0].clients, **middle)  # type: ignore[arg-type]


def table(rows: Sequence[Figures]) -> str:
    """A Markdown table, times in milliseconds."""
    lines = [
        "| server | clients | tokens/s | prompt tokens/s | first token ms p50 / p95 / p99 "
        "| between tokens ms p50 / p95 / p99 | requests | refused | failed |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        first = " / ".join(f"{1e3 * s:,.0f}" for s in row.first_token)
        between = " / ".join(f"{1e3 * s:,.1f}" for s in row.between_tokens)
        lines.append(
            f"| {row.server} | {row.clients} | {row.tokens_per_s:,.0f} "
            f"| {row.prompt_tokens_per_s:,.0f} | {first} | {between} "
            f"| {row.requests:g} | {row.refused:g} | {row.failed:g} |"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> list[Figures]:
    """Run the load and print the table; returns the medians."""
    parser = argparse.ArgumentParser(prog="python -m tests.load", description=__doc__)
    parser.add_argument("--port", type=int, help="load a server that runs already")
    parser.add_argument("--server", default="", help="options of the server that is started")
    parser.add_argument("--clients", default="1,4,16,64", help="levels, with commas between")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each window")
    parser.add_argument("--rounds", type=int, default=3, help="windows of each level")
    parser.add_argument("--mix", choices=sorted(MIXES), default="chat")
    parser.add_argument("--eos-id", type=int, default=2, help="token that is kept from ending")
    parser.add_argument("--peer", help="llama-server=PATH: measured beside ours, in turns")
    parser.add_argument("--peer-model", help="the peer's GGUF file, of the same bits")
    parser.add_argument("--peer-threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    args = parser.parse_args(argv)
    levels = [int(n) for n in args.clients.split(",")]

    with contextlib.ExitStack() as stack:
        targets = []
        if args.port:
            targets.append(("tinyllm", args.port))
        else:
            server = stack.enter_context(servers.tinyllm(*args.server.split()))
            targets.append((server.name, server.port))
        if args.peer:
            _, _, binary = args.peer.partition("=")
            if not args.peer_model:
                parser.error("--peer needs --peer-model")
            peer = stack.enter_context(
                servers.llama_server(binary, args.peer_model, 16, args.peer_threads)
            )
            targets.append((peer.name, peer.port))
        medians = []
        for clients in levels:
            rounds: dict[str, list[Figures]] = {name: [] for name, _ in targets}
            for number in range(args.rounds):
                for name, port in targets:
                    job = load(
                        name, port, clients, args.seconds, MIXES[args.mix], number, args.eos_id
                    )
                    rounds[name].append(asyncio.run(job))
                    print(rounds[name][-1], file=sys.stderr, flush=True)
            medians += [summary(r) for r in rounds.values()]
    print(json.dumps([asdict(m) for m in medians]) if args.json else table(medians))
    return medians


if __name__ == "__main__":
    main()
