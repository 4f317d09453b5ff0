"""The routes: each reads its request, asks, and answers. Both dialects share all of them."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from tinyllm.api.answer import replaying
from tinyllm.api.answer.asking import Caller
from tinyllm.api.contract.answers import (
    Health,
    Index,
    InsideOut,
    ModelOut,
    Piece,
    Span,
    Text,
    Tokens,
)
from tinyllm.api.contract.chat_completions import ChatRequest, read_chat
from tinyllm.api.contract.dialect import DIALECTS, Dialect, S, dialect_of
from tinyllm.api.contract.endpoints import ENDPOINTS
from tinyllm.api.contract.errors import context_length_exceeded, invalid, not_found, quoted
from tinyllm.api.contract.fields import read
from tinyllm.api.contract.input_items import page
from tinyllm.api.contract.look import LookRequest
from tinyllm.api.contract.openapi import document
from tinyllm.api.contract.tokens import DetokenizeRequest, TokenizeRequest
from tinyllm.api.house import web
from tinyllm.api.house.generating import Generating, json_response
from tinyllm.api.house.metrics import CONTENT_TYPE
from tinyllm.api.house.service import Service
from tinyllm.api.house.shapes import ChatShape, ResponsesShape, TextShape
from tinyllm.api.prompt.chat import Layout
from tinyllm.api.prompt.images import ImageSource
from tinyllm.api.prompt.planner import Planner
from tinyllm.api.prompt.served import ServedModel
from tinyllm.engine.replay import ReplayResult

Handler = Callable[[Request], Awaitable[Response]]


class Api:
    """The endpoints of one app: a method for each row of the table, by its name."""

    def __init__(self, service: Service, images: ImageSource) -> None:
        self._service = service
        self._planner = Planner(service.settings, images, service.pools)
        self._generating = Generating(service, self._planner)
        self._document: bytes | None = None

    def routes(self) -> list[BaseRoute]:
        """A route for each address in the table of endpoints."""
        handlers: dict[str, dict[str, Handler]] = {}
        for row in ENDPOINTS:
            for _, path in row.paths():
                handlers.setdefault(path, {})[row.method] = getattr(self, row.name)
        own: list[BaseRoute] = [
            Route(path.replace("{id}", "{id:path}") if path.endswith("/models/{id}") else path,
                  _by_method(by_method), methods=list(by_method))
            for path, by_method in handlers.items()
        ]  # fmt: skip
        return [*own, Route(web.PREFIX + "{name:path}", web.file, methods=["GET"])]

    # -- answers -----------------------------------------------------------------------------

    async def chat_completions(self, request: Request) -> Response:
        """Generate an answer to a conversation."""
        return await self._generating.answer(request, ChatShape())

    async def completions(self, request: Request) -> Response:
        """Go on with a text."""
        return await self._generating.answer(request, TextShape())

    async def responses(self, request: Request) -> Response:
        """Generate a response, and keep it unless that is declined."""
        shape = ResponsesShape(
            self._service.kept_responses, request.state.key, self._service.settings.ignore_tool
        )
        return await self._generating.answer(request, shape)

    async def retrieve_response(self, request: Request) -> Response:
        """A kept response."""
        id = request.path_params["id"]
        kept = self._service.kept_responses.get(request.state.key, id)
        if kept is None:
            raise not_found(f"Response with id {quoted(id)}")
        return json_response(kept.response)

    async def input_items(self, request: Request) -> Response:
        """The items that a kept response was made from."""
        id = request.path_params["id"]
        kept = self._service.kept_responses.get(request.state.key, id)
        if kept is None:
            raise not_found(f"Response with id {quoted(id)}")
        return json_response(page(kept.input_items(), request.query_params))

    async def delete_response(self, request: Request) -> Response:
        """Forget a kept response."""
        id = request.path_params["id"]
        if not self._service.kept_responses.delete(request.state.key, id):
            raise not_found(f"Response with id {quoted(id)}")
        return json_response({"id": id, "object": "response", "deleted": True})

    async def look(self, request: Request) -> Response:
        """What went on inside before one token of a text was drawn."""
        service, share = self._service, request.state.share
        service.check_accepting()
        asked = await service.bodies.read(request, lambda body: read(LookRequest, body))
        model = service.model(asked.model)
        caller = Caller(request.receive, None, share)
        try:
            pictures = await self._planner.pictures(asked.images, model, asked.model, share)
            answer = service.looks.answer(asked, pictures, model, share)
            return json_response(await caller.while_here(answer))
        finally:
            caller.close()

    async def replay(self, request: Request) -> Response:
        """Run a kept request again, and say whether every bit agrees."""
        service, share = self._service, request.state.share
        service.check_ready()
        service.check_accepting()
        id, limit = request.path_params["id"], service.settings.request_timeout
        engine, recording = replaying.find(service.engines.values(), id, request.state.key)
        deadline = time.monotonic() + limit if limit else None
        caller = Caller(request.receive, deadline, share)

        async def run() -> ReplayResult:
            async with service.replays.turn(share):
                return await replaying.replay(engine, recording, service.waker, caller)

        try:
            result = await caller.while_here(run())
        finally:
            caller.close()
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

    # -- models ------------------------------------------------------------------------------

    async def list_models(self, request: Request) -> Response:
        """The models that are served, by id and by alias."""
        self._service.check_ready()
        dialect, names = dialect_of(request.url.path) or S, self._service.names.items()
        return json_response({"object": "list", "data": [_model(n, m, dialect) for n, m in names]})

    async def retrieve_model(self, request: Request) -> Response:
        """One model, by id or alias."""
        name = request.path_params["id"]
        dialect = dialect_of(request.url.path) or S
        model = self._service.model(name)
        return json_response({**_model(name, model, dialect), "inside": _inside(model)})

    # -- tokens ------------------------------------------------------------------------------

    async def tokenize(self, request: Request) -> Response:
        """Text, or a conversation, as token ids."""
        service, share = self._service, request.state.share
        dialect = dialect_of(request.url.path) or S

        def make(body: dict[str, Any]) -> tuple[TokenizeRequest | ChatRequest, bool]:
            asked = read(TokenizeRequest, body)
            wanted = bool(asked.pieces)
            if asked.messages is None:
                return asked, wanted
            return read_chat({**body, "model": service.model(asked.model).id}, dialect), wanted

        spans: list[Span] = []
        asked, with_pieces = await service.bodies.read(request, make)
        model = service.model(asked.model)
        n_ctx = model.engine.n_ctx
        if isinstance(asked, ChatRequest):
            conversation = await self._planner.conversation(
                asked.messages, model, asked.model, share
            )
            conversation.check_size(truncated=False, n_ctx=n_ctx)
            workers = service.pools.for_conversation(bool(conversation.pictures))
            prompt = await workers.run(share, conversation.render, Layout())
            ids = prompt.tokens.tolist()
            spans = [{"start": image.start, "stop": image.stop} for image in prompt.images]
        else:
            text = asked.text or ""
            if (least := model.tokenizer.least_tokens(len(text))) > n_ctx:
                raise context_length_exceeded(least, n_ctx, "text", at_least=True)
            ids = await service.pools.planning.run(share, model.tokenizer.encode, text)
        told: Tokens = {"tokens": ids, "count": len(ids), "max_model_len": n_ctx}
        if spans:
            told["images"] = spans
        if with_pieces:
            told["pieces"] = await service.pools.planning.run(share, pieces, model, ids)
        return json_response(told)

    async def detokenize(self, request: Request) -> Response:
        """Token ids as text."""
        service = self._service
        asked = await service.bodies.read(request, lambda body: read(DetokenizeRequest, body))
        model = service.model(asked.model)
        for i, token in enumerate(asked.tokens):
            if token >= model.vocab_size:
                raise invalid(f"The vocabulary has {model.vocab_size} tokens.", "tokens", i)
        text = await service.pools.planning.run(
            request.state.share, model.tokenizer.decode, asked.tokens
        )
        told: Text = {"text": text}
        if asked.pieces:
            told["pieces"] = await service.pools.planning.run(
                request.state.share, pieces, model, asked.tokens
            )
        return json_response(told)

    # -- sessions ----------------------------------------------------------------------------

    async def delete_session(self, request: Request) -> Response:
        """Forget a session."""
        id = request.path_params["id"]
        if not self._service.sessions.delete(request.state.key, id):
            raise not_found(f"The session {quoted(id)}")
        return json_response({"id": id, "object": "session.deleted", "deleted": True})

    async def session(self, request: Request) -> Response:
        """What a session was used for."""
        id, key = request.path_params["id"], request.state.key
        session = self._service.sessions.get(key, id)
        if session is None:
            raise not_found(f"The session {quoted(id)}")
        return json_response(session.shown())

    # -- the server itself -------------------------------------------------------------------

    async def index(self, request: Request) -> Response:
        """The page, or where things are for those who can't show one."""
        if web.wants_page(request.headers.get("accept", "")):
            return web.page()
        told: Index = {
            "name": "tinyllm",
            "page": "/",
            "base_urls": [dialect.prefix for dialect in DIALECTS],
            "openapi": "/openapi.json",
            "health": "/health",
            "needs_key": self._service.keyed,
        }
        return json_response(told, headers={"Vary": "Accept"})

    async def health(self, request: Request) -> Response:
        """Whether the server can answer: 200 ready, 503 loading or draining."""
        self._service.check_ready()
        self._service.check_accepting()
        models = self._service.models
        told: Health = {
            "status": "ready",
            "models": [model.id for model in models],
            "processor": models[0].processor,
        }
        return json_response(told)

    async def metrics(self, request: Request) -> Response:
        """Counters in Prometheus text."""
        return Response(self._service.metrics.text(), media_type=CONTENT_TYPE)

    async def openapi(self, request: Request) -> Response:
        """This API as an OpenAPI document."""
        if self._document is None:
            self._document = to_json(document(authenticated=self._service.keyed))
        return Response(self._document, media_type="application/json")


