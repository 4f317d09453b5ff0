"""A streaming client that costs next to nothing, so that it doesn't measure itself.

Plain asyncio streams and just enough HTTP/1.1: on a small machine the load's own share of the
processor would otherwise show up as the server's latency.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any


@dataclass
class Call:
    """What one request did, in time.perf_counter() seconds."""

    started: float = 0.0
    status: int = 0
    arrivals: list[float] = field(default_factory=list)  # of each piece of content
    ended: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    finish_reason: str | None = None
    text: str = ""
    error: str = ""

    @property
    def first(self) -> float:
        """Seconds to the first piece."""
        return self.arrivals[0] - self.started

    @property
    def gaps(self) -> list[float]:
        """Seconds between pieces."""
        return [b - a for a, b in pairwise(self.arrivals)]


def http_request(method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    """The bytes of a request that asks for the connection to be closed after it."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Connection: close"]
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    """Status and headers of a response."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *rest = head.strip().split("\r\n")
    headers = {}
    for line in rest:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    return int(first.split()[1]), headers


async def read_body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    """The whole body, chunked or not."""
    if headers.get("transfer-encoding", "").lower() != "chunked":
        return await reader.read()
    parts = []
    while size := int(await reader.readline(), 16):
        parts.append(await reader.readexactly(size))
        await reader.readexactly(2)
    return b"".join(parts)


async def fetch(
    port: int, method: str, path: str, body: bytes = b"", timeout: float = 60, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """One whole exchange: status, headers, body."""

    async def exchange() -> tuple[int, dict[str, str], bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(http_request(method, path, body, **headers))
            await writer.drain()
            status, received = await read_head(reader)
            return status, received, await read_body(reader, received)
        finally:
            writer.close()

    return await asyncio.wait_for(exchange(), timeout)


async def stream_chat(
    port: int,
    body: dict[str, Any],
    *,
    path: str = "/v1/chat/completions",
    hang_up_after: int | None = None,
    timeout: float = 600,
    call: Call | None = None,
) -> Call:
    """Stream one answer. With `hang_up_after`, go away after so many pieces of content.

    A `call` that is given is filled in as it goes, for somebody who watches.
    """
    body = {**body, "stream": True, "stream_options": {"include_usage": True}}
    call = call or Call(0.0)
    call.started = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**22)
    try:
        writer.write(http_request("POST", path, json.dumps(body).encode()))
        await writer.drain()
        if hang_up_after == 0:
            await asyncio.sleep(0.02)
            return call
        await asyncio.wait_for(_read_stream(reader, call, hang_up_after), timeout)
    finally:
        writer.close()
        call.ended = time.perf_counter()
    return call


async def _read_stream(reader: asyncio.StreamReader, call: Call, hang_up_after: int | None) -> None:
    call.status, headers = await read_head(reader)
    if call.status != 200:
        call.error = (await read_body(reader, headers)).decode(errors="replace")
        return
    # Chunk sizes and data lines alike are lines; only those that start with "data: " matter.
    while line := await reader.readline():
        if not line.startswith(b"data: "):
            continue
        now = time.perf_counter()
        if line.startswith(b"data: [DONE]"):
            return
        event = json.loads(line[6:])
        if "error" in event:
            call.error = json.dumps(event["error"])
        if usage := event.get("usage"):
            call.prompt_tokens = usage["prompt_tokens"]
            call.completion_tokens = usage["completion_tokens"]
            details = usage.get("prompt_tokens_details") or {}
            call.cached_tokens = details.get("cached_tokens") or 0
        for choice in event.get("choices", ()):
            call.finish_reason = choice.get("finish_reason") or call.finish_reason
            if content := (choice.get("delta") or {}).get("content"):
                call.arrivals.append(now)
                call.text += content
                if hang_up_after is not None and len(call.arrivals) >= hang_up_after:
                    return
