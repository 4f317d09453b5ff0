"""Connections that are held, bodies that drip, answers that nobody reads."""

from __future__ import annotations

import contextlib
import json
import resource
import socket
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.attacks.support import CHAT, PATIENCE, ask, chat, polite
from tests.load.servers import Server

pytestmark = pytest.mark.attacks
MB = 1_000_000
OTHER = "127.0.0.2"  # somebody else's address


@contextlib.contextmanager
def many_files(n: int) -> Iterator[None]:
    """A limit of descriptors for this process that lets it hold so many connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(n, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def status_of(connection: socket.socket) -> int:
    """What has been answered so far; 0 for nothing."""
    connection.setblocking(False)
    try:
        return int(connection.recv(4096).split(b" ")[1])
    except BlockingIOError:
        return 0
    except (IndexError, ConnectionError):
        return -1


def test_large_bodies_that_drip(server: Server) -> None:
    """100 clients send 28 MB each, 27 of them at once, and leave the rest for later."""
    start = b'{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": '
    start += b'"data:image/png;base64,' + b"A" * MB
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {28 * MB}\r\n\r\n"
    ).encode()

    def send(connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            connection.sendall(head + start)
            for _ in range(26):
                connection.sendall(b"A" * MB)
                time.sleep(0.05)

    loads = chat(response_format={"type": "json_object"})  # all that first requests load
    assert ask(server.port, loads, address=OTHER)[0] == 200
    with contextlib.ExitStack() as held, polite(server, OTHER) as seen:
        connections = [
            held.enter_context(socket.create_connection(("127.0.0.1", server.port), 60))
            for _ in range(100)
        ]
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(send, connections))
        others = [ask(server.port, chat(), address=OTHER)[0] for _ in range(3)]
        statuses = Counter(map(status_of, connections))
    seen.report(f"100 bodies of 28 MB that drip ({dict(statuses)})")
    assert others == [200] * 3 and set(seen.statuses) == {200}
    assert statuses[0] <= 5 and statuses[503] >= 20  # some see their connection reset instead
    assert max(seen.waits) < PATIENCE
    assert max(seen.memory) < seen.memory[0] + 350 * MB


def test_connections_that_are_kept(server: Server) -> None:
    """One address opens all it can and stays; another still gets in, every time."""
    with many_files(4096), contextlib.ExitStack() as held, polite(server, OTHER) as seen:
        connections = []
        for _ in range(1500):
            connection = socket.create_connection(("127.0.0.1", server.port), 60)
            connections.append(held.enter_context(connection))
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        time.sleep(1)
        others = [ask(server.port, chat(), address=OTHER)[0] for _ in range(10)]
        statuses = Counter(map(status_of, connections))
    seen.report(f"1,500 kept connections ({dict(statuses)})")
    assert others == [200] * 10 and set(seen.statuses) == {200}
    assert statuses[200] <= 1024 and statuses[503] + statuses[-1] >= 400
    assert max(seen.memory) < seen.memory[0] + 200 * MB
    end = time.monotonic() + 15
    while (status := ask(server.port, chat())[0]) == 503 and time.monotonic() < end:
        time.sleep(0.2)
    assert status == 200


def test_answers_that_nobody_reads(server: Server) -> None:
    """40 streams of which nothing is read: others are served, and memory stays."""
    body = chat("Tell a story.", max_tokens=2000, stream=True, logprobs=True, top_logprobs=20,
                logit_bias={"2": -100})  # fmt: skip
    data = json.dumps(body).encode()
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(data)}\r\n\r\n"
    ).encode()
    with contextlib.ExitStack() as held, polite(server, OTHER) as seen:
        for _ in range(40):
            connection = held.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", server.port))
            connection.sendall(head + data)
        time.sleep(4)
        waits = []
        for _ in range(5):
            begin = time.perf_counter()
            assert ask(server.port, chat(max_tokens=1), address=OTHER)[0] == 200
            waits.append(time.perf_counter() - begin)
    seen.report(f"40 streams that nobody reads (a chat beside them took {max(waits):.2f} s)")
    assert max(waits) < 5 * PATIENCE and max(seen.waits) < PATIENCE
    assert max(seen.memory) < seen.memory[0] + 300 * MB