def _by_method(handlers: Mapping[str, Handler]) -> Handler:
    """One handler for the methods of one address."""

    async def handle(request: Request) -> Response:
        return await handlers["GET" if request.method == "HEAD" else request.method](request)

    return handle


def _model(name: str, model: ServedModel, dialect: Dialect) -> ModelOut:
    sampling: Any = model.defaults.under(dialect)
    return {
        "id": name,
        "object": "model",
        "created": model.created,
        "owned_by": "tinyllm",
        "default_sampling": sampling,
    }


def _inside(model: ServedModel) -> InsideOut:
    from tinyllm.inside.lab import BREAKAGES, possible

    breakages = BREAKAGES if model.shape is None else possible(model.shape)
    return {
        "dtype": model.dtype,
        "n_layers": model.n_layers,
        "n_heads": model.n_heads,
        "sees": model.vision is not None,
        "breakages": {name: breakage.what for name, breakage in breakages.items()},
    }


def pieces(model: ServedModel, ids: Sequence[int]) -> list[Piece]:
    """What each token stands for."""
    tokenizer, special = model.tokenizer, set(model.tokenizer.special_tokens.values())
    return [
        {
            "text": tokenizer.token_bytes(id).decode("utf-8", "replace"),
            "bytes": tokenizer.token_bytes(id).hex(),
            "special": id in special,
        }
        for id in ids
    ]


def _token(pair: tuple[int, float]) -> dict[str, Any]:
    return {"token": pair[0], "logprob": pair[1]}
