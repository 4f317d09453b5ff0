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

from tests.load.client import fetch, http_request, read_head

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


async def slow_sender(port: int, seconds: float, body: bytes | None = None) -> int | None:
    """Send a request at one byte a second; the status that comes back, None if it is cut off.

    With a `body`, the head is sent at once and only the body drips.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = http_request("POST", PATH, body or b"{}")
    if body is not None:
        start = head.index(b"\r\n\r\n") + 4
        writer.write(head[:start])
        head = head[start:]
    end = time.monotonic() + seconds
    try:
        answer = asyncio.create_task(read_head(reader))
        for byte in head:
            writer.write(bytes([byte]))
            await asyncio.wait([answer], timeout=1.0)
            if answer.done() or time.monotonic() > end:
                break
        if not answer.done():
            answer.cancel()
            raise AssertionError(f"the server has waited for {seconds} s and more")
        status, _ = answer.result()
        return status
    except (ConnectionError, asyncio.IncompleteReadError):
        return None
    finally:
        writer.close()


async def slow_reader(port: int, max_tokens: int) -> tuple[asyncio.StreamReader, Any]:
    """Start a stream and read nothing of it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
    writer.write(http_request("POST", PATH, question(max_tokens, stream=True)))
    await writer.drain()
    return reader, writer
