"""The way of a generating request: down through contract, prompt and answer, and up again, once.

Requests of every shape go this way; what is particular to one is in `shapes`.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tinyllm.api.answer import sse
from tinyllm.api.answer.asking import Caller, check_place, score
from tinyllm.api.answer.event_queue import ClientGone
from tinyllm.api.answer.run import Run
from tinyllm.api.contract.dialect import S, dialect_of
from tinyllm.api.contract.errors import ApiError, invalid, server_error
from tinyllm.api.contract.fields import SESSION_ID
from tinyllm.api.contract.sampling import SampledRequest
from tinyllm.api.house.service import Service
from tinyllm.api.house.shapes import Chunk, Shape, Writer
from tinyllm.api.house.sliced import SlicedJson
from tinyllm.api.limits import MAX_NAMES_HEADER
from tinyllm.api.prompt.decide import Score
from tinyllm.api.prompt.plan import Plan
from tinyllm.api.prompt.planner import Planner
from tinyllm.api.prompt.served import ServedModel
from tinyllm.engine.types import Prompt


class Generating:
    """Answers generating requests, for one app."""

    def __init__(self, service: Service, planner: Planner) -> None:
        self._service = service
        self._planner = planner

    async def answer(self, request: Request, shape: Shape[Any]) -> Response:
        """The whole answer, or its stream. Raises ApiError, ClientGone."""
        service, settings = self._service, self._service.settings
        arrived = time.monotonic()
        session = session_id(request)
        service.check_accepting()
        share = request.state.share
        if len(engines := list(service.engines.values())) == 1:  # so its body needn't be read
            check_place(engines[0], share)
        dialect = dialect_of(request.url.path) or S
        asked: SampledRequest = await service.bodies.read(
            request, lambda body: shape.read(body, dialect)
        )
        streamed = asked.stream
        model = service.model(asked.model)
        check_place(model.engine, share)
        id = shape.id_prefix(dialect) + uuid.uuid4().hex[:24]
        entry: dict[str, Any] = request.scope["tinyllm.log"]
        entry.update(completion=id, session=session, model=model.id)
        limit = settings.request_timeout
        deadline = arrived + limit if limit else None
        caller = Caller(request.receive, deadline, share)
        try:
            score = self._scorer(caller, request.state.key)
            plans = await caller.while_here(
                shape.plan(asked, self._planner, dialect, model, score, caller)
            )
            del asked  # it may be large
            if not shape.holds_request:
                request.state.room.close()
            run = Run(
                plans,
                id,
                caller,
                service.waker,
                key=request.state.key,
                session=session,
                trace_worker=service.trace_worker,
            )
            await run.begin(service.clocks.silence)
        except BaseException as error:  # nothing will be answered
            caller.close()
            if isinstance(error, ClientGone):
                service.metrics.disconnects.inc()
            raise
        answer = _Answer(service, shape, run, caller, arrived, entry)
        if streamed:
            return _Streamed(answer.events(), _headers(plans[0]))
        plan, whole = plans[0], await answer.whole()
        if plan.logprobs or plan.trace is not None:
            return SlicedJson(whole, _headers(plan))
        return json_response(whole, headers=_headers(plan))

    def _scorer(self, caller: Caller, key: str) -> Score:
        """What deciding on a tool asks the engine with."""

        async def ask(model: ServedModel, prompt: Prompt, start: int) -> Sequence[float]:
            return await score(model.engine, prompt, start, self._service.waker, caller, key)

        return ask


class _Answer:
    """The chunks of one answer, whole or streamed, and the accounts when it is over."""

    def __init__(
        self,
        service: Service,
        shape: Shape[Any],
        run: Run,
        caller: Caller,
        arrived: float,
        entry: dict[str, Any],
    ) -> None:
        self._service = service
        self._shape = shape
        self._run = run
        self._caller = caller
        self._arrived = arrived
        self._entry = entry
        self._created = time.time()

    async def whole(self) -> Chunk:
        """The fold of all chunks."""
        try:
            writer = self._shape.writer(self._run, self._created, whole=True)
            chunks = [c async for c in self._chunks(writer, None) if c is not None]
        except ClientGone:
            self._service.metrics.disconnects.inc()
            raise
        return self._shape.fold(chunks)

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The stream's bytes; a fault on the way becomes its last event."""
        shape = self._shape
        writer = shape.writer(self._run, self._created, whole=False)
        chunks = self._chunks(writer, self._service.clocks.silence)
        fault: ApiError | None = None
        try:
            async with contextlib.aclosing(chunks):
                async for chunk in chunks:
                    yield sse.PING if chunk is None else shape.event(chunk)
        except ApiError as error:
            fault = error
        except ClientGone:
            raise
        except Exception:
            self._service.log.exception("a stream failed")
            fault = server_error()
        if fault is not None:
            self._entry["error"] = fault.code
            for chunk in shape.failed(writer, fault):
                yield shape.event(chunk)
        if shape.last_event:
            yield shape.last_event

    async def _chunks(
        self, writer: Writer, ping: float | None
    ) -> AsyncGenerator[Chunk | None, None]:
        """All chunks; None where there was silence for `ping` seconds."""
        try:
            for chunk in writer.start():
                yield chunk
            async for update in self._run.updates(ping):
                if update is None:
                    yield None
                    continue
                for chunk in writer.push(update):
                    yield chunk
            for chunk in writer.end():
                yield chunk
        finally:
            self._settle()

    def _settle(self) -> None:
        """Metrics, session and log, however it ended."""
        run, metrics, now = self._run, self._service.metrics, time.monotonic()
        usage = run.usage
        self._caller.close()
        run.close()
        for plan in run.plans:
            if plan.decided is not None:
                metrics.tool_decisions.labels(plan.decided).inc()
        for finish in run.finishes:
            metrics.finished.labels(finish).inc()
        metrics.request_seconds.observe(now - self._arrived)
        n_new = usage["completion_tokens"]
        self._entry.update(
            prompt_tokens=usage["prompt_tokens"],
            completion_tokens=n_new,
            cached_tokens=run.n_cached,
            finish=run.finishes,
        )
        if run.first_token is not None:
            first = run.first_token - self._arrived
            metrics.first_token_seconds.observe(first)
            self._entry["first_token_seconds"] = round(first, 6)
            if n_new > 1:
                metrics.token_seconds.observe((now - run.first_token) / (n_new - 1))
        session = self._entry.get("session")
        if session is not None:
            self._service.sessions.record(self._entry["key"], session, run.id, self._created, usage)


