"""How long the server waits for its peers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Clocks:
    """Seconds, each from the last sign of life. No flags: nobody turns them but tests."""

    head: float = 15.0  # for a request's head to arrive
    body: float = 30.0  # for its body to arrive
    unread: float = 30.0  # for a client that leaves its answer unread
    idle: float = 75.0  # for the next request on a kept connection
    silence: float = 15.0  # in a stream, before a comment is sent
