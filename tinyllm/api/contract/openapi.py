"""The OpenAPI document, made from the contract's own types: what the code checks, it says."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import models_json_schema

from tinyllm import __version__
from tinyllm.api.contract import answers
from tinyllm.api.contract.chat_completions import ChatRequest
from tinyllm.api.contract.dialect import DIALECTS, Dialect
from tinyllm.api.contract.fields import SESSION_ID
from tinyllm.api.contract.tokens import DetokenizeRequest, TokenizeRequest

Json = dict[str, Any]

_REQUESTS = (ChatRequest, TokenizeRequest, DetokenizeRequest)
_ANSWERS: dict[str, Any] = {
    "Completion": answers.Completion,
    "Chunk": answers.Chunk,
    "ErrorEnvelope": answers.ErrorEnvelope,
    "ModelOut": answers.ModelOut,
    "ModelList": answers.ModelList,
    "SessionOut": answers.SessionOut,
    "SessionDeleted": answers.SessionDeleted,
    "ReplayOut": answers.ReplayOut,
    "Tokens": answers.Tokens,
    "Text": answers.Text,
    "Health": answers.Health,
}
_ERRORS = {
    400: "The request can't be answered, or breaks a rule",
    401: "The API key is missing or unknown",
    404: "Not found",
    405: "The address doesn't take that method",
    408: "The body took too long to arrive",
    413: "The body is too large",
    415: "The body isn't JSON",
    422: "The request breaks a rule of its schema",
    429: "Too many requests wait",
    500: "A fault of the server's own",
    503: "Loading, draining, or out of time",
}


def document(authenticated: bool) -> Json:
    """The whole document; `authenticated` says whether keys are needed."""
    components = _components()
    paths: Json = {
        "/health": {
            "get": _operation("health", "Whether the server can answer", "Health", [503], [])
        },
        "/metrics": {
            "get": _operation("metrics", "Counters in Prometheus text", "text/plain", [], [])
        },
        "/openapi.json": {
            "get": _operation("openapi", "This document", "application/json", [], [])
        },
    }
    for dialect in DIALECTS:
        paths |= _dialect_paths(dialect)
    if authenticated:
        for path, item in paths.items():
            for operation in item.values():
                if path != "/health":
                    operation["security"] = [{"key": []}]
                    operation["responses"]["401"] = _error(401)
    document: Json = {
        "openapi": "3.1.0",
        "info": {
            "title": "tinyllm",
            "version": __version__,
            "description": "Chat completions in two dialects of one route.",
        },
        "paths": paths,
        "components": {"schemas": components},
    }
    if authenticated:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return document


def _components() -> Json:
    """Every schema by name. ChatRequest is there once a dialect: they differ in one pattern."""
    template = "#/components/schemas/{model}"
    _, requests = models_json_schema(
        [(model, "validation") for model in _REQUESTS], ref_template=template
    )
    schemas: Json = dict(requests["$defs"])
    for name, kind in _ANSWERS.items():
        schema = TypeAdapter(kind).json_schema(ref_template=template, mode="serialization")
        schemas |= schema.pop("$defs", {})
        schemas[name] = schema
    _describe_parts(schemas)
    for dialect in DIALECTS:
        schemas |= _of_dialect(schemas, dialect)
    return schemas


def _describe_parts(schemas: Json) -> None:
    """Rules that pydantic checks but doesn't write down."""
    for name in ("TopLogprob", "TokenLogprob"):
        schemas[name]["properties"]["bytes"]["items"] |= {"minimum": 0, "maximum": 255}


def _of_dialect(schemas: Json, dialect: Dialect) -> Json:
    """The request's schemas with this dialect's own pattern for names, and its own names."""
    own = {"ChatRequest", "SystemMessage", "UserMessage", "AssistantMessage", "TokenizeRequest"}
    renamed: Json = {}
    for name in own:
        schema = copy.deepcopy(schemas[name])
        field = schema["properties"].get("name")
        if field is not None:
            field["anyOf"][0]["pattern"] = f"^{dialect.author.pattern}$"
        renamed[name + dialect.name] = _renamed(schema, own, dialect.name)
    return renamed


