"""A long run of ordinary and hostile clients: no fault, no leaked slot, no growing memory.

    python -m tests.load.soak --minutes 20

Sixteen clients. Of what they do 20 % is misbehaviour (`--hostile`): broken bodies, leaving before
the answer is done, and the kinds of `tests.load.hostile`, all alike often. Exit status 1 if any of
this is seen: a 5xx other than 503 with Retry-After; a broken body that isn't a 4xx; an ordinary
request that isn't answered; a connection that the server broke (but of who misbehaves); a slot, a
queued request or a page in use after everyone has left; resident memory that grows by 3 % or more
after the first two minutes (a tenth of a short run). Texts that were looked at are kept up to a
budget of bytes, which random looks would take many minutes to fill: so that is done before.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.load import hostile, servers
from tests.load.client import fetch, stream_chat
from tests.load.workload import MIXES, chat_body

PATH = "/v1/chat/completions"
PATIENCE = 240.0  # seconds for one answer; on a machine that is shared it may take long
GAUGES = ("tinyllm_queue_length", "tinyllm_requests_running", "tinyllm_choices_running")

BROKEN = (
    b"",
    b"{",
    b"[]",
    b"null",
    b'"text"',
    b"\xff\xfe{}",
    b'{"model": "smollm2-135m-instruct"}',
    b'{"model": "smollm2-135m-instruct", "messages": []}',
    b'{"model": "smollm2-135m-instruct", "messages": [{"role": "wizard", "content": "x"}]}',
    b'{"model": "smollm2-135m-instruct", "messages": [{"role": "user", "content": 5}]}',
    b'{"model": "no-such-model", "messages": [{"role": "user", "content": "x"}]}',
    b'{"model": "smollm2-135m-instruct", "messages": [{"role": "user", "content": "x"}],'
    b' "temperature": 1e400}',
    b'{"model": "smollm2-135m-instruct", "messages": [{"role": "user", "content": "x"}],'
    b' "max_tokens": -1}',
    b'{"model": "smollm2-135m-instruct", "messages": [{"role": "user", "content": "\\ud800"}]}',
    b'{"a":' * 3000 + b"1" + b"}" * 3000,
)


@dataclass
class Tally:
    """What was seen."""

    statuses: Counter[str] = field(default_factory=Counter)  # "kind status" → count
    faults: list[str] = field(default_factory=list)
    tokens: int = 0
    seconds: list[float] = field(default_factory=list)  # of each ordinary request
    health: list[float] = field(default_factory=list)  # seconds that /health took
    loads: list[float] = field(default_factory=list)  # of the machine, others' work included
    left: dict[str, float] = field(default_factory=dict)  # gauges, after all have gone
    memory: list[tuple[float, int]] = field(default_factory=list)  # seconds, resident bytes

    def see(self, kind: str, status: int, headers: dict[str, str], allowed: range) -> None:
        """Count a response and judge it."""
        self.statuses[f"{kind} {status}"] += 1
        by_rule = status in (429, 503) and "retry-after" in headers
        if status not in allowed and not by_rule:
            self.faults.append(f"{kind}: status {status}")

    def growth(self, warm: float) -> float:
        """Resident memory at the end, relative to that once it was warm."""
        after = [rss for t, rss in self.memory if t >= warm]
        n = max(len(after) // 10, 1)
        return statistics.median(after[-n:]) / statistics.median(after[:n]) - 1


async def sends_nonsense(port: int, rng: random.Random, tally: Tally) -> None:
    """A body that can't be right."""
    status, headers, _ = await fetch(port, "POST", PATH, rng.choice(BROKEN))
    tally.see("broken", status, headers, range(400, 500))


async def leaves(port: int, rng: random.Random, tally: Tally) -> None:
    """Away before the stream is done, some in the middle of the prompt."""
    hang_up = rng.choice((0, 0, 1, 3, 10, 30))
    body = chat_body(MIXES["chat"], rng, 2)
    call = await stream_chat(port, body, hang_up_after=hang_up, timeout=PATIENCE)
    tally.statuses[f"left {call.status}"] += 1


async def misbehave(port: int, rng: random.Random, tally: Tally) -> None:
    """One of the things that strangers do."""
    kind = rng.choice((sends_nonsense, leaves, *hostile.KINDS))
    try:
        if kind in (sends_nonsense, leaves):
            await kind(port, rng, tally)
        else:
            status = await kind(port, rng)
            tally.statuses[f"{kind.__name__} {status or 'gone'}"] += 1
    except Exception as error:
        tally.faults.append(f"{kind.__name__}: {error!r}")


