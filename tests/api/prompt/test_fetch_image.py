"""The image fetcher against a hostile server on loopback, reached by an injected resolver."""

from __future__ import annotations

import io
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import httpcore2 as httpcore
import pytest
import trustme
from PIL import Image

from tinyllm.api.prompt.fetch_image import ImageFetcher, is_public, split_url
from tinyllm.errors import ImageError

PUBLIC = "93.184.215.14"
HOST = "images.test"


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (3, 2), (10, 20, 30)).save(file, "PNG")
    return file.getvalue()


Handler = Callable[[ssl.SSLSocket, str], None]


class HostileServer:
    """TLS on loopback; what happens after the request is the test's choice."""

    def __init__(self, authority: trustme.CA, *names: str) -> None:
        self.requests: list[str] = []
        self.server_names: list[str | None] = []
        self.handler: Handler = lambda connection, request: None
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(*names).configure_cert(self._context)
        self._context.sni_callback = lambda _, name, __: self.server_names.append(name)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._closing = threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                raw, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(raw,), daemon=True).start()

    def _answer(self, raw: socket.socket) -> None:
        try:
            with raw, self._context.wrap_socket(raw, server_side=True) as connection:
                connection.settimeout(10)
                request = b""
                while b"\r\n\r\n" not in request:
                    piece = connection.recv(4096)
                    if not piece:
                        return
                    request += piece
                self.requests.append(request.decode("latin-1"))
                self.handler(connection, request.decode("latin-1"))
        except OSError:
            pass

    def close(self) -> None:
        self._closing.set()
        self._socket.close()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def server(authority: trustme.CA) -> Iterator[HostileServer]:
    server = HostileServer(authority, HOST)
    yield server
    server.close()


class Net:
    """A made-up network: names have the addresses given here, and all lead to one server."""

    def __init__(self, server: HostileServer, addresses: list[list[str]]) -> None:
        self.server, self._addresses = server, addresses
        self.resolved: list[str] = []
        self.dialled: list[str] = []

    async def resolve(self, host: str) -> list[str]:
        self.resolved.append(host)
        return self._addresses[min(len(self.resolved), len(self._addresses)) - 1]

    async def dial(self, address: str, port: int) -> httpcore.AsyncNetworkStream:
        self.dialled.append(address)
        assert port == 443
        return await httpcore.AnyIOBackend().connect_tcp("127.0.0.1", self.server.port)


def fetch(
    server: HostileServer,
    authority: trustme.CA,
    url: str = f"https://{HOST}/a.png",
    addresses: list[list[str]] | None = None,
    net: Net | None = None,
    **options: Any,
) -> bytes:
    net = net or Net(server, addresses or [[PUBLIC]])
    context = ssl.create_default_context()
    authority.configure_trust(context)
    options = {"timeout": 5.0} | options
    fetcher = ImageFetcher(resolve=net.resolve, dial=net.dial, ssl_context=context, **options)
    return anyio.run(fetcher.fetch, url)


def answer(head: str, body: bytes = b"") -> Handler:
    return lambda connection, request: connection.sendall(
        head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body
    )


def refused(server: HostileServer, authority: trustme.CA, reason: str, **kwargs: Any) -> None:
    """The fetch fails for that reason, soon, and without telling an address."""
    begin = time.monotonic()
    with pytest.raises(ImageError, match=reason) as caught:
        fetch(server, authority, **kwargs)
    assert time.monotonic() - begin < 4
    for secret in (PUBLIC, "127.0.0.1", str(server.port), "10.0.0.1"):
        assert secret not in str(caught.value)


def test_a_plain_image(server: HostileServer, authority: trustme.CA) -> None:
    server.handler = answer("HTTP/1.1 200 OK\nContent-Type: image/png", png())
    net = Net(server, [[PUBLIC]])
    assert (
        fetch(server, authority, f"https://{HOST.upper()}/a b.png".replace(" ", "%20"), net=net)
        == png()
    )
    assert net.resolved == [HOST]
    assert net.dialled == [PUBLIC]  # the checked address, not the name
    assert server.server_names == [HOST]  # and the name for TLS …
    head = server.requests[0].split("\r\n")
    assert head[0] == "GET /a%20b.png HTTP/1.1"
    assert f"Host: {HOST}" in head  # … and for the server


