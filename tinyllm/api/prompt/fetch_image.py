"""https URL → bytes, for a stranger who chose the URL and may own the server behind it.

The server that fetches sits inside a network that the stranger doesn't, so the danger is less in
what comes back than in whom it is made to talk to. Hence: https on port 443 only; the name is
resolved once, every address it has must be a public one, and the address that was checked is the
one that is dialled, with the name kept for TLS and the Host header; no redirects; no answer beyond
a size, and none later than a deadline that covers everything from the name to the last byte. What
goes wrong is told without any address in it.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from typing import Final, Literal
from urllib.parse import quote, urlsplit

import anyio
import anyio.to_thread
import httpcore2 as httpcore

from tinyllm.api.limits import FETCH_SECONDS, MAX_FETCHES, MAX_IMAGE_BYTES, MAX_IMAGE_URL
from tinyllm.errors import ImageError

Mode = Literal["public", "allowlist", "off"]
Resolve = Callable[[str], Awaitable[Sequence[str]]]  # a name's addresses, as text
Dial = Callable[[str, int], Awaitable[httpcore.AsyncNetworkStream]]  # to an address and port

PORT: Final = 443

# Networks that `ipaddress` calls global, or called so in some version of Python, and that are not
# a public host's: relays, tunnels with another address inside, documentation, a cloud's own agent.
NOT_PUBLIC: Final = tuple(
    ipaddress.ip_network(text)
    for text in (
        "192.0.0.0/24",
        "192.88.99.0/24",  # 6to4 relays
        "168.63.129.16/32",  # the host agent of every machine in one large cloud
        "::/96",  # IPv4-compatible
        "64:ff9b:1::/48",  # local NAT64
        "100::/64",
        "2001::/23",  # Teredo among others
        "2001:db8::/32",
        "2002::/16",  # 6to4
        "3fff::/20",
        "5f00::/16",
        "fec0::/10",  # site-local
    )
)
NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")

_HOST: Final = re.compile(r"[a-z0-9_]([a-z0-9_.-]{0,251}[a-z0-9_])?")
_MEDIA_TYPE: Final = re.compile(r"[\w.+-]{1,40}/[\w.+-]{1,40}", re.ASCII)


class ImageFetcher:
    """Fetches images from https URLs.

    Args:
        mode: "public" fetches from any public host, "allowlist" from `hosts` alone, "off" nothing.
        hosts: names for the allowlist; ".example.org" means every name below it.
        timeout: seconds for everything.
        max_bytes: of an answer.
        resolve, dial, ssl_context: how names become addresses and addresses connections, and which
            certificates are trusted; tests put their own in.
    """

    def __init__(
        self,
        mode: Mode = "public",
        hosts: Collection[str] = (),
        *,
        timeout: float = FETCH_SECONDS,
        max_bytes: int = MAX_IMAGE_BYTES,
        resolve: Resolve | None = None,
        dial: Dial | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._mode = mode
        self._hosts = frozenset(host.lower().rstrip(".").removeprefix("*") for host in hosts)
        self._timeout = timeout
        self._max_bytes = max_bytes
        self._backend = _CheckedBackend(resolve or resolve_name, dial or dial_address)
        self._ssl_context = ssl_context
        self._turn = anyio.Semaphore(MAX_FETCHES)

    async def fetch(self, url: str) -> bytes:
        """The body behind `url`.

        Raises:
            ImageError: the URL or host isn't allowed, or no whole image came back in time; the
                message is for the client and completes "the image can't be fetched: …".
        """
        if self._mode == "off":
            raise ImageError("this server doesn't fetch images; send a data: URL")
        host, target = split_url(url)
        if self._mode == "allowlist" and not self._allows(host):
            raise ImageError("its host is not on this server's list")
        async with self._turn:
            try:
                with anyio.fail_after(self._timeout):
                    return await self._get(host, target)
            except TimeoutError:
                raise ImageError(f"it took more than {self._timeout:g} s") from None
            except _NotPublic:
                raise ImageError("its host is not on the public internet") from None
            except _NoSuchName:
                raise ImageError("its host's name can't be resolved") from None
            except (
                httpcore.NetworkError,
                httpcore.ProtocolError,
                httpcore.TimeoutException,
                OSError,
                ssl.SSLError,
                anyio.BrokenResourceError,
            ) as error:
                raise ImageError(_reason(error)) from None

    def _allows(self, host: str) -> bool:
        return host in self._hosts or any(
            host.endswith(suffix) for suffix in self._hosts if suffix.startswith(".")
        )

    async def _get(self, host: str, target: str) -> bytes:
        if self._ssl_context is None:
            self._ssl_context = httpcore.default_ssl_context()
        url = httpcore.URL(scheme="https", host=host, port=None, target=target)
        headers = [
            ("Host", f"[{host}]" if ":" in host else host),
            ("Accept", "image/png, image/jpeg, image/webp, image/gif"),
            ("Accept-Encoding", "identity"),
            ("User-Agent", "tinyllm"),
            ("Connection", "close"),
        ]
        async with (
            httpcore.AsyncConnectionPool(
                ssl_context=self._ssl_context, network_backend=self._backend
            ) as pool,
            pool.stream("GET", url, headers=headers) as response,
        ):
            self._check_head(response)
            body = bytearray()
            async for chunk in response.aiter_stream():
                body += chunk
                if len(body) > self._max_bytes:
                    raise self._too_large()
            return bytes(body)

    def _check_head(self, response: httpcore.Response) -> None:
        if 300 <= response.status < 400:
            raise ImageError("its host answers with a redirect, and none is followed")
        if response.status != 200:
            raise ImageError(f"its host answers with status {response.status}")
        headers = {k.lower(): v.decode("latin-1").strip().lower() for k, v in response.headers}
        if headers.get(b"content-encoding", "identity") not in ("", "identity"):
            raise ImageError("its host sends it compressed, which wasn't asked for")
        media = headers.get(b"content-type", "").partition(";")[0].strip()
        if media and not media.startswith("image/") and media != "application/octet-stream":
            shown = media if _MEDIA_TYPE.fullmatch(media) else "another type"
            raise ImageError(f"its host sends {shown}, not an image")
        length = headers.get(b"content-length", "")
        if length.isascii() and length.isdigit() and int(length[:20]) > self._max_bytes:
            raise self._too_large()

    def _too_large(self) -> ImageError:
        return ImageError(f"it has more than {self._max_bytes:,} bytes")


def split_url(url: str) -> tuple[str, str]:
    """The host, lower case and in ASCII, and the request target of an https URL.

    Raises:
        ImageError: not https, another port, a user name, or characters that no URL has.
    """
    if len(url) > MAX_IMAGE_URL:
        raise ImageError(f"its URL is longer than {MAX_IMAGE_URL} characters")
    if re.search(r"[\x00-\x20\x7f\\]", url):
        raise ImageError("its URL holds a space, a control character or a backslash")
    try:
        parts = urlsplit(url)
        port, host = parts.port, (parts.hostname or "").lower()
        if ":" in host:
            if ipaddress.IPv6Address(host).scope_id is not None:
                raise ValueError
        else:
            host = host.removesuffix(".").encode("idna").decode("ascii")
            if not _HOST.fullmatch(host):
                raise ValueError
        target = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
        if parts.query:
            target += "?" + quote(parts.query, safe="/?%:@!$&'()*+,;=~-._")
    except ValueError:
        raise ImageError("its URL is malformed") from None
    if parts.scheme.lower() != "https":
        raise ImageError("its URL doesn't start with https://")
    if "@" in parts.netloc:
        raise ImageError("its URL holds a user name")
    if port not in (None, PORT):
        raise ImageError(f"its URL names a port other than {PORT}")
    return host, target


def is_public(address: str) -> bool:
    """Whether an address, as text, belongs to a host on the public internet.

    An IPv4 address inside an IPv6 one (mapped, or NAT64) counts as the IPv4 address that it is;
    tunnels (6to4, Teredo) count as not public, whatever is inside.
    """
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.scope_id is not None:
            return False
        if ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        elif ip in NAT64:
            ip = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    if any(ip in network for network in NOT_PUBLIC if network.version == ip.version):
        return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


async def resolve_name(host: str) -> list[str]:
    """The addresses of a host, in the system's order of preference.

    Raises:
        OSError: there are none.
    """

    def look_up() -> list[str]:
        found = socket.getaddrinfo(host, PORT, type=socket.SOCK_STREAM)
        return [str(sockaddr[0]) for *_, sockaddr in found]

    # A resolver that never answers keeps its thread, not us.
    return await anyio.to_thread.run_sync(look_up, abandon_on_cancel=True)


async def dial_address(address: str, port: int) -> httpcore.AsyncNetworkStream:
    """A TCP connection to an address (never a name)."""
    return await httpcore.AnyIOBackend().connect_tcp(address, port)


class _NotPublic(Exception):
    """One of a name's addresses is not a public one."""


