"""A large answer as JSON, in pieces: between two of them the event loop has a turn.

The serialiser holds the interpreter's lock from beginning to end. Eight prompts of a whole context,
each eight times, with twenty alternatives a token, are 260 MB and would keep all others waiting for
two seconds; so pieces are sent as they are made, and never is the whole in memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic_core import to_json
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tinyllm.api.limits import MAX_READ

ENTRIES = 16  # of a list that are written at once; a step of a trace may hold thousands of numbers
LEVELS = 6  # of objects and lists that are taken apart: an answer's logprobs are at the fifth


def json_pieces(value: Any, level: int = 0) -> Iterator[bytes]:
    """What `to_json` makes of `value`, cut wherever it gets long."""
    if isinstance(value, dict) and value and level < LEVELS:
        before = b"{"
        for key, item in value.items():
            yield before + to_json(key) + b":"
            yield from json_pieces(item, level + 1)
            before = b","
        yield b"}"
    elif isinstance(value, list) and value and level < LEVELS:
        before = b"["
        for start in range(0, len(value), ENTRIES):
            some = value[start : start + ENTRIES]
            if len(value) > ENTRIES and level > 1:
                yield before + to_json(some)[1:-1]
                before = b","
                continue
            for item in some:  # few, or choices: each may be large
                yield before
                yield from json_pieces(item, level + 1)
                before = b","
        yield b"]"
    else:
        yield to_json(value)


class SlicedJson(Response):
    """Sends an object as JSON, piece by piece."""

    def __init__(self, data: Mapping[str, Any], headers: Mapping[str, str]) -> None:
        super().__init__(None, 200, headers, "application/json")
        del self.headers["content-length"]
        self._data = data

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        body = bytearray()
        for piece in json_pieces(self._data):
            body += piece
            if len(body) >= MAX_READ:
                await send({"type": "http.response.body", "body": bytes(body), "more_body": True})
                await asyncio.sleep(0)
                body.clear()
        await send({"type": "http.response.body", "body": bytes(body), "more_body": False})
