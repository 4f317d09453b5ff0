"""A streaming client that costs next to nothing, so that it doesn't measure itself.

Plain asyncio and just enough HTTP/1.1: on a small machine the load's own share of the processor
would otherwise show up as the server's latency. For the same reason packets are only timed as they
come; what is in them is read, all of it, when the answer is over.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from pydantic_core import from_json


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
    return parse_head(await reader.readuntil(b"\r\n\r\n"))


def parse_head(head: bytes) -> tuple[int, dict[str, str]]:
    """The same, of what stands before the body."""
    first, *rest = head.decode("latin-1").strip().split("\r\n")
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

    A `call` that is given is filled in as it goes, for somebody who watches; else at the end.
    """
    watched = call is not None or hang_up_after is not None
    call = call or Call()
    call.started = time.perf_counter()
    loop = asyncio.get_running_loop()
    transport, stream = await loop.create_connection(
        lambda: _Stream(_Answer(call, hang_up_after), watched), "127.0.0.1", port
    )
    try:
        transport.write(_chat_request(path, body))
        if hang_up_after == 0:
            await asyncio.sleep(0.02)
            return call
        await asyncio.wait_for(stream.over, timeout)
        await stream.answer.end()
    finally:
        stream.over.cancel()  # whatever comes now, nobody waits for it
        transport.close()
        call.ended = time.perf_counter()
    return call


def stream_chat_alone(port: int, body: dict[str, Any], timeout: float = 600) -> Call:
    """The same without an event loop, for a measurement where the only client must cost least."""
    answer = _Answer(Call(time.perf_counter()))
    with socket.create_connection(("127.0.0.1", port), timeout) as connection:
        connection.sendall(_chat_request("/v1/chat/completions", body))
        while packet := connection.recv(2**16):
            answer.packets.append((time.perf_counter(), packet))
    answer.call.ended = time.perf_counter()
    answer.read()
    asyncio.run(answer.end())
    return answer.call


def _chat_request(path: str, body: dict[str, Any]) -> bytes:
    body = {**body, "stream": True, "stream_options": {"include_usage": True}}
    return http_request("POST", path, json.dumps(body).encode())


class _Stream(asyncio.BufferedProtocol):
    """Takes in an answer: one short function a packet, and no task to wake.

    Into a buffer of its own: what asyncio would make anew for each packet is so large that every
    packet would cost a mapping of fresh memory.
    """

    def __init__(self, answer: _Answer, watched: bool) -> None:
        self.answer = answer
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._watched = watched
        self._buffer = bytearray(2**16)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.answer.packets.append((time.perf_counter(), bytes(self._buffer[:nbytes])))
        if self._watched:
            self._read()

    def connection_lost(self, exc: Exception | None) -> None:
        self._read()
        if self.over.done():
            return
        if exc is None:
            self.over.set_result(None)
        else:
            self.over.set_exception(exc)

    def _read(self) -> None:
        self.answer.read()
        if self.answer.over and not self.over.done():
            self.over.set_result(None)


class _Answer:
    """Reads the packets of one answer into a call."""

    def __init__(self, call: Call, hang_up_after: int | None = None) -> None:
        self.call = call
        self.packets: list[tuple[float, bytes]] = []  # with when they came; not read yet
        self.over = False  # nothing that comes from here on is looked at
        self._hang_up_after = hang_up_after
        self._headers: dict[str, str] | None = None
        self._rest = b""  # of the packets that were read: the start of a line, or a fault's body

    async def end(self) -> None:
        """There are no more packets. Raises ConnectionAbortedError if there was no answer."""
        if self._headers is None:
            raise ConnectionAbortedError("the server hung up without an answer")
        if self.call.status != 200:
            reader = asyncio.StreamReader()
            reader.feed_data(self._rest)
            reader.feed_eof()
            self.call.error = (await read_body(reader, self._headers)).decode(errors="replace")

    def read(self) -> None:
        """Read the packets that have come."""
        for when, packet in self.packets:
            data = self._rest + packet
            if self._headers is None:
                head, end, rest = data.partition(b"\r\n\r\n")
                if end:
                    self.call.status, self._headers = parse_head(head)
                    data = rest
            if self._headers is None or self.call.status != 200:
                self._rest = data
                continue
            # Chunk sizes and data lines alike are lines; only those with "data: " matter.
            *lines, self._rest = data.split(b"\n")
            for line in lines:
                if line.startswith(b"data: ") and not self.over:
                    self._read_event(line[6:], when)
        self.packets.clear()

    def _read_event(self, data: bytes, when: float) -> None:
        call = self.call
        if data.startswith(b"[DONE]"):
            self.over = True
            return
        event = from_json(data)
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
                call.arrivals.append(when)
                call.text += content
                if len(call.arrivals) == self._hang_up_after:
                    self.over = True
