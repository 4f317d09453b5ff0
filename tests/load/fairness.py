"""What a flood of one key's does to the only client of another.

    python -m tests.load.fairness --kinds chats prompts

Beside 15 ordinary streams of one key a client with another asks one thing after the other, and the
seconds until its first token are the yardstick. Then the same beside a hundred clients of one key
that ask, in all kinds of ways, and ask again at once (after a 429: when they have waited a little).
Shown for each kind: how many of the client's requests were answered, and the median of its first
tokens over the yardstick's. The promise: 99 % of them, and at most twice as long.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import os
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

from tests.load import servers
from tests.load.client import fetch
from tests.load.workload import WORDS

MODEL, SEEING = "smollm2-135m-instruct", "smollm2-135m-vision"
CHAT = "/v1/chat/completions"
NO_END = {"logit_bias": {"2": -100}}
WARM = 5.0  # seconds of flood before the first look
Body = Callable[[random.Random], tuple[str, dict[str, Any]]]


def _words(rng: random.Random, n: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(n))


def _chat(rng: random.Random, n_words: int, **more: Any) -> tuple[str, dict[str, Any]]:
    said = [{"role": "user", "content": f"Tell a long story about {_words(rng, n_words)}"}]
    return CHAT, {"model": MODEL, "messages": said, "max_tokens": 100, **NO_END, **more}


def _prompts(rng: random.Random) -> tuple[str, dict[str, Any]]:
    prompts = [_words(rng, 20) for _ in range(128)]
    return "/v1/completions", {"model": MODEL, "prompt": prompts, "max_tokens": 16, **NO_END}


def _look(rng: random.Random) -> tuple[str, dict[str, Any]]:
    tokens = [rng.randrange(17, 40_000) for _ in range(300)]
    want = {"lens": 20, "attention": {}, "logits": True}
    return "/v1/look", {"model": MODEL, "tokens": tokens, "position": 299, "want": want}


def _grammar(rng: random.Random) -> tuple[str, dict[str, Any]]:
    """A schema that nobody has asked for before."""
    names = {
        _words(rng, 3): {"type": "string", "pattern": f"^[a-z]{{{i + 1}}}.*$"} for i in range(5)
    }
    schema = {"type": "object", "properties": names, "required": list(names)}
    named = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    return _chat(rng, 20, response_format=named)


def _image(rng: random.Random) -> tuple[str, dict[str, Any]]:
    """A question about a picture that nobody has sent before."""
    file = io.BytesIO()
    Image.frombytes("RGB", (32, 32), rng.randbytes(3 * 32 * 32)).resize((600, 600)).save(
        file, "PNG"
    )
    url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What?"}]
    said = [{"role": "user", "content": parts}]
    return CHAT, {"model": SEEING, "messages": said, "max_tokens": 100, **NO_END}


KINDS: dict[str, Body] = {
    "chats": lambda rng: _chat(rng, 20),
    "long": lambda rng: _chat(rng, 2000),
    "longest": lambda rng: _chat(rng, 7500),  # near the context's end
    "choices": lambda rng: _chat(rng, 20, n=8),
    "prompts": _prompts,
    "looks": _look,
    "traces": lambda rng: _chat(rng, 20, trace={"lens": 5, "candidates": 20}),
    "grammars": _grammar,
    "images": _image,
    "replays": lambda rng: _chat(rng, 20, max_tokens=400),  # asked once, then replayed
}


async def _requests(port: int, kind: str, seed: int) -> list[tuple[str, str, bytes]]:
    """Methods, addresses and bodies of a flood, made before: a busy client would measure itself."""
    rng = random.Random(seed)
    bodies = [(path, json.dumps(body).encode()) for path, body in
              (KINDS[kind](rng) for _ in range(8 if kind == "replays" else 200))]  # fmt: skip
    if kind != "replays":
        return [("POST", path, body) for path, body in bodies]
    answers = await asyncio.gather(
        *(
            fetch(port, "POST", path, body, 600, Authorization="Bearer flood")
            for path, body in bodies
        )
    )
    ids = [json.loads(answer)["id"] for _, _, answer in answers]
    return [("GET", f"/v1/completions/{id}/replay", b"") for id in ids]


async def first_token(port: int, rng: random.Random) -> tuple[int, float]:
    """The polite client's status, and the seconds to its only token."""
    said = [{"role": "user", "content": f"What is {_words(rng, 2)}?"}]
    body = json.dumps({"model": MODEL, "messages": said, "max_tokens": 1}).encode()
    begin = time.perf_counter()
    status, _, _ = await fetch(port, "POST", CHAT, body, Authorization="Bearer polite")
    return status, time.perf_counter() - begin


async def waits_beside(
    port: int, clients: int, kind: str, count: int, seed: int
) -> tuple[list[tuple[int, float]], Counter[int]]:
    """`count` first tokens beside so many clients of the other key; and what those were told."""
    told: Counter[int] = Counter()
    over = asyncio.Event()  # cancelling alone may come just when an answer does, and be lost

    rng, ready = random.Random(seed), await _requests(port, kind, seed)

    async def flood(rng: random.Random) -> None:
        while not over.is_set():
            method, path, body = rng.choice(ready)
            try:
                status, _, _ = await fetch(
                    port, method, path, body, 600, Authorization="Bearer flood"
                )
            except (OSError, asyncio.IncompleteReadError):
                status = 0  # refused while it was still sending
            told[status] += 1
            if status != 200:
                await asyncio.sleep(0.2)

    jobs = [asyncio.create_task(flood(random.Random(f"{seed}-{i}"))) for i in range(clients)]
    await asyncio.sleep(WARM)
    seen = [await first_token(port, rng) for _ in range(count)]
    over.set()
    for job in jobs:
        job.cancel()
    faults = [r for r in await asyncio.gather(*jobs, return_exceptions=True) if r is not None]
    told[-1] = sum(not isinstance(fault, asyncio.CancelledError) for fault in faults)
    return seen, +told


async def measure(port: int, kinds: Sequence[str], clients: int, count: int) -> None:
    """Print a line a kind, each with a yardstick of its own, taken just before."""
    for seed, kind in enumerate(kinds):
        ordinary, _ = await waits_beside(port, 15, "chats", count, seed)
        await asyncio.sleep(1)
        flooded, told = await waits_beside(port, clients, kind, count, seed + 100)
        usual = statistics.median(s for _, s in ordinary)
        median = statistics.median(s for _, s in flooded)
        served = sum(status == 200 for status, _ in flooded)
        print(
            f"{kind:8s} beside 15 streams {usual:.3f} s, beside {clients} clients {median:.3f} s "
            f"(largest {max(s for _, s in flooded):.3f}), ratio {median / usual:.2f}; "
            f"{served} of {count} answered; the flood was told {dict(told)}; "
            f"load {os.getloadavg()[0]:.1f}",
            flush=True,
        )
        await asyncio.sleep(2)


def main(argv: Sequence[str] | None = None) -> None:
    """Start a server with two keys, and measure."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.load.fairness", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--count", type=int, default=60)
    args = parser.parse_args(argv)
    options = ("--model", MODEL, "--model", SEEING, "--api-key", "flood", "--api-key", "polite")
    with servers.tinyllm(*options) as server:
        asyncio.run(measure(server.port, args.kinds, args.clients, args.count))


if __name__ == "__main__":
    main()
