"""Whom a server answers, over a real socket: hosts, pages of other origins, preflights."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import httpx
import pytest

from tests.api.support import Live, ScriptRunner, live, scripted_model
from tinyllm.api.house.settings import Settings
from tinyllm.tokenizer import Tokenizer

PAGE = "https://page.example"
CHAT = "/v1/chat/completions"
ASK = {"access-control-request-method": "POST",
       "access-control-request-headers": "authorization, content-type"}  # fmt: skip


def served(tokenizer: Tokenizer, **options: object) -> Iterator[Live]:
    runner = ScriptRunner(tokenizer)
    settings = Settings(port=0, access_log="off", **options)  # type: ignore[arg-type]
    with live(settings, lambda: [scripted_model(tokenizer, runner)], runner=runner) as server:
        yield server


@pytest.fixture(scope="module")
def keyless(tokenizer: Tokenizer) -> Iterator[Live]:
    """A server without keys that knows one foreign page and one more name."""
    yield from served(tokenizer, cors_origin=(PAGE,), allow_host=("models.lan",))


@pytest.fixture(scope="module")
def keyed(tokenizer: Tokenizer) -> Iterator[Live]:
    yield from served(tokenizer, api_key=("secret",), cors_origin=(PAGE,))


def code(response: httpx.Response) -> str:
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return str(error["code"])


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "", "a b",
             "8.8.8.8", "localhost@evil.example", "[::2]:80", "127.0.0.1:x"],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/health", "/v1/models", "/metrics"])
def test_a_foreign_host_is_refused(keyless: Live, host: str, path: str) -> None:
    response = keyless.http.get(path, headers={"host": host})
    assert response.status_code == 403
    assert code(response) == "host_not_allowed"


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8000", "127.0.0.1", "127.3.2.1:80", "[::1]:8000",
             "a.localhost", "models.lan", "models.lan.:8000"],
)  # fmt: skip
def test_the_machines_own_names_are_answered(keyless: Live, host: str) -> None:
    assert keyless.http.get("/health", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://localhost:1", "file://"]
)
def test_a_foreign_page_is_refused(keyless: Live, origin: str) -> None:
    response = keyless.chat("/v1", {}, headers={"origin": origin})
    assert response.status_code == 403
    assert code(response) == "origin_not_allowed"
    assert "access-control-allow-origin" not in response.headers
    asked = keyless.http.options(CHAT, headers={"origin": origin, **ASK})
    assert asked.status_code == 403 and "access-control-allow-origin" not in asked.headers


@pytest.mark.parametrize("site", ["cross-site"])
def test_a_link_or_image_of_another_site_is_refused(keyless: Live, site: str) -> None:
    headers = {"sec-fetch-site": site, "sec-fetch-mode": "no-cors"}
    assert code(keyless.http.get("/v1/models", headers=headers)) == "origin_not_allowed"


@pytest.mark.parametrize("site", ["same-origin", "none"])
def test_the_servers_own_page_is_answered(keyless: Live, site: str) -> None:
    headers = {"origin": keyless.url, "sec-fetch-site": site}
    assert keyless.chat("/v1", {}, headers=headers).status_code == 200


def test_a_page_on_the_list_may_ask(keyless: Live) -> None:
    asked = keyless.http.options(CHAT, headers={"origin": PAGE, **ASK})
    assert asked.status_code == 204
    assert asked.headers["access-control-allow-origin"] == PAGE
    assert asked.headers["access-control-allow-headers"] == ASK["access-control-request-headers"]
    assert "POST" in asked.headers["access-control-allow-methods"]
    response = keyless.chat("/v1", {}, headers={"origin": PAGE, "sec-fetch-site": "cross-site"})
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == PAGE
    assert response.headers["vary"] == "Origin"


def test_with_keys_a_preflight_needs_none_and_faults_can_be_read(keyed: Live) -> None:
    asked = keyed.http.options(CHAT, headers={"origin": PAGE, **ASK})
    assert asked.status_code == 204
    response = keyed.chat("/v1", {}, headers={"origin": PAGE})
    assert response.status_code == 401
    assert response.headers["access-control-allow-origin"] == PAGE
    other = keyed.http.options(CHAT, headers={"origin": "https://evil.example", **ASK})
    assert other.status_code == 403


def test_with_keys_any_host_will_do(keyed: Live) -> None:
    headers = {"host": "models.example", "authorization": "Bearer secret"}
    assert keyed.chat("/v1", {}, headers=headers).status_code == 200


def test_a_body_says_that_it_is_json(keyless: Live) -> None:
    for kind in (None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        headers = {} if kind is None else {"content-type": kind}
        response = keyless.http.post(CHAT, content=b'{"model": "x"}', headers=headers)
        assert response.status_code == 415


def test_made_up_methods_are_one_label(keyless: Live) -> None:
    for i in range(20):
        keyless.http.request(f"MADEUP{i}", "/health")
    text = keyless.http.get("/metrics").text
    assert "MADEUP" not in text
    assert 'method="other"' in text


def test_two_lengths_close_the_connection(keyless: Live) -> None:
    host, port = keyless.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as sock:
        smuggled = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
        sock.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nContent-Length: 5\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + smuggled
        )
        answer = b""
        while data := sock.recv(65536):
            answer += data
    assert answer.startswith(b"HTTP/1.1 400 ") and answer.count(b"HTTP/1.1 ") == 1
    assert b"connection: close" in answer.lower()
