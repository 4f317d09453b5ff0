"""Every address of the API, a row each: what routes, OpenAPI document and page are made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel

from tinyllm.api.contract import answers, response_answers
from tinyllm.api.contract.chat_completions import ChatRequest
from tinyllm.api.contract.completions import CompletionRequest
from tinyllm.api.contract.dialect import DIALECTS
from tinyllm.api.contract.input_items import QUERY, ItemList
from tinyllm.api.contract.look import LookAnswer, LookRequest
from tinyllm.api.contract.responses import ResponsesRequest
from tinyllm.api.contract.tokens import DetokenizeRequest, TokenizeRequest

Method = Literal["GET", "POST", "DELETE"]

# What reading a body may end with, beside a broken rule of its schema.
BODY_ERRORS = (400, 404, 408, 413, 415, 503)
PROMETHEUS, JSON = "text/plain", "application/json"


@dataclass(frozen=True)
class Endpoint:
    """One method of one address.

    name: of the operation, and of the method of `routes.Api` that answers.
    path: behind each dialect's prefix, or as it is where `shared` is False; {id} is any text.
    answer: the shape of a 200, or the media type of one without a shape.
    request: the shape of the body.
    chunk: the shape of an event, where the answer may be a stream.
    query: JSON Schemas of what may stand behind a ?.
    errors: other statuses; a faulty body's and a missing key's come by themselves.
    """

    name: str
    method: Method
    path: str
    summary: str
    answer: Any
    request: type[BaseModel] | None = None
    chunk: Any = None
    errors: Sequence[int] = ()
    query: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    shared: bool = True

    @property
    def generates(self) -> bool:
        """Whether the engine works for it, with the headers that such answers have."""
        return self.chunk is not None

    @property
    def statuses(self) -> list[int]:
        """Every status beside 200, whatever the dialect."""
        return sorted({*self.errors, *(BODY_ERRORS if self.request is not None else ())})

    def paths(self) -> list[tuple[str, str]]:
        """(dialect's name or "", path) of each place where it is served."""
        if not self.shared:
            return [("", self.path)]
        return [(dialect.name, dialect.prefix + self.path) for dialect in DIALECTS]


ENDPOINTS = (
    Endpoint("chat_completions", "POST", "/chat/completions",
             "Generate an answer to a conversation",
             answers.Completion, ChatRequest, answers.Chunk, (429, 500)),
    Endpoint("completions", "POST", "/completions",
             "Go on with a text, or with token ids; no template is applied",
             answers.TextCompletion, CompletionRequest, answers.TextCompletion, (429, 500)),
    Endpoint("responses", "POST", "/responses",
             "Generate a response; its conversation can be gone on with by its id",
             response_answers.ResponseOut, ResponsesRequest, response_answers.ResponseEvent,
             (429, 500)),
    Endpoint("retrieve_response", "GET", "/responses/{id}", "A kept response",
             response_answers.ResponseOut, errors=(404,)),
    Endpoint("delete_response", "DELETE", "/responses/{id}", "Forget a kept response",
             response_answers.ResponseDeleted, errors=(404,)),
    Endpoint("input_items", "GET", "/responses/{id}/input_items",
             "The items that a kept response was made from", ItemList, errors=(404,),
             query=QUERY),
    Endpoint("look", "POST", "/look", "What went on inside before one token of a text was drawn",
             LookAnswer, LookRequest, errors=(429, 500)),
    Endpoint("replay", "GET", "/completions/{id}/replay",
             "Run a kept request again and compare every bit",
             answers.ReplayOut, errors=(404, 429, 503)),
    Endpoint("list_models", "GET", "/models", "The models, by id and by alias",
             answers.ModelList, errors=(503,)),
    Endpoint("retrieve_model", "GET", "/models/{id}", "One model, by id or alias",
             answers.ModelOut, errors=(404, 503)),
    Endpoint("tokenize", "POST", "/tokenize", "Text, or a conversation, as token ids",
             answers.Tokens, TokenizeRequest),
    Endpoint("detokenize", "POST", "/detokenize", "Token ids as text",
             answers.Text, DetokenizeRequest),
    Endpoint("session", "GET", "/sessions/{id}", "What an X-Session-ID was used for",
             answers.SessionOut, errors=(404,)),
    Endpoint("delete_session", "DELETE", "/sessions/{id}", "Forget a session",
             answers.SessionDeleted, errors=(404,)),
    Endpoint("index", "GET", "/", "The page that looks inside; for programs, where things are",
             answers.Index, shared=False),
    Endpoint("health", "GET", "/health", "Whether the server can answer: 200, or 503 and why",
             answers.Health, errors=(503,), shared=False),
    Endpoint("metrics", "GET", "/metrics", "Counters in Prometheus text", PROMETHEUS, shared=False),
    Endpoint("openapi", "GET", "/openapi.json", "This API as an OpenAPI document", JSON,
             shared=False),
)  # fmt: skip


def table() -> str:
    """The rows in Markdown, for the API's page."""
    lines = ["| address | |", "|---|---|"]
    for row in ENDPOINTS:
        prefix = "…" if row.shared else ""
        lines.append(f"| `{row.method} {prefix}{row.path}` | {row.summary} |")
    return "\n".join(lines) + "\n"
