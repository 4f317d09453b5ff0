"""Clients that misbehave, a function a kind: each does one thing that strangers do, and leaves.

Each takes a server's port and a source of chance, and returns the status that it was answered with:
0 where it left before an answer, or where the server hung up on it, as it may on these.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import lru_cache
from typing import Any

from PIL import Image

from tests.load.client import parse_head
from tests.load.workload import MIXES, WORDS, chat_body

CHAT = "/v1/chat/completions"
MODEL, SEEING = "smollm2-135m-instruct", "smollm2-135m-vision"
ADDRESS = "127.0.0.9"  # theirs, so that what is refused to them isn't refused to others
PATIENCE = 120.0  # seconds until a client gives up waiting
PICTURES = [(kind, side) for kind in ("PNG", "JPEG", "WEBP", "GIF") for side in (64, 3000)]
Kind = Callable[[int, random.Random], Awaitable[int]]


def words(rng: random.Random, n: int) -> str:
    """A text of so many words."""
    return " ".join(rng.choice(WORDS) for _ in range(n))


def head(path: str, length: int | None, more: str = "") -> bytes:
    """A request's head, up to the empty line."""
    size = "" if length is None else f"Content-Length: {length}\r\n"
    return (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\n{size}{more}\r\n"
    ).encode()


@contextlib.asynccontextmanager
async def connected(
    port: int, buffer: int = 0
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection of these clients' own address; with a receive buffer of so many bytes."""
    peer = socket.socket()
    peer.setblocking(False)
    if buffer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    peer.bind((ADDRESS, 0))
    await asyncio.get_running_loop().sock_connect(peer, ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=peer, limit=buffer or 2**16)
    try:
        yield reader, writer
    finally:
        writer.close()


async def answered(reader: asyncio.StreamReader) -> int:
    """Read a whole answer: its status; 0 if there is none. What allows 503 by rule is checked."""
    try:
        data = await asyncio.wait_for(reader.read(-1), PATIENCE)
        status, headers = parse_head(data.partition(b"\r\n\r\n")[0])
    except (asyncio.TimeoutError, ConnectionError, ValueError, IndexError):
        return 0  # it gave up, or the server did
    if status >= 500 and not (status == 503 and "retry-after" in headers):
        raise AssertionError(f"{status}: {data[-300:]!r}")
    return status


async def ask(port: int, path: str, body: bytes | dict[str, Any]) -> int:
    """One whole exchange; the server may hang up while it is still being sent."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with connected(port) as (reader, writer):
        with contextlib.suppress(ConnectionError):
            writer.write(head(path, len(data)) + data)
            await writer.drain()
        return await answered(reader)


async def drips(port: int, rng: random.Random) -> int:
    """A body that comes a byte at a time, of a large one that is announced."""
    async with connected(port) as (reader, writer):
        with contextlib.suppress(ConnectionError):
            writer.write(head(CHAT, rng.choice((1000, 3_000_000, 28_000_000))) + b'{"messages":')
            for _ in range(rng.choice((4, 20, 80))):
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.5)
                if reader.at_eof():
                    break
    return 0


async def keeps_connections(port: int, rng: random.Random) -> int:
    """Forty connections that stay, each after one answer."""
    async with contextlib.AsyncExitStack() as held:
        for _ in range(40):
            reader, writer = await held.enter_async_context(connected(port))
            writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)
        await asyncio.sleep(rng.choice((1, 5, 15)))
    return 0


async def reads_nothing(port: int, rng: random.Random) -> int:
    """A stream of which nothing is read."""
    body = chat_body(MIXES["decode"], rng, 2) | {
        "stream": True, "logprobs": True, "top_logprobs": 20, "max_tokens": 800,
    }  # fmt: skip
    data = json.dumps(body).encode()
    async with connected(port, buffer=4096) as (_, writer):
        writer.write(head(CHAT, len(data)) + data)
        await asyncio.sleep(rng.choice((2, 10, 40)))
    return 0


async def sends_too_much(port: int, rng: random.Random) -> int:
    """A body that nothing holds: in one piece, in chunks of a byte, or only announced."""
    shape = rng.randrange(4)
    if shape == 0:
        return await ask(port, CHAT, b'{"a": "' + b"x" * 28_000_000 + b'"}')
    if shape == 1:
        text = {"model": MODEL, "messages": [{"role": "user", "content": words(rng, 12_000)}]}
        return await ask(port, CHAT, text)
    async with connected(port) as (reader, writer):
        with contextlib.suppress(ConnectionError):
            if shape == 2:
                writer.write(head(CHAT, 10**12) + b"{")
            else:
                writer.write(head(CHAT, None, "Transfer-Encoding: chunked\r\n"))
                for _ in range(500):
                    writer.write(b"1\r\n \r\n" * 100)
                    await writer.drain()
                writer.write(b"0\r\n\r\n")
            await writer.drain()
        return await answered(reader)


async def asks_128_prompts(port: int, rng: random.Random) -> int:
    """A text completion with 128 prompts."""
    prompts = [words(rng, rng.choice((3, 20))) for _ in range(128)]
    return await ask(port, "/v1/completions", {"model": MODEL, "prompt": prompts, "max_tokens": 4})


async def brings_many_tools(port: int, rng: random.Random) -> int:
    """128 tools with long descriptions."""
    text = {"type": "string", "description": words(rng, 60)}
    tools = [
        {
            "type": "function",
            "function": {
                "name": f"tool_{i}_{rng.choice(WORDS)}", "description": words(rng, 150),
                "parameters": {"type": "object", "properties": {"x": text}},
            },
        }
        for i in range(128)
    ]  # fmt: skip
    said = [{"role": "user", "content": f"Call the tool of {words(rng, 3)}"}]
    return await ask(port, CHAT, {"model": MODEL, "messages": said, "tools": tools,
                                  "max_tokens": 20})  # fmt: skip


async def looks_at_everything(port: int, rng: random.Random) -> int:
    """A look at the last of hundreds of tokens, with every view."""
    n = rng.choice((50, 300, 600))
    want = {
        "candidates": 50, "logits": True, "attention": {}, "lens": 20, "timing": True,
        "activations": "blocks.3.attn.hook_z", "cache": True,
        "causal": [{"part": "attn", "layer": layer} for layer in range(16)],
        "explain": {"name": "logits", "dim": 5},
    }  # fmt: skip
    tokens = [rng.randrange(17, 40_000) for _ in range(n)]
    body = {"model": MODEL, "tokens": tokens, "position": n - 1, "want": want}
    return await ask(port, "/v1/look", body)


async def traces_everything(port: int, rng: random.Random) -> int:
    """A request that looks inside at each token."""
    said = [{"role": "user", "content": words(rng, 100)}]
    trace = {"candidates": 20, "stages": True, "attention": {"layer": 5}, "lens": 20}
    return await ask(port, CHAT, {"model": MODEL, "messages": said, "trace": trace, "n": 4,
                                  "max_tokens": 60})  # fmt: skip


async def leaves_in_the_middle(port: int, rng: random.Random) -> int:
    """Gone while it sends, while it waits, or while it is answered, whatever it asked for."""
    path, body = rng.choice(
        (
            (CHAT, chat_body(MIXES["chat"], rng, 2)),
            (CHAT, chat_body(MIXES["chat"], rng, 2) | {"stream": True}),
            (CHAT, chat_body(MIXES["chat"], rng, 2) | {"n": 8, "trace": {"lens": 5}}),
            ("/v1/responses", {"model": MODEL, "input": words(rng, 600)}),
            ("/v1/look", {"model": MODEL, "tokens": [50] * 500, "position": 499,
                          "want": {"lens": 20}}),
            ("/v1/completions", {"model": MODEL, "prompt": [words(rng, 50)] * 64}),
        )
    )  # fmt: skip
    data = json.dumps(body).encode()
    cut = rng.choice((len(data) // 2, len(data), len(data)))
    async with connected(port) as (_, writer):
        writer.write(head(path, len(data)) + data[:cut])
        await asyncio.sleep(rng.choice((0, 0.05, 0.5, 3)))
        if rng.random() < 0.5:
            writer.transport.abort()
    return 0


async def floods_with_headers(port: int, rng: random.Random) -> int:
    """Many headers, a long one, or a head that doesn't end."""
    more = rng.choice(
        ("".join(f"X-{i}: {i}\r\n" for i in range(20_000)), f"X: {'a' * 200_000}\r\n",
         f"{'a' * 100_000}: x\r\n", "Authorization: Bearer " + "k" * 30_000 + "\r\n")
    )  # fmt: skip
    async with connected(port) as (reader, writer):
        with contextlib.suppress(ConnectionError):
            writer.write(head(CHAT, 2, more) + b"{}")
            await writer.drain()
        return await answered(reader)


@lru_cache
def encoded(kind: str, side: int) -> bytes:
    """A flat square. Kept: eight large ones take seconds, in which no other client would move."""
    file = io.BytesIO()
    Image.new("RGB", (side, side), (9, 9, 9)).save(file, kind)
    return file.getvalue()


def picture(rng: random.Random) -> bytes:
    """An image that is none, that is cut, or that is larger than it looks."""
    data = encoded(*rng.choice(PICTURES))
    return rng.choice((data[: len(data) // 2], data[:20], b"\x89PNG\r\n\x1a\n" + data, b"no", data))


async def sends_bad_images(port: int, rng: random.Random) -> int:
    """Up to eight pictures, most of them broken."""
    parts = []
    for _ in range(rng.choice((1, 3, 8))):
        text = base64.b64encode(picture(rng)).decode()
        url = f"data:image/png;base64,{text[: -1 if rng.random() < 0.2 else None]}"
        parts.append({"type": "image_url", "image_url": {"url": url}})
    body = {"model": SEEING, "messages": [{"role": "user", "content": parts}], "max_tokens": 4}
    return await ask(port, CHAT, body)


KINDS: tuple[Kind, ...] = (
    drips, keeps_connections, reads_nothing, sends_too_much, asks_128_prompts, brings_many_tools,
    looks_at_everything, traces_everything, leaves_in_the_middle, floods_with_headers,
    sends_bad_images,
)  # fmt: skip