class _NoSuchName(Exception):
    """A name has no address."""


class _CheckedBackend(httpcore.AsyncNetworkBackend):
    """Connects by resolving once, checking all addresses, and dialling one that was checked."""

    def __init__(self, resolve: Resolve, dial: Dial) -> None:
        self._resolve = resolve
        self._dial = dial

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Dial `host`; the pool then speaks TLS over it in the host's own name."""
        try:
            addresses = list(dict.fromkeys(await self._resolve(host)))
        except (OSError, UnicodeError):
            raise _NoSuchName from None
        if not addresses:
            raise _NoSuchName
        if port != PORT or not all(is_public(address) for address in addresses):
            raise _NotPublic
        for address in addresses[:-1]:
            try:
                return await self._dial(address, port)
            except (OSError, httpcore.NetworkError):
                continue
        return await self._dial(addresses[-1], port)


def _reason(error: BaseException) -> str:
    """What went wrong between us and the host, in words that hold no address."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ssl.SSLCertVerificationError):
            return "its host's certificate isn't valid"
        if isinstance(seen, ssl.SSLError):
            return "its host can't be spoken to over TLS"
        seen = seen.__cause__ or seen.__context__
    if isinstance(error, httpcore.ProtocolError):
        return "its host doesn't answer in proper HTTP, or ended too early"
    return "its host can't be reached, or hung up"