@pytest.mark.parametrize("framing", ["Content-Length: {n}", "Transfer-Encoding: chunked"])
def test_both_framings(server: HostileServer, authority: trustme.CA, framing: str) -> None:
    body = png()
    sent = f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n" if "chunked" in framing else body
    server.handler = answer("HTTP/1.1 200 OK\n" + framing.format(n=len(body)), sent)
    assert fetch(server, authority) == body


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(
    server: HostileServer, authority: trustme.CA, status: int
) -> None:
    server.handler = answer(f"HTTP/1.1 {status} X\nLocation: https://10.0.0.1/\nContent-Length: 0")
    net = Net(server, [[PUBLIC]])
    refused(server, authority, "redirect", net=net)
    assert len(net.resolved) == len(server.requests) == 1


def test_a_name_is_resolved_once_so_rebinding_comes_too_late(
    server: HostileServer, authority: trustme.CA
) -> None:
    server.handler = answer("HTTP/1.1 200 OK", png())
    net = Net(server, [[PUBLIC], ["127.0.0.1"], ["127.0.0.1"]])
    assert fetch(server, authority, net=net) == png()
    assert net.resolved == [HOST]
    assert net.dialled == [PUBLIC]


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["10.0.0.1"],
        [PUBLIC, "192.168.1.1"],  # one bad address among good ones spoils the name
        ["169.254.169.254"],
        ["::1"],
        ["fe80::1"],
        ["fe80::1%eth0"],
        ["::ffff:10.0.0.1"],
        ["2002:0a00:0001::1"],
        ["fd00:ec2::254"],
        ["not an address"],
    ],
    ids=str,
)
def test_names_that_lead_inside_are_never_dialled(
    server: HostileServer, authority: trustme.CA, addresses: list[str]
) -> None:
    net = Net(server, [addresses])
    refused(server, authority, "not on the public internet", net=net)
    assert net.dialled == []
    assert server.requests == []


@pytest.mark.parametrize(
    "url",
    [
        "https://localhost/x",
        "https://127.0.0.1/x",
        "https://127.1/x",
        "https://2130706433/x",
        "https://0x7f000001/x",
        "https://[::1]/x",
        "https://[::ffff:127.0.0.1]/x",
        "https://[::ffff:a9fe:a9fe]/x",
        "https://169.254.169.254/latest/meta-data",
        "https://0.0.0.0/",
        "https://[::]/",
    ],
)
def test_the_systems_own_resolver_is_checked_too(url: str) -> None:
    with pytest.raises(ImageError, match=r"not on the public internet|can't be resolved"):
        anyio.run(ImageFetcher().fetch, url)


def test_the_next_address_is_tried(server: HostileServer, authority: trustme.CA) -> None:
    server.handler = answer("HTTP/1.1 200 OK", png())
    net = Net(server, [["2606:2800:21f:cb07:6820:80da:af6b:8b2c", PUBLIC]])
    plain_dial = net.dial

    async def first_fails(address: str, port: int) -> httpcore.AsyncNetworkStream:
        if ":" in address:
            net.dialled.append(address)
            raise httpcore.ConnectError("no route to host")
        return await plain_dial(address, port)

    net.dial = first_fails  # type: ignore[method-assign]
    assert fetch(server, authority, net=net) == png()
    assert net.dialled[-1] == PUBLIC and len(net.dialled) == 2


def test_a_slow_drip_meets_the_deadline(server: HostileServer, authority: trustme.CA) -> None:
    def drip(connection: ssl.SSLSocket, request: str) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n\r\n")
        for byte in png() * 100:
            connection.sendall(bytes([byte]))
            time.sleep(0.05)

    server.handler = drip
    refused(server, authority, "more than 0.5 s", timeout=0.5)