class _Streamed(Response):
    """Sends an answer's events as they come."""

    def __init__(self, events: AsyncGenerator[bytes, None], headers: Mapping[str, str]) -> None:
        super().__init__(None, 200, {**sse.HEADERS, **headers}, "text/event-stream; charset=utf-8")
        del self.headers["content-length"]
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async with contextlib.aclosing(self._events):
            async for data in self._events:
                await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def json_response(
    data: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    return Response(to_json(data), status, headers, media_type="application/json")


def session_id(request: Request) -> str | None:
    """The X-Session-ID header, checked. ApiError."""
    session = request.headers.get("x-session-id")
    if session is not None and not SESSION_ID.fullmatch(session):
        raise invalid(f"X-Session-ID must match {SESSION_ID.pattern}.", "X-Session-ID",
                      kind="string_pattern_mismatch")  # fmt: skip
    return session


def _headers(plan: Plan) -> dict[str, str]:
    headers: dict[str, str] = {}
    for header, named in (("X-Ignored-Params", plan.ignored), ("X-Relaxed-Schema", plan.relaxed)):
        if named:
            names = ", ".join(dict.fromkeys(quote(name, safe="[]._-$") or '""' for name in named))
            if len(names) > MAX_NAMES_HEADER:
                names = names[:MAX_NAMES_HEADER] + "..."
            headers[header] = names
    if plan.truncation is not None:
        cut = plan.truncation
        headers["X-Prompt-Truncated"] = (
            f"dropped_messages={cut['dropped_messages']}, dropped_tokens={cut['dropped_tokens']}"
        )
    return headers
