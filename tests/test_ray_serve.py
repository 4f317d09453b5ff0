"""The Ray Serve example: two replicas, and sessions that find their own again."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.load.client import fetch
from tests.load.servers import free_port

ray = pytest.importorskip("ray", reason="needs the extra: pip install tinyllm[ray]")

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own, of many kinds


@pytest.fixture(scope="module")
def port(weights_folder: Path) -> Iterator[int]:
    from ray import serve
    from ray.serve.config import HTTPOptions

    from tinyllm.api.house.settings import parse
    from tinyllm.api.ray_serve import deployment

    port = free_port()
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    serve.start(http_options=HTTPOptions(port=port))
    flags = ["--model", str(weights_folder), "--threads", "1", "--kv-cache-mb", "64"]
    serve.run(deployment(parse([*flags, "--access-log", "off"]), 2), route_prefix="/")
    yield port
    serve.shutdown()
    ray.shutdown()


def turn(port: int, session: str, messages: list[dict[str, str]]) -> dict[str, object]:
    """One turn of a conversation."""
    body = {"model": "smollm2-135m-instruct", "messages": messages, "max_tokens": 5, "seed": 1}
    status, _, data = asyncio.run(
        fetch(port, "POST", "/v1/chat/completions", json.dumps(body).encode(), x_session_id=session)
    )
    assert status == 200, data
    answer: dict[str, object] = json.loads(data)
    return answer


def test_a_session_comes_back_to_its_replica(port: int) -> None:
    for i in range(6):
        session = f"session-{i}-{os.getpid()}"
        # Every session starts differently, so only its own replica can know the start.
        messages = [{"role": "system", "content": f"You are number {i * 7919}. " * 5}]
        for question in ("What is the capital of France?", "And of Spain?"):
            messages.append({"role": "user", "content": question})
            answer = turn(port, session, messages)
            messages.append(answer["choices"][0]["message"])  # type: ignore[index]
        cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]  # type: ignore[index]
        assert cached > 40
        path = f"/v1/sessions/{session}"
        status, _, data = asyncio.run(fetch(port, "GET", path, x_session_id=session))
        assert status == 200 and len(json.loads(data)["requests"]) == 2


def test_without_a_session_the_replicas_share_the_work(port: int) -> None:
    async def scrape() -> set[str]:
        seen = set()
        for _ in range(20):
            _, _, text = await fetch(port, "GET", "/metrics")
            lines = text.decode().splitlines()
            # When the replica began; there before its first request, as counters by route aren't.
            seen.add(next(x for x in lines if x.startswith("tinyllm_request_seconds_created")))
        return seen

    assert len(asyncio.run(scrape())) == 2
