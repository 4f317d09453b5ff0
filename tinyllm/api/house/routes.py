"""The routes: each reads its request, asks, and answers. Both dialects share all of them."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from tinyllm.api.answer import sse
from tinyllm.api.answer.asking import Caller, score
from tinyllm.api.answer.chunks import ChunkWriter, fold
from tinyllm.api.answer.event_queue import ClientGone
from tinyllm.api.answer.generation import Generation
from tinyllm.api.contract.answers import Chunk, Completion, ModelOut
from tinyllm.api.contract.chat_completions import ChatRequest, read_chat
from tinyllm.api.contract.dialect import DIALECTS, S, dialect_of
from tinyllm.api.contract.errors import (
    ApiError,
    envelope,
    invalid,
    not_found,
    server_error,
)
from tinyllm.api.contract.fields import SESSION_ID, read, unknown_fields
from tinyllm.api.contract.openapi import document
from tinyllm.api.contract.tokens import DetokenizeRequest, TokenizeRequest
from tinyllm.api.contract.tools import Tool
from tinyllm.api.house.body import read_json
from tinyllm.api.house.metrics import CONTENT_TYPE
from tinyllm.api.house.service import Service
from tinyllm.api.prompt.chat import Layout
from tinyllm.api.prompt.decide import decide
from tinyllm.api.prompt.images import ImageSource
from tinyllm.api.prompt.plan import Plan, Planner
from tinyllm.api.prompt.served import ServedModel
from tinyllm.engine.replay import NotKept
from tinyllm.engine.types import Draining, Prompt, QueueFull

MAX_HEADER = 1000  # characters of a list of names in a header


def json_response(
    data: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    return Response(to_json(data), status, headers, media_type="application/json")


class Api:
    """The endpoints of one app."""

    def __init__(self, service: Service, images: ImageSource) -> None:
        self._service = service
        self._planner = Planner(service.settings, images)
        self._document: bytes | None = None

    def routes(self) -> list[BaseRoute]:
        """Every route, for both prefixes."""
        routes: list[BaseRoute] = [
            Route("/health", self.health, methods=["GET"]),
            Route("/metrics", self.metrics, methods=["GET"]),
            Route("/openapi.json", self.openapi, methods=["GET"]),
        ]
        for dialect in DIALECTS:
            for path, endpoint, method in (
                ("/chat/completions", self.chat_completions, "POST"),
                ("/completions/{id}/replay", self.replay, "GET"),
                ("/models", self.list_models, "GET"),
                ("/models/{id:path}", self.retrieve_model, "GET"),
                ("/tokenize", self.tokenize, "POST"),
                ("/detokenize", self.detokenize, "POST"),
            ):
                routes.append(Route(dialect.prefix + path, endpoint, methods=[method]))
            routes.append(
                Route(dialect.prefix + "/sessions/{id}", self.session, methods=["GET", "DELETE"])
            )
        return routes

    # -- completions -------------------------------------------------------------------------

    async def chat_completions(self, request: Request) -> Response:
        """Generate an answer to a conversation."""
        service, settings = self._service, self._service.settings
        arrived = time.monotonic()
        key = request.state.key
        dialect = dialect_of(request.url.path) or S
        session = session_id(request)
        service.check_accepting()
        body = await read_json(request, settings.max_body, settings.body_timeout)
        chat = read_chat(body, dialect)
        model = service.model(chat.model)
        ignored = self._planner.ignored(chat, model, list(unknown_fields(chat)))
        request_id = dialect.id_prefix + uuid.uuid4().hex[:24]
        entry: dict[str, Any] = request.scope["tinyllm.log"]
        entry.update(completion=request_id, session=session, model=model.id)
        limit = settings.request_timeout
        caller = Caller(request.receive, arrived + limit if limit else None)
        try:
            plan = await self._plan(chat, dialect_of(request.url.path) or S, model, key, caller)
            generation = Generation(
                plan,
                request_id,
                key=key,
                session=session,
                deadline=caller.deadline,
                keep=settings.keep_requests > 0,
                trace_worker=service.trace_worker,
            )
            generation.submit(service.waker, caller)
            answer = _Answer(service, generation, caller, arrived, entry)
            if settings.log_content:
                entry["request"] = body
            await generation.begun(settings.ping_interval)
            headers = _headers(plan, ignored)
            if chat.stream:
                return _Streamed(answer, headers)
            return json_response(await answer.whole(), headers=headers)
        except ClientGone:
            service.metrics.disconnects.inc()
            raise
        finally:
            if not chat.stream or "answer" not in locals():
                caller.close()

    async def _plan(
        self, chat: ChatRequest, dialect: Any, model: ServedModel, key: str, caller: Caller
    ) -> Plan:
        conversation = await self._planner.conversation(chat, model)
        choice = chat.effective_tool_choice()
        tools = chat.tools or ()

        async def ask(model: ServedModel, prompt: Prompt, start: int) -> Sequence[float]:
            return await score(model.engine, prompt, start, self._service.waker, caller, key)

        call = choice not in ("none", "auto")
        first: Sequence[Tool] = ()
        if choice == "auto" and not conversation.has_tool_results():
            decision = await decide(conversation, tools, ask)
            call, first = decision.call, decision.tools
            self._service.metrics.tool_decisions.labels("call" if call else "words").inc()
        elif choice == "required" and len(tools) > 1:
            first = (await decide(conversation, tools, ask)).tools
        return await asyncio.to_thread(self._planner.plan, chat, dialect, conversation, call, first)

    async def replay(self, request: Request) -> Response:
        """Run a kept request again, and say whether every bit agrees."""
        self._service.check_ready()
        self._service.check_accepting()
        id, key = request.path_params["id"], request.state.key
        timeout = self._service.settings.request_timeout or None
        for engine in self._service.engines.values():
            try:
                result = await asyncio.to_thread(engine.replay, id, key, timeout)
            except NotKept:
                continue
            except QueueFull as error:
                raise ApiError(429, f"{error}.", "rate_limit_exceeded", code="rate_limit_exceeded",
                               retry_after=error.retry_after) from None  # fmt: skip
            except (Draining, TimeoutError):
                raise ApiError(503, "The request couldn't be run again in time.",
                               "service_unavailable", code="request_timeout",
                               retry_after=5) from None  # fmt: skip
            first = next(iter(result.differences), None)
            return json_response(
                {
                    "id": id,
                    "object": "chat.completion.replay",
                    "identical": result.identical,
                    "tokens_compared": result.tokens_compared,
                    "seed": result.seed,
                    "first_difference": None
                    if first is None
                    else {
                        "index": first.index,
                        "position": first.position,
                        "recorded": first.recorded and _token(first.recorded),
                        "replayed": first.replayed and _token(first.replayed),
                    },
                }
            )
        raise not_found(f"A kept completion of the id {id!r}")

    # -- models ------------------------------------------------------------------------------

    async def list_models(self, request: Request) -> Response:
        """The models that are served, by id and by alias."""
        self._service.check_ready()
        names = self._service.names.items()
        return json_response({"object": "list", "data": [_model(n, m) for n, m in names]})

    async def retrieve_model(self, request: Request) -> Response:
        """One model, by id or alias."""
        name = request.path_params["id"]
        return json_response(_model(name, self._service.model(name)))

    # -- tokens ------------------------------------------------------------------------------

    async def tokenize(self, request: Request) -> Response:
        """Text, or a conversation, as token ids."""
        settings = self._service.settings
        body = await read_json(request, settings.max_body, settings.body_timeout)
        asked = read(TokenizeRequest, body)
        model = self._service.model(asked.model)
        if asked.messages is not None:
            chat = read_chat({**body, "model": model.id}, dialect_of(request.url.path) or S)
            conversation = await self._planner.conversation(chat, model)
            prompt = await asyncio.to_thread(conversation.render, Layout())
            ids = prompt.tokens.tolist()
        else:
            ids = await asyncio.to_thread(model.tokenizer.encode, asked.text or "")
        n_ctx = model.engine.n_ctx
        return json_response({"tokens": ids, "count": len(ids), "max_model_len": n_ctx})

    async def detokenize(self, request: Request) -> Response:
        """Token ids as text."""
        settings = self._service.settings
        body = await read_json(request, settings.max_body, settings.body_timeout)
        asked = read(DetokenizeRequest, body)
        model = self._service.model(asked.model)
        for i, token in enumerate(asked.tokens):
            if token >= model.vocab_size:
                raise invalid(f"The vocabulary has {model.vocab_size} tokens.", "tokens", i)
        text = await asyncio.to_thread(model.tokenizer.decode, asked.tokens)
        return json_response({"text": text})

    # -- sessions ----------------------------------------------------------------------------

    async def session(self, request: Request) -> Response:
        """What a session was used for; DELETE forgets it."""
        id, key = request.path_params["id"], request.state.key
        if request.method == "DELETE":
            if not self._service.sessions.delete(key, id):
                raise not_found(f"The session {id!r}")
            return json_response({"id": id, "object": "session.deleted", "deleted": True})
        session = self._service.sessions.get(key, id)
        if session is None:
            raise not_found(f"The session {id!r}")
        return json_response(session.shown())

    # -- the server itself -------------------------------------------------------------------

    async def health(self, request: Request) -> Response:
        """Whether the server can answer: 200 ready, 503 loading or draining."""
        self._service.check_ready()
        self._service.check_accepting()
        return json_response({"status": "ready", "models": [m.id for m in self._service.models]})

    async def metrics(self, request: Request) -> Response:
        """Counters in Prometheus text."""
        return Response(self._service.metrics.text(), media_type=CONTENT_TYPE)

    async def openapi(self, request: Request) -> Response:
        """This API as an OpenAPI document."""
        if self._document is None:
            self._document = to_json(document(authenticated=self._service.keyed))
        return Response(self._document, media_type="application/json")


# -- answering -------------------------------------------------------------------------------


class _Answer:
    """The chunks of one completion, whole or streamed, and the accounts when it is over."""

    def __init__(
        self,
        service: Service,
        generation: Generation,
        caller: Caller,
        arrived: float,
        entry: dict[str, Any],
    ) -> None:
        self._service = service
        self._generation = generation
        self._caller = caller
        self._arrived = arrived
        self._entry = entry
        self._created = time.time()

    async def whole(self) -> Completion:
        """The fold of all chunks."""
        chunks = [c async for c in self.chunks(None, include_usage=True) if c is not None]
        completion = fold(chunks)
        if self._service.settings.log_content:
            self._entry["answer"] = [choice["message"] for choice in completion["choices"]]
        return completion

    async def chunks(
        self, ping: float | None, include_usage: bool
    ) -> AsyncGenerator[Chunk | None, None]:
        """All chunks; None where there was silence for `ping` seconds."""
        writer = ChunkWriter(self._generation, self._created, include_usage)
        try:
            for chunk in writer.start():
                yield chunk
            async for update in self._generation.updates(ping):
                if update is None:
                    yield None
                    continue
                for chunk in writer.push(update):
                    yield chunk
            for chunk in writer.end():
                yield chunk
        finally:
            self._settle()

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The stream's bytes; a fault on the way becomes its last event."""
        options = self._generation.plan.request.stream_options
        wanted = bool(options and options.include_usage)
        chunks = self.chunks(self._service.settings.ping_interval, wanted)
        try:
            async with contextlib.aclosing(chunks):
                async for chunk in chunks:
                    yield sse.PING if chunk is None else sse.event(chunk)
        except ApiError as error:
            self._entry["error"] = error.code
            yield sse.event(envelope(error))
        except ClientGone:
            raise
        except Exception:
            self._entry["error"] = "server_error"
            self._service.log.exception("a stream failed")
            yield sse.event(envelope(server_error()))
        yield sse.DONE

    def _settle(self) -> None:
        """Metrics, session and log, however it ended."""
        generation, metrics, now = self._generation, self._service.metrics, time.monotonic()
        usage = generation.usage
        self._caller.close()
        for finish in generation.finishes:
            metrics.finished.labels(finish).inc()
        metrics.request_seconds.observe(now - self._arrived)
        n_new = usage["completion_tokens"]
        self._entry.update(
            prompt_tokens=usage["prompt_tokens"],
            completion_tokens=n_new,
            cached_tokens=generation.n_cached,
            finish=generation.finishes,
        )
        if generation.first_token is not None:
            first = generation.first_token - self._arrived
            metrics.first_token_seconds.observe(first)
            self._entry["first_token_seconds"] = round(first, 6)
            if n_new > 1:
                metrics.token_seconds.observe((now - generation.first_token) / (n_new - 1))
        session = self._entry.get("session")
        if session is not None:
            self._service.sessions.record(
                self._entry["key"], session, generation.id, self._created, usage
            )


