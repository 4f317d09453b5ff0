"""Reading a request's body: no larger, slower or stranger than the server allows."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import ClientDisconnect, Request

from tinyllm.api.answer.event_queue import ClientGone
from tinyllm.api.contract.errors import ApiError
from tinyllm.api.contract.strict_json import parse_object

BIG = 1 << 20  # bytes; parsing more than that leaves the event loop alone


async def read_json(request: Request, max_body: int, timeout: float) -> dict[str, Any]:
    """The JSON object in the body. ApiError 408, 413, 415, or what `parse_object` raises."""
    check_content_type(request.headers.get("content-type"))
    try:
        body = await asyncio.wait_for(_read(request, max_body), timeout)
    except asyncio.TimeoutError:
        raise ApiError(
            408, f"The body didn't arrive within {timeout:g} s.", code="request_timeout",
            retry=False, headers={"Connection": "close"},
        ) from None  # fmt: skip
    except ClientDisconnect:
        raise ClientGone from None
    if len(body) > BIG:
        return await asyncio.to_thread(parse_object, body)
    return parse_object(body)


def check_content_type(header: str | None) -> None:
    """ApiError 415 for a body that doesn't say that it is JSON in UTF-8.

    Saying nothing isn't enough: a page may send that to anybody without asking (a "simple request"
    of the CORS protocol), but not JSON.
    """
    media, *options = (part.strip().lower() for part in (header or "").split(";"))
    charset = next((o.partition("=")[2].strip('"') for o in options if o.startswith("charset")), "")
    if media != "application/json" or charset not in ("", "utf-8", "utf8"):
        raise ApiError(
            415, f"The body must be application/json in UTF-8, not {(header or 'unsaid')[:100]!r}.",
            code="unsupported_media_type", headers={"Accept": "application/json"},
        )  # fmt: skip


async def _read(request: Request, max_body: int) -> bytes:
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced[:20]) > max_body:
        raise _too_large(max_body)
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > max_body:
            raise _too_large(max_body)
        chunks.append(chunk)
    return b"".join(chunks)


def _too_large(max_body: int) -> ApiError:
    return ApiError(
        413, f"The body has more than {max_body} bytes.", code="request_too_large",
        headers={"Connection": "close"},
    )  # fmt: skip
