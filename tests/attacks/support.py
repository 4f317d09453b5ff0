"""A server under attack, and whoever else asks it meanwhile."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import psutil

from tests.load.servers import Server

MODEL = "smollm2-135m-instruct"
CHAT = "/v1/chat/completions"
PATIENCE = 2.0  # seconds that the polite client may wait; 0.5 are promised on a quiet machine


@dataclass
class Seen:
    """What the polite client saw."""

    waits: list[float] = field(default_factory=list)  # seconds for each answer
    statuses: list[int] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)  # resident bytes, of children too

    def report(self, what: str) -> None:
        print(
            f"{what}: /health waited {max(self.waits):.3f} s at most ({len(self.waits)} times), "
            f"memory {self.memory[0] / 1e6:.0f} MB, at most {max(self.memory) / 1e6:.0f} MB"
        )


def ask(
    port: int,
    body: bytes | Mapping[str, Any] | None,
    path: str = CHAT,
    key: str = "",
    timeout: float = 120,
    address: str = "127.0.0.1",
) -> tuple[int, bytes]:
    """One request: status and body; GET where there is no body to send.

    `address` is the caller's own: without keys, whose share of the server it takes.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout, (address, 0))
    headers = {"Content-Type": "application/json"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    try:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused half-way
            connection.request("GET" if data is None else "POST", path, data, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def chat(content: Any = "Say hi.", **more: Any) -> dict[str, Any]:
    """A small request."""
    messages = [{"role": "user", "content": content}]
    return {"model": MODEL, "messages": messages, "max_tokens": 4, "temperature": 0, **more}


def leave(
    port: int, body: Mapping[str, Any], after: float, path: str = CHAT, key: str = ""
) -> None:
    """Send a request, and go away after so many seconds."""
    data = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(data)}\r\n" + (f"Authorization: Bearer {key}\r\n" if key else "")
    )
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(head.encode() + b"\r\n" + data)
        time.sleep(after)


def resident(server: Server) -> int:
    """Bytes of a server and of the processes that it has started."""
    root = psutil.Process(server.process.pid)
    total = 0
    for process in (root, *root.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            # Between fork and exec a child shows its parent's memory as its own.
            if process is root or process.cmdline() != root.cmdline():
                total += process.memory_info().rss
    return total


@contextlib.contextmanager
def polite(server: Server, address: str = "127.0.0.1") -> Iterator[Seen]:
    """A client that asks for /health all the time, for as long as the block lasts."""
    seen, over = Seen(), threading.Event()
    seen.memory.append(resident(server))

    def watch() -> None:
        while not over.is_set():
            begin = time.perf_counter()
            status, _ = ask(server.port, None, "/health", address=address)
            seen.waits.append(time.perf_counter() - begin)
            seen.statuses.append(status)
            seen.memory.append(resident(server))
            over.wait(0.02)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()
