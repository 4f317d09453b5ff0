"""What one caller does, another doesn't feel: floods, replays, looks inside, leaving half-way."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from tests.attacks.support import CHAT, PATIENCE, ask, chat, leave, polite
from tests.attacks.test_sizes import intersected, schema
from tests.load import servers

pytestmark = pytest.mark.attacks


@pytest.fixture(scope="module")
def keyed(weights_folder: Path) -> Iterator[servers.Server]:
    """A server with two keys."""
    options = ("--model", str(weights_folder), "--kv-cache-mb", "512")
    with servers.tinyllm(*options, "--api-key", "flood", "--api-key", "polite") as server:
        yield server


def first_token(port: int, key: str) -> tuple[int, float]:
    """A small request's status, and the seconds it took."""
    begin = time.perf_counter()
    status, _ = ask(port, chat("What is the capital of France?", max_tokens=1), key=key)
    return status, time.perf_counter() - begin


def test_a_flood_of_one_key_beside_one_client_of_another(keyed: servers.Server) -> None:
    """100 clients with one key; a client with another waits at most about twice what it waits
    beside 15 ordinary streams."""
    over = threading.Event()
    answers: list[int] = []

    def stream(key: str, max_tokens: int) -> None:
        body = chat("Tell a long story.", max_tokens=max_tokens, logit_bias={"2": -100})
        while not over.is_set():
            status, _ = ask(keyed.port, body, key=key)
            answers.append(status)
            if status == 429:
                time.sleep(0.2)

    def waits_beside(n: int, key: str) -> list[tuple[int, float]]:
        over.clear()
        with ThreadPoolExecutor(n) as pool:
            for _ in range(n):
                pool.submit(stream, key, 100)
            time.sleep(3)
            seen = [first_token(keyed.port, "polite") for _ in range(25)]
            over.set()
        return seen

    usual = waits_beside(15, "flood")
    answers.clear()
    flooded = waits_beside(100, "flood")
    served = sum(status == 200 for status, _ in flooded)
    a, b = median(s for _, s in usual), median(s for _, s in flooded)
    print(
        f"beside 15 streams {a:.3f} s, beside 100 clients {b:.3f} s (ratio {b / a:.2f}); "
        f"{served} of {len(flooded)} served; the flood got {answers.count(200)} answers and "
        f"{answers.count(429)} times 429"
    )
    assert served == len(flooded)
    assert b < 4 * a  # 2 is promised, on a quiet machine


def test_replays_wait_like_completions(keyed: servers.Server) -> None:
    _, answer = ask(keyed.port, chat("A story.", max_tokens=400, seed=1, logit_bias={"2": -100}),
                    key="flood")  # fmt: skip
    path = f"/v1/completions/{json.loads(answer)['id']}/replay"
    assert ask(keyed.port, None, path, key="polite")[0] == 404
    with ThreadPoolExecutor(8) as pool:
        replays = [pool.submit(ask, keyed.port, None, path, "flood") for _ in range(8)]
        time.sleep(0.3)
        waits = [first_token(keyed.port, "polite") for _ in range(10)]
        results = [json.loads(replay.result()[1]) for replay in replays]
    print(f"beside 8 replays the slowest of 10 took {max(s for _, s in waits):.2f} s")
    assert all(result["identical"] for result in results)
    assert {status for status, _ in waits} == {200}
    assert max(s for _, s in waits) < 5 * PATIENCE


def test_looks_inside_wait_for_others(server: servers.Server) -> None:
    looking = chat("Tell a story.", max_tokens=40, trace={"lens": 5})
    with ThreadPoolExecutor(6) as pool:
        looks = [pool.submit(ask, server.port, looking) for _ in range(6)]
        time.sleep(0.5)
        begin = time.perf_counter()
        status, _ = ask(server.port, chat(max_tokens=16))
        took = time.perf_counter() - begin
        statuses = sorted(look.result()[0] for look in looks)
    print(f"beside 6 requests with the lens a chat of 16 tokens took {took:.2f} s ({statuses})")
    assert status == 200 and took < 10 * PATIENCE
    assert set(statuses) <= {200, 429}


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("a schema that never compiles", chat(response_format=schema(intersected(30)))),
        ("a long answer", chat(max_tokens=4000, logit_bias={"2": -100})),
        ("a long prompt", chat("word " * 7000)),
    ],
)
def test_work_ends_when_its_caller_leaves(
    server: servers.Server, name: str, body: dict[str, Any]
) -> None:
    with polite(server) as seen, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: leave(server.port, body, 0.3), range(8)))
        begin = time.perf_counter()
        status, _ = ask(server.port, chat())
        took = time.perf_counter() - begin
    seen.report(f"8 clients that left {name}; a chat behind them took {took:.2f} s")
    assert status == 200 and took < 5 * PATIENCE
    assert max(seen.waits) < PATIENCE


def test_nothing_is_left_behind(server: servers.Server) -> None:
    time.sleep(1)
    _, text = ask(server.port, None, "/metrics")
    values = {
        line.partition("{")[0].partition(" ")[0]: float(line.rpartition(" ")[2])
        for line in text.decode().splitlines()
        if not line.startswith("#")
    }
    for name in ("tinyllm_queue_length", "tinyllm_requests_running", "tinyllm_choices_running"):
        assert values[name] == 0, name
    assert CHAT.encode() in text
