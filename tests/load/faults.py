"""Faults, with a healthy client beside each: the client is answered, whatever happens next to it.

Used by tests/test_load.py; each function takes a running server (or starts its own) and raises
AssertionError with what went wrong.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from typing import Any

from tests.load.client import fetch, http_request

PATH = "/v1/chat/completions"


def question(max_tokens: int = 4, **more: Any) -> bytes:
    """A small request."""
    body = {
        "model": "smollm2-135m-instruct",
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "max_tokens": max_tokens,
        "temperature": 0,
        **more,
    }
    return json.dumps(body).encode()


async def healthy(port: int, timeout: float = 30) -> float:
    """A well-behaved client gets its answer; returns the seconds it took."""
    begin = time.perf_counter()
    status, _, data = await fetch(port, "POST", PATH, question(), timeout=timeout)
    assert status == 200, (status, data)
    assert json.loads(data)["choices"][0]["message"]["content"], data
    return time.perf_counter() - begin


@contextlib.asynccontextmanager
async def idle_connections(port: int, count: int) -> AsyncIterator[list[asyncio.StreamWriter]]:
    """So many connections on which nothing is ever sent."""
    writers = []
    try:
        for _ in range(count):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writers.append(writer)
        yield writers
    finally:
        for writer in writers:
            writer.close()


async def slow_reader(port: int, max_tokens: int) -> tuple[asyncio.StreamReader, Any]:
    """Start a stream and read nothing of it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
    writer.write(http_request("POST", PATH, question(max_tokens, stream=True)))
    await writer.drain()
    return reader, writer