def _renamed(value: Any, own: set[str], suffix: str) -> Any:
    if isinstance(value, list):
        return [_renamed(item, own, suffix) for item in value]
    if not isinstance(value, dict):
        return value
    out = {key: _renamed(item, own, suffix) for key, item in value.items()}
    ref = out.get("$ref", "")
    if isinstance(ref, str) and ref.rpartition("/")[2] in own:
        out["$ref"] = ref + suffix
    return out


def _dialect_paths(dialect: Dialect) -> Json:
    d, prefix = dialect.name, dialect.prefix
    schema_errors = [dialect.schema_status] if dialect.schema_status != 400 else []
    body_errors = sorted({400, 404, 408, 413, 415, 503, *schema_errors})
    chat = _operation(
        f"chat_completions_{d}",
        "Generate an answer to a conversation",
        "Completion",
        [*body_errors, 429, 500],
        [_header("X-Session-ID", SESSION_ID.pattern)],
        body=f"ChatRequest{d}",
    )
    chat["responses"]["200"]["content"]["text/event-stream"] = {
        "schema": {
            "type": "object",
            "description": "One server-sent event, with stream: true. `data` is a Chunk or, after "
            "a fault, an ErrorEnvelope; that of the last event is [DONE].",
            "properties": {"data": {"type": "string"}, "event": {"const": "message"}},
            "required": ["data"],
        }
    }
    chat["responses"]["200"]["headers"] = {
        name: {"schema": {"type": "string"}, "required": False}
        for name in ("X-Session-ID", "X-Ignored-Params", "X-Prompt-Truncated")
    }
    tokenize = _operation(
        f"tokenize_{d}", "Text, or a conversation, as token ids", "Tokens", body_errors, [],
        body=f"TokenizeRequest{d}",
    )  # fmt: skip
    detokenize = _operation(
        f"detokenize_{d}", "Token ids as text", "Text", body_errors, [], body="DetokenizeRequest"
    )
    id = _path("id")
    return {
        f"{prefix}/chat/completions": {"post": chat},
        f"{prefix}/completions/{{id}}/replay": {
            "get": _operation(
                f"replay_{d}", "Run a kept request again and compare every bit", "ReplayOut",
                [404, 429, 503], [id],
            )
        },
        f"{prefix}/models": {
            "get": _operation(f"list_models_{d}", "The models", "ModelList", [503], [])
        },
        f"{prefix}/models/{{id}}": {
            "get": _operation(f"retrieve_model_{d}", "One model", "ModelOut", [404, 503], [id])
        },
        f"{prefix}/sessions/{{id}}": {
            "get": _operation(f"session_{d}", "What a session was used for", "SessionOut",
                              [404], [id]),
            "delete": _operation(f"delete_session_{d}", "Forget a session", "SessionDeleted",
                                 [404], [id]),
        },
        f"{prefix}/tokenize": {"post": tokenize},
        f"{prefix}/detokenize": {"post": detokenize},
    }  # fmt: skip


def _operation(
    id: str,
    summary: str,
    answer: str,
    errors: Sequence[int],
    parameters: Sequence[Mapping[str, Any]],
    body: str | None = None,
) -> Json:
    content: Json = (
        {answer: {"schema": {"type": "string"} if answer == "text/plain" else {"type": "object"}}}
        if "/" in answer
        else {"application/json": {"schema": _ref(answer)}}
    )
    operation: Json = {
        "operationId": id,
        "summary": summary,
        "parameters": list(parameters),
        "responses": {
            "200": {"description": "As asked", "content": content},
            **{str(status): _error(status) for status in errors},
        },
    }
    if body is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": _ref(body)}},
        }
    return operation


def _error(status: int) -> Json:
    headers: Json = {}
    if status in (429, 503):
        headers["Retry-After"] = {"schema": {"type": "string"}, "required": False}
    if status == 401:
        headers["WWW-Authenticate"] = {"schema": {"type": "string"}, "required": True}
    return {
        "description": _ERRORS[status],
        "content": {"application/json": {"schema": _ref("ErrorEnvelope")}},
        **({"headers": headers} if headers else {}),
    }


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _path(name: str) -> Json:
    return {
        "name": name,
        "in": "path",
        "required": True,
        "schema": {"type": "string", "minLength": 1},
    }


def _header(name: str, pattern: str) -> Json:
    schema = {"type": "string", "pattern": f"^{pattern}$"}
    return {"name": name, "in": "header", "required": False, "schema": schema}