def test_slow_headers_meet_the_deadline(server: HostileServer, authority: trustme.CA) -> None:
    def drip(connection: ssl.SSLSocket, request: str) -> None:
        while True:
            connection.sendall(b"HTTP/1.1 103 Early Hints\r\n\r\n")
            time.sleep(0.05)

    server.handler = drip
    refused(server, authority, "more than 0.5 s", timeout=0.5)


def test_silence_meets_the_deadline(server: HostileServer, authority: trustme.CA) -> None:
    server.handler = lambda connection, request: time.sleep(2)
    refused(server, authority, "more than 0.5 s", timeout=0.5)


def test_a_resolver_that_hangs_meets_the_deadline(
    server: HostileServer, authority: trustme.CA
) -> None:
    net = Net(server, [[PUBLIC]])

    async def never(host: str) -> list[str]:
        await anyio.sleep(60)
        return [PUBLIC]

    net.resolve = never  # type: ignore[method-assign]
    refused(server, authority, "more than 0.3 s", net=net, timeout=0.3)


def test_an_endless_body_is_cut(server: HostileServer, authority: trustme.CA) -> None:
    def pour(connection: ssl.SSLSocket, request: str) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            connection.sendall(b"x" * 65536)

    server.handler = pour
    refused(server, authority, "more than 100,000 bytes", max_bytes=100_000)


def test_an_endless_chunked_body_is_cut(server: HostileServer, authority: trustme.CA) -> None:
    def pour(connection: ssl.SSLSocket, request: str) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            connection.sendall(b"2000\r\n" + b"x" * 0x2000 + b"\r\n")

    server.handler = pour
    refused(server, authority, "more than 100,000 bytes", max_bytes=100_000)


def test_an_announced_excess_is_not_waited_for(
    server: HostileServer, authority: trustme.CA
) -> None:
    server.handler = answer("HTTP/1.1 200 OK\nContent-Length: 99999999999")
    refused(server, authority, "more than 10,485,760 bytes")


