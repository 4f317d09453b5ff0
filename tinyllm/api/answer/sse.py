"""Server-sent events: chunks on the wire, comments while nothing happens, faults at the end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

from pydantic_core import to_json

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


def event(data: Mapping[str, Any]) -> bytes:
    """One event."""
    return b"data: " + to_json(data) + b"\n\n"


async def events(chunks: AsyncIterator[Mapping[str, Any] | None]) -> AsyncIterator[bytes]:
    """Chunks as events, None as a comment, and the mark of the end."""
    async for chunk in chunks:
        yield PING if chunk is None else event(chunk)
    yield DONE
