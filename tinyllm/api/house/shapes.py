"""The shapes of generating requests: how each is read, planned and written. All go the same way."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Generic, Protocol, TypeVar

from tinyllm.api.answer import sse
from tinyllm.api.answer.chunks import ChunkWriter, fold
from tinyllm.api.answer.generation import Update
from tinyllm.api.answer.response_events import ResponseWriter, messages_of
from tinyllm.api.answer.run import Run
from tinyllm.api.answer.text_chunks import TextChunkWriter, fold_text
from tinyllm.api.contract.chat_completions import ChatRequest, read_chat
from tinyllm.api.contract.completions import CompletionRequest
from tinyllm.api.contract.dialect import Dialect
from tinyllm.api.contract.errors import ApiError, envelope, quoted
from tinyllm.api.contract.fields import read
from tinyllm.api.contract.response_answers import ResponseOut
from tinyllm.api.contract.responses import ResponsesRequest, as_chat, read_response
from tinyllm.api.contract.sampling import SampledRequest
from tinyllm.api.house.kept_responses import KeptResponses
from tinyllm.api.prompt.decide import Score
from tinyllm.api.prompt.plan import Plan
from tinyllm.api.prompt.planner import Planner
from tinyllm.api.prompt.served import ServedModel
from tinyllm.api.prompt.turns import Client

Chunk = Mapping[str, Any]
Asked = TypeVar("Asked", bound=SampledRequest)


class Writer(Protocol):
    """Writes a run's updates as the chunks of one shape."""

    def start(self) -> Iterable[Chunk]: ...
    def push(self, update: Update) -> Iterable[Chunk]: ...
    def end(self) -> Iterable[Chunk]: ...


class Shape(ABC, Generic[Asked]):
    """One request on its way: made for it, first `read`, then `plan`, then `writer`."""

    last_event = sse.DONE  # after the last chunk of a stream
    holds_request = False  # once it is planned: its body is in memory to the answer's end

    @abstractmethod
    def id_prefix(self, dialect: Dialect) -> str:
        """Of the answer's id."""

    @abstractmethod
    def read(self, body: Mapping[str, Any], dialect: Dialect) -> Asked:
        """The valid request in a body. ApiError."""

    @abstractmethod
    async def plan(
        self,
        request: Asked,
        planner: Planner,
        dialect: Dialect,
        model: ServedModel,
        score: Score,
        client: Client,
    ) -> Sequence[Plan]:
        """The plans of what was read, one a prompt. ApiError, and what `score` raises."""

    @abstractmethod
    def writer(self, run: Run, created: float, whole: bool) -> Writer:
        """What writes the chunks: of a stream, or of what is folded into a whole answer."""

    @abstractmethod
    def fold(self, chunks: Sequence[Any]) -> Chunk:
        """All chunks as the whole answer."""

    def event(self, chunk: Chunk) -> bytes:
        """A chunk of a stream on the wire."""
        return sse.event(chunk)

    def failed(self, writer: Writer, error: ApiError) -> Iterable[Chunk]:
        """What a stream says of a fault on the way."""
        return [envelope(error)]


class ChatShape(Shape[ChatRequest]):
    """/chat/completions."""

    def id_prefix(self, dialect: Dialect) -> str:
        return dialect.id_prefix

    def read(self, body: Mapping[str, Any], dialect: Dialect) -> ChatRequest:
        request = read_chat(body, dialect)
        self._with_usage = _wants_usage(request)
        return request

    async def plan(
        self,
        request: ChatRequest,
        planner: Planner,
        dialect: Dialect,
        model: ServedModel,
        score: Score,
        client: Client,
    ) -> Sequence[Plan]:
        return [await planner.chat(request, dialect, model, score, client)]

    def writer(self, run: Run, created: float, whole: bool) -> Writer:
        return ChunkWriter(run, created, whole or self._with_usage)

    def fold(self, chunks: Sequence[Any]) -> Chunk:
        return fold(chunks)


class TextShape(Shape[CompletionRequest]):
    """/completions."""

    def id_prefix(self, dialect: Dialect) -> str:
        return "cmpl-"

    def read(self, body: Mapping[str, Any], dialect: Dialect) -> CompletionRequest:
        request = read(CompletionRequest, body)
        self._with_usage = _wants_usage(request)
        return request

    async def plan(
        self,
        request: CompletionRequest,
        planner: Planner,
        dialect: Dialect,
        model: ServedModel,
        score: Score,
        client: Client,
    ) -> Sequence[Plan]:
        return await planner.completion(request, dialect, model, client)

    def writer(self, run: Run, created: float, whole: bool) -> Writer:
        return TextChunkWriter(run, created, whole or self._with_usage)

    def fold(self, chunks: Sequence[Any]) -> Chunk:
        return fold_text(chunks)


class ResponsesShape(Shape[ResponsesRequest]):
    """/responses: a chat in other words, whose answers may be kept.

    Args:
        kept: the app's kept responses.
        key: whose they are.
        ignored_tools: types of tools that are left out.
    """

    last_event = b""
    holds_request = True

    def __init__(self, kept: KeptResponses, key: str, ignored_tools: Collection[str] = ()) -> None:
        self._kept, self._key = kept, key
        self._ignored_tools = ignored_tools

    def id_prefix(self, dialect: Dialect) -> str:
        return "resp_"

    def read(self, body: Mapping[str, Any], dialect: Dialect) -> ResponsesRequest:
        self._request, self._left_out = read_response(body, self._ignored_tools)
        return self._request

    async def plan(
        self,
        request: ResponsesRequest,
        planner: Planner,
        dialect: Dialect,
        model: ServedModel,
        score: Score,
        client: Client,
    ) -> Sequence[Plan]:
        history: Sequence[dict[str, Any]] = ()
        if (previous := request.previous_response_id) is not None:
            before = self._kept.get(self._key, previous)
            if before is None:
                message = f"Previous response with id {quoted(previous)} not found."
                raise ApiError(400, message, code="previous_response_not_found",
                               loc=("previous_response_id",))  # fmt: skip
            history = before.messages
        chat, self._messages, places = await planner.reading(
            client, as_chat, request, history, self._kept_item, model.engine.n_ctx
        )
        unknown = request.without_effect()
        try:
            plan = await planner.chat(chat, dialect, model, score, client, unknown)
        except ApiError as error:
            raise places.error(error) from None
        own = set(unknown)
        ignored = [name if name in own else places.name(name) for name in plan.ignored]
        relaxed = tuple(places.name(name) for name in plan.relaxed)
        return [replace(plan, ignored=(*ignored, *self._left_out), relaxed=relaxed,
                        format_place=places.of(plan.format_place))]  # fmt: skip

    def _kept_item(self, id: str) -> dict[str, Any] | None:
        return self._kept.item(self._key, id)

    def writer(self, run: Run, created: float, whole: bool) -> Writer:
        return ResponseWriter(run, self._request, created, self._keep)

    def _keep(self, response: ResponseOut) -> None:
        if self._request.kept:
            self._kept.put(self._key, response, [*self._messages, *messages_of(response)])

    def fold(self, chunks: Sequence[Any]) -> Chunk:
        whole: Chunk = chunks[-1]["response"]
        return whole

    def event(self, chunk: Chunk) -> bytes:
        return sse.event(chunk, chunk["type"])

    def failed(self, writer: Writer, error: ApiError) -> Iterable[Chunk]:
        assert isinstance(writer, ResponseWriter)
        return writer.failed(error)


def _wants_usage(request: SampledRequest) -> bool:
    return bool(request.stream_options and request.stream_options.include_usage)