@pytest.mark.parametrize(
    ("head", "body", "reason"),
    [
        ("HTTP/1.1 200 OK\nContent-Type: text/html", b"<html>", "sends text/html"),
        ("HTTP/1.1 200 OK\nContent-Type: <b>10.0.0.1", b"", "another type"),
        ("HTTP/1.1 200 OK\nContent-Encoding: gzip", b"\x1f\x8b", "compressed"),
        ("HTTP/1.1 404 No", b"", "status 404"),
        ("HTTP/1.1 206 Part", b"xx", "status 206"),
        ("HTTP/1.1 200 OK\nContent-Length: 500", b"short", "ended too early"),
        ("HTTP/1.1 200 OK\nContent-Length: -5", b"short", "proper HTTP"),
        ("HTTP/1.1 200 OK\nTransfer-Encoding: chunked", b"zz\r\n", "proper HTTP"),
        ("SSH-2.0-OpenSSH_9.9", b"", "proper HTTP"),
        ("HTTP/1.1 200 OK\nX: " + "y" * 300_000, b"", "proper HTTP"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_answers_that_are_no_image(
    server: HostileServer, authority: trustme.CA, head: str, body: bytes, reason: str
) -> None:
    server.handler = answer(head, body)
    refused(server, authority, reason)


def test_a_certificate_for_another_name(authority: trustme.CA) -> None:
    server = HostileServer(authority, "other.test")
    refused(server, authority, "certificate isn't valid")
    assert server.requests == []
    server.close()


def test_a_certificate_that_nobody_vouches_for(server: HostileServer) -> None:
    refused(server, trustme.CA(), "certificate isn't valid")
    assert server.requests == []


def test_a_host_that_speaks_no_tls(authority: trustme.CA) -> None:
    plain = socket.create_server(("127.0.0.1", 0))

    def greet() -> None:
        connection, _ = plain.accept()
        with connection:
            connection.sendall(b"220 mail.test ESMTP\r\n")
            connection.recv(1000)

    threading.Thread(target=greet, daemon=True).start()
    server = HostileServer(authority, HOST)
    server.port = plain.getsockname()[1]
    refused(server, authority, "TLS|hung up")
    server.close()
    plain.close()


def test_a_host_that_is_not_there(server: HostileServer, authority: trustme.CA) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        server.port = unused.getsockname()[1]
    refused(server, authority, "can't be reached")


def test_modes(server: HostileServer, authority: trustme.CA) -> None:
    server.handler = answer("HTTP/1.1 200 OK", png())
    refused(server, authority, "doesn't fetch images", mode="off")
    for hosts in ([], ["other.test"], ["mages.test"], [".images.test"]):
        refused(server, authority, "not on this server's list", mode="allowlist", hosts=hosts)
    assert server.requests == []
    for hosts in (["IMAGES.test"], [".test"], ["*.test"]):
        assert fetch(server, authority, mode="allowlist", hosts=hosts) == png()
    assert fetch(server, authority, f"https://{HOST}./a", mode="allowlist", hosts=[HOST]) == png()


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://images.test/a", "https://"),
        ("ftp://images.test/a", "https://"),
        ("//images.test/a", "https://"),
        ("https://", "malformed"),
        ("https:///a", "malformed"),
        ("https://images.test:8443/a", "port other than 443"),
        ("https://images.test:99999/a", "malformed"),
        ("https://me:secret@images.test/a", "user name"),
        ("https://images.test@10.0.0.1/a", "user name"),
        ("https://images.test/a b", "space"),
        ("https://images.test/a\r\nHost: x", "space"),
        ("https://images.test\\@10.0.0.1/", "backslash"),
        ("https://[::1/", "malformed"),
        ("https://[fe80::1%25eth0]/", "malformed"),
        ("https://exa mple/", "space"),
        ("https://a..b/", "malformed"),
        ("https://<x>/", "malformed"),
        ("https://" + "a" * 5000, "longer than"),
    ],
)
def test_urls_that_are_refused(url: str, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        split_url(url)


def test_urls_are_put_in_order() -> None:
    assert split_url("HTTPS://Images.Test") == ("images.test", "/")
    assert split_url("https://images.test:443/a/../b?q=1&r=ü#frag") == (
        "images.test",
        "/a/../b?q=1&r=%C3%BC",
    )
    assert split_url("https://bücher.test/ü%20") == ("xn--bcher-kva.test", "/%C3%BC%20")
    assert split_url("https://[2606:2800::1]/") == ("2606:2800::1", "/")


@pytest.mark.parametrize(
    ("address", "public"),
    [
        (PUBLIC, True),
        ("8.8.8.8", True),
        ("2606:2800:21f:cb07:6820:80da:af6b:8b2c", True),
        ("::ffff:8.8.8.8", True),
        ("64:ff9b::808:808", True),  # NAT64 of 8.8.8.8
        ("64:ff9b::a00:1", False),  # NAT64 of 10.0.0.1
        ("64:ff9b:1::808:808", False),
        ("::ffff:192.168.0.1", False),
        ("::8.8.8.8", False),
        ("2002:808:808::1", False),
        ("2001:0:808:808::1", False),
        ("2001:db8::1", False),
        ("3fff::1", False),
        ("fec0::1", False),
        ("fc00::1", False),
        ("ff02::1", False),
        ("::", False),
        ("::1", False),
        ("0.0.0.0", False),
        ("10.1.2.3", False),
        ("100.64.0.1", False),
        ("127.255.255.255", False),
        ("169.254.0.1", False),
        ("172.16.0.1", False),
        ("172.32.0.1", True),
        ("192.0.0.8", False),
        ("192.0.2.1", False),
        ("192.88.99.1", False),
        ("192.168.255.255", False),
        ("198.18.0.1", False),
        ("203.0.113.1", False),
        ("168.63.129.16", False),
        ("224.0.0.1", False),
        ("240.0.0.1", False),
        ("255.255.255.255", False),
        ("localhost", False),
        ("", False),
    ],
)
def test_public_addresses(address: str, public: bool) -> None:
    assert is_public(address) is public
