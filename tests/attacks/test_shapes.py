"""Requests of odd shapes: tiny chunks, header floods, old and pipelined HTTP, strange hosts."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Sequence

import pytest

from tests.attacks.support import CHAT, MODEL, PATIENCE, ask, chat, polite
from tests.load.servers import Server

pytestmark = pytest.mark.attacks
JSON = "Content-Type: application/json\r\n"


def exchange(server: Server, *pieces: bytes, end: bool = True) -> list[int]:
    """Send as they are; the statuses of all answers until the server hangs up.

    With `end` nothing more can come, which to a server whose answer takes long is: gone.
    """
    with socket.create_connection(("127.0.0.1", server.port), 60) as connection:
        with contextlib.suppress(OSError):  # it may have hung up already
            for piece in pieces:
                connection.sendall(piece)
            if end:
                connection.shutdown(socket.SHUT_WR)
        data = b""
        with contextlib.suppress(ConnectionError):
            while more := connection.recv(65_536):
                data += more
    return statuses(data)


def statuses(data: bytes) -> list[int]:
    """Of the answers in what was received, one behind the other."""
    return [int(part[2:5]) for part in data.split(b"HTTP/1.")[1:]]


def head(method: str = "GET", path: str = "/health", more: str = "", version: str = "1.1") -> bytes:
    return f"{method} {path} HTTP/{version}\r\nHost: localhost\r\n{more}\r\n".encode()


def test_a_body_in_chunks_of_a_byte(server: Server) -> None:
    """300,000 of them: each costs the event loop more than a kilobyte of an ordinary body."""
    text = json.dumps(chat()).encode()
    body = b" " * 300_000 + text
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    more = JSON + "Transfer-Encoding: chunked\r\nConnection: close\r\n"
    with polite(server) as seen:
        found = exchange(server, head("POST", CHAT, more) + chunks, end=False)
    seen.report(f"300,000 chunks of a byte ({found})")
    assert found == [200] and max(seen.waits) < PATIENCE


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("20,000 headers", "".join(f"X-{i}: {i}\r\n" for i in range(20_000))),
        ("20,000 of one name", "Accept: text/plain\r\n" * 20_000),
        ("a long value", f"X: {'a' * 200_000}\r\n"),
        ("a long name", f"{'a' * 200_000}: x\r\n"),
        ("a long cookie", f"Cookie: {'a=b; ' * 40_000}\r\n"),
        ("a long key", f"Authorization: Bearer {'k' * 100_000}\r\n"),
    ],
)
def test_floods_of_headers(server: Server, name: str, more: str) -> None:
    with polite(server) as seen:
        found = exchange(server, head(more=more + "Connection: close\r\n"))
    seen.report(f"{name} ({found})")
    assert found in ([400], [431], []) and max(seen.waits) < PATIENCE


def test_a_long_path(server: Server) -> None:
    for path in ("/" + "a" * 100_000, "/v1/models/" + "%2e%2e%2f" * 5_000, "/v1/models/%00"):
        assert exchange(server, head(path=path, more="Connection: close\r\n")) in ([400], [404], [])


@pytest.mark.parametrize(
    ("request_", "allowed"),
    [
        (head(version="1.0"), [[200]]),
        (b"GET /health HTTP/1.0\r\n\r\n", [[200], [400], [403], [421]]),
        (b"GET /health HTTP/0.9\r\n\r\n", [[400], [403]]),
        (b"GET /health HTTP/2.0\r\n\r\n", [[400], [403]]),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", [[400], [403, 400]]),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", [[400], []]),  # TLS
        (b"GET /health\r\n\r\n", [[400]]),
        (b"get /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", [[400], [405]]),
        (b"GET /health HTTP/1.1\r\nConnection: close\r\n\r\n", [[400]]),  # no host
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n", [[400]]),
        (b"GET /health HTTP/1.1\r\nHost : localhost\r\n\r\n", [[400]]),
        (b"GET /health HTTP/1.1\r\n Host: localhost\r\n\r\n", [[400]]),
        (b"GET /health HTTP/1.1\nHost: localhost\nConnection: close\n\n", [[200], [400]]),
        (b"GET http://evil.example/health HTTP/1.1\r\nHost: evil.example\r\n"
         b"Connection: close\r\n\r\n", [[403], [404], [421], [400]]),
    ],
)  # fmt: skip
def test_http_of_other_kinds(server: Server, request_: bytes, allowed: list[Sequence[int]]) -> None:
    assert exchange(server, request_) in allowed


def test_many_requests_at_once_on_one_connection(server: Server) -> None:
    """Pipelined: each is answered, in order."""
    with polite(server) as seen:
        found = exchange(server, head() * 200 + head(more="Connection: close\r\n"))
    seen.report(f"201 pipelined requests ({len(found)} answers)")
    assert found == [200] * len(found) and len(found) in (1, 201)
    assert max(seen.waits) < PATIENCE


def test_a_request_hidden_in_a_body(server: Server) -> None:
    """Lengths that contradict each other aren't guessed at: one answer, and the connection ends."""
    hidden = head("GET", "/metrics")
    for more in (
        f"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n{JSON}",
        f"Content-Length: 4\r\nContent-Length: 5\r\n{JSON}",
        f"Transfer-Encoding: chunked, identity\r\n{JSON}",
        f"Transfer-Encoding: \x0bchunked\r\n{JSON}",
        f"Content-Length: +4\r\n{JSON}",
        f"Content-Length: 4\r\n : 5\r\n{JSON}",
    ):
        found = exchange(server, head("POST", CHAT, more) + b"0\r\n\r\n" + hidden)
        assert found == [400], (more, found)


