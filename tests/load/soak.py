"""A long run of ordinary and hostile clients: no fault, no leaked slot, no growing memory.

    python -m tests.load.soak --minutes 20

Sixteen clients. Of their requests 10 % go away before the answer is done (some at once, in
prefill), 10 % send a broken body, 5 % a prompt that no context holds. Exit status 1 if any of
this is seen: a 5xx other than 503 with Retry-After; a broken body that isn't a 4xx; a connection
that the server broke; a slot, a queued request or a page in use after everyone has left; resident
memory that grows by 3 % or more after the first two minutes (a tenth of a short run).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.load import servers
from tests.load.client import fetch, stream_chat
from tests.load.workload import MIXES, WORDS, chat_body

PATH = "/v1/chat/completions"

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


async def client(port: int, rng: random.Random, end: float, tally: Tally) -> None:
    """Ask, in all the ways there are, until the time is up."""
    while time.monotonic() < end:
        dice = rng.random()
        try:
            if dice < 0.10:
                hang_up = rng.choice((0, 0, 1, 3, 10, 30))
                body = chat_body(MIXES["chat"], rng, 2)
                call = await stream_chat(port, body, hang_up_after=hang_up, timeout=120)
                tally.statuses[f"left {call.status}"] += 1
            elif dice < 0.20:
                status, headers, _ = await fetch(port, "POST", PATH, rng.choice(BROKEN))
                tally.see("broken", status, headers, range(400, 500))
            elif dice < 0.25:
                words = " ".join(rng.choice(WORDS) for _ in range(12_000))
                body = {"model": "smollm2-135m-instruct", "max_tokens": 5,
                        "messages": [{"role": "user", "content": words}]}  # fmt: skip
                status, headers, _ = await fetch(port, "POST", PATH, json.dumps(body).encode())
                tally.see("oversized", status, headers, range(400, 500))
            elif dice < 0.5:
                body = json.dumps(chat_body(MIXES["chat"], rng, 2)).encode()
                status, headers, data = await fetch(port, "POST", PATH, body, timeout=120)
                tally.see("whole", status, headers, range(200, 201))
                if status == 200:
                    tally.tokens += json.loads(data)["usage"]["completion_tokens"]
            else:
                call = await stream_chat(port, chat_body(MIXES["chat"], rng, 2), timeout=120)
                tally.see("streamed", call.status, {"retry-after": ""}, range(200, 201))
                tally.tokens += call.completion_tokens
                if call.error and call.status == 200:
                    tally.faults.append(f"an error in a stream: {call.error}")
        except Exception as error:
            tally.faults.append(f"{dice:.2f}: {error!r}")


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


async def soak(server: servers.Server, clients: int, seconds: float, seed: int) -> Tally:
    """Run it, and look at what is left behind."""
    tally = Tally()
    begin = time.monotonic()
    end = begin + seconds

    async def watch() -> None:
        while time.monotonic() < end:
            tally.memory.append((time.monotonic() - begin, server.rss))
            await asyncio.sleep(min(1.0, seconds / 100))

    jobs = [client(server.port, random.Random(f"{seed}-{i}"), end, tally) for i in range(clients)]
    await asyncio.gather(watch(), *jobs)

    for _ in range(50):  # those that have just left are noticed within a step or so
        left = await metrics(server.port)
        busy = {
            name: left[name]
            for name in (
                "tinyllm_queue_length",
                "tinyllm_requests_running",
                "tinyllm_choices_running",
            )
        }
        if not any(busy.values()):
            break
        await asyncio.sleep(0.1)
    else:
        tally.faults.append(f"left behind: {busy}")
    if server.process.poll() is not None:
        tally.faults.append("the server has died")
    return tally


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the soak, print what was seen, and exit with 1 on any fault."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.load.soak", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--server", default="", help="options of the server that is started")
    args = parser.parse_args(argv)
    seconds = 60 * args.minutes
    with servers.tinyllm(*args.server.split()) as server:
        tally = asyncio.run(soak(server, args.clients, seconds, args.seed))
    growth = tally.growth(min(120.0, seconds / 10))
    if growth >= 0.03:
        tally.faults.append(f"resident memory grew by {100 * growth:.1f} %")
    report = {
        "minutes": args.minutes,
        "clients": args.clients,
        "responses": dict(sorted(tally.statuses.items())),
        "tokens_per_s": round(tally.tokens / seconds, 1),
        "resident_mb": [
            round(rss / 1e6) for _, rss in tally.memory[:: len(tally.memory) // 10 or 1]
        ],
        "growth_percent": round(100 * growth, 2),
        "faults": tally.faults[:20],
    }
    print(json.dumps(report, indent=2))
    if tally.faults:
        sys.exit(1)
    return report


if __name__ == "__main__":
    main()
