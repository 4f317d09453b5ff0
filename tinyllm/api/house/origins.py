"""Whom the server answers: the hosts it is called by, and the pages that may ask.

A page on the web runs in the user's own browser, so it can send requests to a server that listens
on that machine alone. Without keys three things keep it out, and none can be forged by a page:

- `Host` must be a name of this machine. Else a page's own name could be made to resolve to
  127.0.0.1 after it was loaded (DNS rebinding), and its scripts would then talk to "themselves".
- `Origin`, where a browser sends one, must be the server's own address.
- `Sec-Fetch-Site: cross-site` comes with requests that carry no Origin: links, images, frames.

`--allow-host` and `--cors-origin` name exceptions. With keys a page would have to know one, so only
the answers for browsers (the CORS protocol, https://fetch.spec.whatwg.org/#http-cors-protocol)
remain: a preflight comes without the key, and is answered before anybody asks for it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Mapping

from starlette.datastructures import Headers
from starlette.responses import Response

from tinyllm.api.contract.errors import ApiError, quoted

METHODS = "GET, POST, DELETE, OPTIONS"
EXPOSED = "Retry-After, X-Ignored-Params, X-Prompt-Truncated, X-Request-Id, X-Session-ID"
REMEMBERED = 600  # seconds for which a browser needn't ask again
_HEADER_NAMES = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+(\s*,\s*[A-Za-z0-9!#$%&'*+.^_`|~-]+)*")
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(:\d{1,5})?", re.IGNORECASE)


class Origins:
    """The rules of one server.

    Args:
        keyed: API keys are set.
        hosts: names by which it may be called, beside this machine's own.
        origins: of pages elsewhere that may ask, as `https://example.org`; `*` is any.
    """

    def __init__(self, keyed: bool, hosts: Collection[str], origins: Collection[str]) -> None:
        self._keyed = keyed
        self._hosts = frozenset(host.lower().rstrip(".") for host in hosts)
        self._origins = frozenset(origin.lower().rstrip("/") for origin in origins)

    def check(self, headers: Headers, address: str | None) -> None:
        """ApiError 403 for whom this server doesn't answer.

        `address` is the one of this machine that the connection came in on.
        """
        if self._keyed:
            return
        host = headers.get("host", "")
        if not self._is_ours(host, address):
            raise _refused(
                f"This server isn't called {quoted(host)}; without API keys it answers to names of "
                "its own machine alone. --allow-host adds one.",
                "host_not_allowed",
            )
        origin = headers.get("origin")
        if origin is not None:
            if not self._may_ask(origin, host):
                raise _refused(
                    f"Pages of {quoted(origin)} may not use this server; --cors-origin lets them.",
                    "origin_not_allowed",
                )
        elif headers.get("sec-fetch-site") == "cross-site":
            raise _refused(
                "Other sites' pages may not use this server; --cors-origin lets them.",
                "origin_not_allowed",
            )

    def preflight(self, method: str, headers: Headers) -> Response | None:
        """The answer to a browser that asks whether a page may ask; None if that isn't it."""
        origin = headers.get("origin")
        if method != "OPTIONS" or origin is None or "access-control-request-method" not in headers:
            return None
        if not self._may_ask(origin, headers.get("host", "")):
            raise _refused(f"Pages of {quoted(origin)} may not use this server.",
                           "origin_not_allowed")  # fmt: skip
        wanted = headers.get("access-control-request-headers", "").strip()
        allowed = {
            **self.told(headers),
            "Access-Control-Allow-Methods": METHODS,
            "Access-Control-Max-Age": str(REMEMBERED),
        }
        if _HEADER_NAMES.fullmatch(wanted):
            allowed["Access-Control-Allow-Headers"] = wanted
        if headers.get("access-control-request-private-network") == "true":
            allowed["Access-Control-Allow-Private-Network"] = "true"
        return Response(None, 204, allowed)

    def told(self, headers: Headers) -> Mapping[str, str]:
        """The headers of an answer that let a page read it; none for a page that may not."""
        origin = headers.get("origin")
        if origin is None or not self._listed(origin):
            return {}
        return {
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Expose-Headers": EXPOSED,
            "Vary": "Origin",
        }

    def _may_ask(self, origin: str, host: str) -> bool:
        own = origin.lower().partition("://")[2] == host.lower() != ""
        return own or self._listed(origin)

    def _listed(self, origin: str) -> bool:
        return "*" in self._origins or origin.lower() in self._origins

    def _is_ours(self, host: str, address: str | None) -> bool:
        """Whether a Host header names this machine."""
        match = _HOST.fullmatch(host)
        if match is None:
            return False
        name = match[1].lower().strip("[]").rstrip(".")
        return is_loopback(name) or name == (address or "").lower() or name in self._hosts


def is_loopback(host: str) -> bool:
    """Whether a name or an address is this machine's own (RFC 6761, 6.3; RFC 1122, 3.2.1.3)."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _refused(message: str, code: str) -> ApiError:
    return ApiError(403, message, "permission_error", code=code, retry=False)
