"""Bodies take room together: who sends much leaves some for another, and all of it comes back."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator

import pytest

from tests.api.house.test_serving import request_bytes, until
from tests.api.support import MODEL, Live
from tinyllm.api.house.body import BodyLimits, BodyReader

ALL = 1_000_000  # bytes of room
HEAD = (
    "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    "Content-Length: {}\r\n\r\n"
)
SMALL = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}


@pytest.fixture
def bodies(scripted: Live, monkeypatch: pytest.MonkeyPatch) -> BodyReader:
    """A reader with little room."""
    reader = BodyReader(BodyLimits(700_000, 30, 700_000), scripted.service.pools.reading, ALL)
    monkeypatch.setattr(scripted.service, "bodies", reader)
    return reader


def address_of(server: Live) -> tuple[str, int]:
    host, port = server.url.removeprefix("http://").split(":")
    return host, int(port)


@contextlib.contextmanager
def begun(server: Live, address: str, announced: int, sent: int) -> Iterator[socket.socket]:
    """A request of which only a part has come."""
    with socket.create_connection(address_of(server), 10, (address, 0)) as connection:
        connection.sendall(HEAD.format(announced).encode() + b" " * sent)
        yield connection


def test_half_of_the_room_is_left_for_another(scripted: Live, bodies: BodyReader) -> None:
    with contextlib.ExitStack() as open_ones:
        for _ in range(4):
            open_ones.enter_context(begun(scripted, "127.0.0.1", 120_000, 110_000))
        until(lambda: bodies._budget.free <= ALL - 440_000)
        with begun(scripted, "127.0.0.1", 100_000, 0) as fifth:  # is refused before it has come
            answer = fifth.recv(4096)
            assert answer.startswith(b"HTTP/1.1 503") and b"\r\nretry-after: 5" in answer.lower()
        assert scripted.post("/v1/chat/completions", SMALL).status_code == 200
        with begun(scripted, "127.0.0.2", 250_000, 240_000):
            until(lambda: bodies._budget.free <= ALL - 680_000)
    until(lambda: bodies._budget.free == ALL)


def test_a_body_that_never_says_how_long_it_is(scripted: Live, bodies: BodyReader) -> None:
    with socket.create_connection(address_of(scripted), 10) as connection:
        head = HEAD.replace("Content-Length: {}", "Transfer-Encoding: chunked")
        chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        with contextlib.suppress(ConnectionError):
            connection.sendall(head.encode() + chunk * 10)
        assert connection.recv(4096).startswith(b"HTTP/1.1 503")
    until(lambda: bodies._budget.free == ALL)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses"])
def test_every_answer_gives_its_room_back(
    scripted: Live, bodies: BodyReader, path: str, stream: bool
) -> None:
    body = {"model": MODEL, "stream": stream, "user": "x" * 1000}
    body |= {"input": "Hi"} if "responses" in path else {"prompt": "Hi", "max_tokens": 2}
    if "chat" in path:
        body = {**SMALL, "stream": stream}
    assert scripted.post(path, body).status_code == 200
    until(lambda: bodies._budget.free == ALL)
    assert scripted.post(path, {**body, "temperature": "hot"}).status_code == 400
    until(lambda: bodies._budget.free == ALL)
    with socket.create_connection(address_of(scripted), 10) as connection:
        connection.sendall(request_bytes(body, path))  # and away
    until(lambda: bodies._budget.free == ALL)
    assert json.loads(scripted.http.get("/health").text)["status"] == "ready"
