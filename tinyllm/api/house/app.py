"""The app: a plain ASGI factory. Two apps in one process share nothing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from functools import cached_property
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tinyllm.api.answer.event_queue import ClientGone
from tinyllm.api.contract.dialect import dialect_of
from tinyllm.api.contract.errors import ApiError, error_response, server_error, status_error
from tinyllm.api.contract.fields import SESSION_ID
from tinyllm.api.house import web
from tinyllm.api.house.clocks import Clocks
from tinyllm.api.house.origins import Origins
from tinyllm.api.house.routes import Api
from tinyllm.api.house.service import Service
from tinyllm.api.house.settings import Settings
from tinyllm.api.house.spare_memory import keep_giving_back
from tinyllm.api.prompt.images import ImageSource
from tinyllm.api.prompt.served import ServedModel

log = logging.getLogger(__name__)
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
OPEN = frozenset(("/", "/health"))  # without a key: they tell nothing
METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))


class FromTheWeb:
    """Images behind URLs; what fetches them takes long to import, and waits for the first."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    @cached_property
    def _fetcher(self) -> ImageSource:
        from tinyllm.api.prompt.fetch_image import ImageFetcher

        return ImageFetcher(self._settings.image_urls, self._settings.image_host)

    async def fetch(self, url: str) -> bytes:
        """See `ImageFetcher.fetch`."""
        return await self._fetcher.fetch(url)


def create_app(
    settings: Settings,
    load: Callable[[], Sequence[ServedModel]],
    images: ImageSource | None = None,
    clocks: Clocks = Clocks(),  # noqa: B008  # frozen
) -> Starlette:
    """An app that serves the models which `load` returns.

    `load` runs once, on a thread of its own, after start-up; until it is done requests get 503.
    The `Service` with all of the app's state is `app.state.service`.
    """
    service = Service(settings, load, clocks)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await service.start()
        giving_back = asyncio.create_task(keep_giving_back(lambda: service.bodies.n_read))
        try:
            yield
        finally:
            giving_back.cancel()
            service.stop()

    images = images or FromTheWeb(settings)
    api = Api(service, images)
    app = Starlette(routes=api.routes(), lifespan=lifespan, exception_handlers={
        ApiError: _on_api_error, HTTPException: _on_http_error,
    })  # fmt: skip
    app.state.service = service
    app.router.redirect_slashes = False
    app.add_middleware(Frame, service=service)
    return app


async def _on_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(error, dialect_of(request.url.path))


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    response = error_response(status_error(error.status_code), dialect_of(request.url.path))
    response.headers.update(error.headers or {})
    return response


def plain(path: str) -> str:
    """The path that is meant: a base URL that ends in a slash makes /v1//models of it."""
    return re.sub("/{2,}", "/", path).rstrip("/") or "/"


class Frame:
    """Around every request: its id, who asks, faults that nobody handled, metrics and log."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service
        settings = service.settings
        hosts = (*settings.allow_host, settings.host)
        self._origins = Origins(service.keyed, hosts, settings.cors_origin)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["path"] = plain(scope["path"])
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        session = headers.get("x-session-id", "")
        started, wall = time.monotonic(), time.time()
        status: int | None = None
        entry: dict[str, Any] = {"key": ""}
        scope["tinyllm.log"] = entry

        async def framed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                answer = MutableHeaders(scope=message)
                answer["x-request-id"] = request_id
                answer.update(self._origins.told(headers))
                if SESSION_ID.fullmatch(session):
                    answer["X-Session-ID"] = session
            await send(message)

        metrics = self._service.metrics
        metrics.in_flight.inc()
        self._service.active += 1
        try:
            try:
                app = self._admit(scope, headers, entry)
                await app(scope, receive, framed)
            except ClientGone:
                entry["gone"] = True
            except ApiError as error:
                response = error_response(error, dialect_of(scope["path"]))
                await response(scope, receive, framed)
            except Exception:
                log.exception("request %s failed", request_id)
                entry["error"] = "server_error"
                if status is not None:
                    raise
                response = error_response(server_error(), dialect_of(scope["path"]))
                await response(scope, receive, framed)
        finally:
            self._service.active -= 1
            if (room := scope.get("state", {}).get("room")) is not None:
                room.close()
            metrics.in_flight.dec()
            route = scope.get("route")
            path = getattr(route, "path", "none")
            method = scope["method"] if scope["method"] in METHODS else "other"
            metrics.requests.labels(method, path, str(status or "gone")).inc()
            self._service.access_log.write(
                {
                    "time": round(wall, 3),
                    "id": request_id,
                    "method": scope["method"],
                    "path": scope["path"],
                    "status": status,
                    "seconds": round(time.monotonic() - started, 6),
                    **{k: v for k, v in entry.items() if v is not None},
                }
            )

    def _admit(self, scope: Scope, headers: Headers, entry: dict[str, Any]) -> ASGIApp:
        """What answers the request, now that it is known who asks. ApiError."""
        if "content-length" in headers and "transfer-encoding" in headers:
            # Two servers in a row may read two different requests out of it (RFC 9112, 6.1).
            raise ApiError(
                400, "A request has either Content-Length or Transfer-Encoding.", code="bad_http",
                headers={"Connection": "close"},
            )  # fmt: skip
        self._origins.check(headers, (scope.get("server") or ("",))[0])
        if (answer := self._origins.preflight(scope["method"], headers)) is not None:
            return answer
        if scope["path"] not in OPEN and not scope["path"].startswith(web.PREFIX):
            entry["key"] = self._service.authorize(headers.get("authorization"))
        state = scope.setdefault("state", {})
        state["key"] = entry["key"]
        # Whose share of the server it is: the key's, or the address's where nobody has a key.
        state["share"] = entry["key"] or (scope.get("client") or ("",))[0]
        return self._app
