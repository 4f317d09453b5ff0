"""The listening sockets: bound before anything is loaded, and quiet when descriptors run out."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import time
from collections.abc import Mapping
from typing import Any

from tinyllm.api.limits import BACKLOG, MAX_CONNECTIONS, SPARE_DESCRIPTORS

log = logging.getLogger(__name__)

QUIET = 10.0  # seconds between two lines about the same trouble


def listen(host: str, port: int) -> list[socket.socket]:
    """Sockets that are bound to every address of `host`; port 0 takes a free one.

    Raises ValueError, with one sentence for whoever started the server.
    """
    sockets: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        for family, _, _, _, address in dict.fromkeys(found):
            chosen = sockets[0].getsockname()[1] if sockets else port
            listener = socket.socket(family, socket.SOCK_STREAM)
            sockets.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind((address[0], chosen, *address[2:]))
            listener.listen(BACKLOG)
    except OSError as error:
        for listener in sockets:
            listener.close()
        reason = _reason(error, host, port)
        raise ValueError(f"can't listen on {host} port {port}: {reason}") from None
    return sockets


def _reason(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"another program does already; --port {_free_port(host, port)} is free"
    if error.errno in (errno.EACCES, errno.EPERM):
        return "this user may not; take a port above 1023"
    if isinstance(error, socket.gaierror):
        return "there is no such address; see --host"
    if error.errno == errno.EADDRNOTAVAIL:
        return "this machine doesn't have that address; see --host"
    return error.strerror or str(error)


def _free_port(host: str, taken: int) -> int:
    """The first port above `taken` that is free just now; 0, which finds one, if none is near."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for port in range(taken + 1, min(taken + 100, 65536)):
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return port
    return 0


def raise_file_limit() -> int:
    """A socket a client: take as many as the system lets us. How many may be open at once."""
    try:
        import resource
    except ImportError:  # not on this system
        return 1 << 30
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    except (OSError, ValueError):
        log.debug("the limit of open files stays as it is")
    return (1 << 30) if soft == resource.RLIM_INFINITY else soft


def most_connections(file_limit: int) -> int:
    """Connections that leave some descriptors for all else."""
    return min(MAX_CONNECTIONS, max(file_limit - SPARE_DESCRIPTORS, file_limit // 2, 1))


class AcceptTrouble:
    """The loop's handler of faults that nobody else takes: one line when descriptors run out.

    asyncio waits a second by itself before it accepts again, but tells of each of the 2,048
    connections that it couldn't accept, every time.
    """

    def __init__(self) -> None:
        self._told = float("-inf")  # time.monotonic() seconds

    def __call__(self, loop: asyncio.AbstractEventLoop, context: Mapping[str, Any]) -> None:
        error = context.get("exception")
        scarce = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
        if not isinstance(error, OSError) or error.errno not in scarce:
            loop.default_exception_handler(dict(context))
            return
        now = time.monotonic()
        if now - self._told >= QUIET:
            self._told = now
            log.warning("new connections wait: %s", error.strerror)
