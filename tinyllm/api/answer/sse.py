"""Server-sent events: chunks on the wire, comments while nothing happens, faults at the end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic_core import to_json

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


def event(data: Mapping[str, Any], name: str | None = None) -> bytes:
    """One event, with a name if it has one."""
    head = b"" if name is None else f"event: {name}\n".encode()
    return head + b"data: " + to_json(data) + b"\n\n"
