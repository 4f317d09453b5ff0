"""Reading a request's body: no larger, slower or stranger than the server allows.

What all bodies take together is bounded too, and shared by callers. A body counts until its request
has been planned (or answered, where the request itself is in the answer): so long it is in memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from tinyllm.api.answer.event_queue import ClientGone
from tinyllm.api.contract.errors import ApiError, quoted, unavailable
from tinyllm.api.contract.strict_json import parse_object
from tinyllm.api.house.budget import Budget
from tinyllm.api.limits import BIG_BODY, MAX_BODIES, MAX_BODY_TEXT
from tinyllm.api.prompt.turns import Workers

Read = TypeVar("Read")
IMAGE = b"data:image/"  # how an image in a body begins


@dataclass(frozen=True)
class BodyLimits:
    """How large and how slow a body may be."""

    whole: int  # bytes
    timeout: float  # seconds in which it must arrive
    text: int = MAX_BODY_TEXT  # bytes that aren't images


class Room:
    """What one body takes of the budget, until it is closed."""

    def __init__(self, budget: Budget, share: str) -> None:
        self._budget, self._share = budget, share
        self._taken = 0  # bytes

    def check(self, n: int) -> None:
        """ApiError 503 if a body of `n` bytes finds no room at the moment."""
        if not self._budget.has(self._share, n):
            raise _no_room()

    def grow(self, n: int) -> None:
        """Make room for `n` bytes more. ApiError 503."""
        if not self._budget.take(self._share, n):
            raise _no_room()
        self._taken += n

    def close(self) -> None:
        """The body is in memory no longer. Nothing happens the second time."""
        if self._taken:
            self._budget.give_back(self._share, self._taken)
            self._taken = 0


class BodyReader:
    """Reads the bodies of one app; large ones by `workers`."""

    def __init__(self, limits: BodyLimits, workers: Workers, most: int = MAX_BODIES) -> None:
        self._limits, self._workers = limits, workers
        self._budget = Budget(most)
        self.n_read = 0  # bodies so far, whole or not

    async def read(self, request: Request, make: Callable[[dict[str, Any]], Read]) -> Read:
        """What `make` makes of the JSON object in the body.

        The body's room is `request.state.room`, which whoever answers the request closes.

        Raises ApiError 408, 413, 415, 503, or what `parse_object` and `make` raise; ClientGone.
        """
        check_content_type(request.headers.get("content-type"))
        self.n_read += 1
        request.state.room = room = Room(self._budget, request.state.share)
        body = await _receive(request, self._limits, room)
        if len(body) > BIG_BODY:
            return await self._workers.run(request.state.share, _parse, body, self._limits, make)
        return _parse(body, self._limits, make)


async def _receive(request: Request, limits: BodyLimits, room: Room) -> bytes:
    """The body, once all of it is there."""
    try:
        return await asyncio.wait_for(_read(request, limits, room), limits.timeout)
    except asyncio.TimeoutError:
        raise ApiError(
            408, f"The body didn't arrive within {limits.timeout:g} s.", code="request_timeout",
            retry=False, headers={"Connection": "close"},
        ) from None  # fmt: skip
    except ClientDisconnect:
        raise ClientGone from None


def _parse(body: bytes, limits: BodyLimits, read: Callable[[dict[str, Any]], Read]) -> Read:
    value = parse_object(body)
    if len(body) > limits.text:  # so there is an image in it
        images = sum(len(text) for text in _strings(value) if text[:16].startswith("data:image/"))
        if len(body) - images > limits.text:
            raise _too_large(limits.text, " beside its images")
    return read(value)


def _strings(value: Any) -> Iterator[str]:
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, (dict, list)):
            pending.extend(item.values() if isinstance(item, dict) else item)


def check_content_type(header: str | None) -> None:
    """ApiError 415 for a body that doesn't say that it is JSON in UTF-8.

    Saying nothing isn't enough: a page may send that to anybody without asking (a "simple request"
    of the CORS protocol), but not JSON.
    """
    media, *options = (part.strip().lower() for part in (header or "").split(";"))
    charset = next((o.partition("=")[2].strip('"') for o in options if o.startswith("charset")), "")
    if media != "application/json" or charset not in ("", "utf-8", "utf8"):
        raise ApiError(
            415, f"The body must be application/json in UTF-8, not {quoted(header or 'unsaid')}.",
            code="unsupported_media_type", headers={"Accept": "application/json"},
        )  # fmt: skip


async def _read(request: Request, limits: BodyLimits, room: Room) -> bytes:
    announced = request.headers.get("content-length", "")
    if announced.isdigit():
        if int(announced[:20]) > limits.whole:
            raise _too_large(limits.whole)
        room.check(int(announced))
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("", "identity"):
        raise ApiError(
            415, f"A body in the coding {quoted(coding)} is not read: send it as it is.",
            code="unsupported_content_encoding", headers={"Accept-Encoding": "identity"},
        )  # fmt: skip
    body = bytearray()
    async for chunk in request.stream():
        room.grow(len(chunk))
        body += chunk
        if len(body) > limits.whole:
            raise _too_large(limits.whole)
        # A text that long can't come before an image, so the rest needn't be waited for.
        if len(body) - len(chunk) <= limits.text < len(body) and IMAGE not in body:
            raise _too_large(limits.text, " and no image")
    return bytes(body)


def _no_room() -> ApiError:
    error = unavailable("Other large requests are being read; try again.", "bodies", retry_after=5)
    error.headers = {"Connection": "close"}
    return error


def _too_large(most: int, more: str = "") -> ApiError:
    return ApiError(
        413, f"The body has more than {most} bytes{more}.", code="request_too_large",
        headers={"Connection": "close"},
    )  # fmt: skip