HOSTS = {
    "localhost": True, "LOCALHOST": True, "127.0.0.1": True, "[::1]": True, "localhost:80": True,
    "127.0.0.1.nip.io": False, "localhost.evil.example": False, "evil.example": False,
    "evil.example:8000": False, "127.0.0.1@evil.example": False, "127.0.0.1:80@evil.example": False,
    "": False, "0.0.0.0.evil.example": False, "localhost evil.example": False,
    "xn--localhost": False, "localhost\x00.evil.example": False, "2130706433.example": False,
}  # fmt: skip


@pytest.mark.parametrize("host", HOSTS)
def test_names_that_it_is_called_by(server: Server, host: str) -> None:
    request = f"GET /v1/models HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
    found = exchange(server, request)
    assert found == [200] if HOSTS[host] else found and 400 <= found[0] < 500, found


@pytest.mark.parametrize(
    "more",
    [
        "Origin: null\r\n",
        "Origin: http://evil.example\r\n",
        "Origin: http://localhost.evil.example\r\n",
        "Origin: http://localhost:1\r\n",
        "Origin: file://\r\n",
        "Origin: \r\n",
        "Sec-Fetch-Site: cross-site\r\n",
        "Sec-Fetch-Site: same-site\r\nOrigin: http://localhost:1\r\n",
    ],
)
def test_pages_elsewhere(server: Server, more: str) -> None:
    body = json.dumps(chat()).encode()
    size = f"Content-Length: {len(body)}\r\nConnection: close\r\n"
    found = exchange(server, head("POST", CHAT, JSON + more + size) + body)
    assert found and 400 <= found[0] < 500, found


def test_media_types_that_pages_may_send(server: Server) -> None:
    body = json.dumps(chat()).encode()
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "",
                 "text/plain; application/json", "text/json"):  # fmt: skip
        line = f"Content-Type: {kind}\r\n" if kind else ""
        more = f"{line}Content-Length: {len(body)}\r\nConnection: close\r\n"
        found = exchange(server, head("POST", CHAT, more) + body)
        assert found == [415], (kind, found)


def test_it_still_answers(server: Server) -> None:
    assert ask(server.port, chat())[0] == 200
    _, text = ask(server.port, None, "/metrics")
    assert b"evil" not in text and MODEL.encode() in ask(server.port, None, "/v1/models")[1]