async def ask(port: int, rng: random.Random, tally: Tally) -> None:
    """An ordinary chat, whole or streamed."""
    body = chat_body(MIXES["chat"], rng, 2)
    begin = time.monotonic()
    if rng.random() < 1 / 3:
        data = json.dumps(body).encode()
        status, headers, data = await fetch(port, "POST", PATH, data, timeout=PATIENCE)
        tally.see("whole", status, headers, range(200, 201))
        if status == 200:
            tally.tokens += json.loads(data)["usage"]["completion_tokens"]
    else:
        call = await stream_chat(port, body, timeout=PATIENCE)
        tally.see("streamed", call.status, {"retry-after": ""}, range(200, 201))
        tally.tokens += call.completion_tokens
        if call.error and call.status == 200:
            tally.faults.append(f"an error in a stream: {call.error}")
    tally.seconds.append(time.monotonic() - begin)


async def client(port: int, rng: random.Random, end: float, share: float, tally: Tally) -> None:
    """Ask, in all the ways there are, until the time is up."""
    while time.monotonic() < end:
        if rng.random() < share:
            await misbehave(port, rng, tally)
            continue
        try:
            await ask(port, rng, tally)
        except Exception as error:
            tally.faults.append(f"ordinary: {error!r}")


async def metrics(port: int) -> dict[str, float]:
    """The server's gauges and counters, summed over labels."""
    _, _, text = await fetch(port, "GET", "/metrics")
    values: dict[str, float] = {}
    for line in text.decode().splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            name = name.partition("{")[0]
            values[name] = values.get(name, 0.0) + float(value)
    return values


async def fill_budgets(port: int) -> None:
    """Look at 8,000 tokens of texts: as much is kept, and more."""
    rng = random.Random(0)
    for _ in range(16):
        tokens = [rng.randrange(17, 40_000) for _ in range(500)]
        asked = {"model": hostile.MODEL, "tokens": tokens, "position": 499, "want": {"lens": 1}}
        await fetch(port, "POST", "/v1/look", json.dumps(asked).encode(), PATIENCE)


async def soak(
    server: servers.Server, clients: int, seconds: float, seed: int, share: float = 0.2
) -> Tally:
    """Run it, and look at what is left behind."""
    for kind, side in hostile.PICTURES:  # now: else /health would seem to wait for the encoders
        hostile.encoded(kind, side)
    await fill_budgets(server.port)
    tally = Tally()
    begin = time.monotonic()
    end = begin + seconds

    async def watch() -> None:
        while (now := time.monotonic()) < end:
            tally.memory.append((now - begin, server.rss))
            tally.loads.append(os.getloadavg()[0])
            status, _, _ = await fetch(server.port, "GET", "/health")
            tally.health.append(time.monotonic() - now)
            if status != 200:
                tally.faults.append(f"/health: status {status}")
            await asyncio.sleep(min(1.0, seconds / 100))

    jobs = [
        client(server.port, random.Random(f"{seed}-{i}"), end, share, tally) for i in range(clients)
    ]
    await asyncio.gather(watch(), *jobs)

    for _ in range(50):  # those that have just left are noticed within a step or so
        left = await metrics(server.port)
        tally.left = {name: left[name] for name in GAUGES}
        if not any(tally.left.values()):
            break
        await asyncio.sleep(0.1)
    else:
        tally.faults.append(f"left behind: {tally.left}")
    if server.process.poll() is not None:
        tally.faults.append("the server has died")
    return tally


def _at(values: Sequence[float], share: float) -> float:
    """The value below which that share of them lies."""
    return round(sorted(values)[int(share * (len(values) - 1))], 3)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the soak, print what was seen, and exit with 1 on any fault."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.load.soak", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--hostile", type=float, default=0.2, help="share of misbehaviour")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--server", default="", help="options of the server that is started")
    args = parser.parse_args(argv)
    seconds = 60 * args.minutes
    with servers.tinyllm(*args.server.split()) as server:
        tally = asyncio.run(soak(server, args.clients, seconds, args.seed, args.hostile))
    growth = tally.growth(min(120.0, seconds / 10))
    if growth >= 0.03:
        tally.faults.append(f"resident memory grew by {100 * growth:.1f} %")
    report = {
        "minutes": args.minutes,
        "clients": args.clients,
        "hostile": args.hostile,
        "responses": dict(sorted(tally.statuses.items())),
        "tokens_per_s": round(tally.tokens / seconds, 1),
        "resident_mb": [
            round(rss / 1e6) for _, rss in tally.memory[:: len(tally.memory) // 10 or 1]
        ],
        "ordinary_s": {"median": _at(tally.seconds, 0.5), "p99": _at(tally.seconds, 0.99)},
        "health_s": {"p99": _at(tally.health, 0.99), "largest": _at(tally.health, 1)},
        "load": {"median": _at(tally.loads, 0.5), "largest": _at(tally.loads, 1)},
        "left": tally.left,
        "growth_percent": round(100 * growth, 2),
        "growth_percent_of_second_half": round(100 * tally.growth(seconds / 2), 2),
        "faults": tally.faults[:20],
    }
    print(json.dumps(report, indent=2))
    if tally.faults:
        sys.exit(1)
    return report


if __name__ == "__main__":
    main()