class _Streamed(Response):
    """Sends an answer's events as they come."""

    def __init__(self, answer: _Answer, headers: Mapping[str, str]) -> None:
        super().__init__(None, 200, {**sse.HEADERS, **headers}, "text/event-stream; charset=utf-8")
        del self.headers["content-length"]
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        # The layers in between have seen what they look at: the body needn't pass them all again,
        # a token at a time.
        send = scope["tinyllm.send"]
        events = self._answer.events()
        async with contextlib.aclosing(events):
            async for data in events:
                await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def session_id(request: Request) -> str | None:
    """The X-Session-ID header, checked. ApiError."""
    session = request.headers.get("x-session-id")
    if session is not None and not SESSION_ID.fullmatch(session):
        raise invalid(f"X-Session-ID must match {SESSION_ID.pattern}.", "X-Session-ID",
                      kind="string_pattern_mismatch")  # fmt: skip
    return session


def _headers(plan: Plan, ignored: list[str]) -> dict[str, str]:
    headers: dict[str, str] = {}
    if ignored:
        names = ", ".join(dict.fromkeys(quote(name, safe="[]._-") or '""' for name in ignored))
        headers["X-Ignored-Params"] = (
            names if len(names) <= MAX_HEADER else names[:MAX_HEADER] + "..."
        )
    if plan.truncation is not None:
        cut = plan.truncation
        headers["X-Prompt-Truncated"] = (
            f"dropped_messages={cut['dropped_messages']}, dropped_tokens={cut['dropped_tokens']}"
        )
    return headers


def _model(name: str, model: ServedModel) -> ModelOut:
    return {"id": name, "object": "model", "created": model.created, "owned_by": "tinyllm"}


def _token(pair: tuple[int, float]) -> dict[str, Any]:
    return {"token": pair[0], "logprob": pair[1]}
