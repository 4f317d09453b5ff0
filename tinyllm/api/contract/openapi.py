"""The OpenAPI document, made from the table of endpoints and their types: what the code checks."""

from __future__ import annotations

import copy
import re
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import models_json_schema

import tinyllm
from tinyllm.api.contract.answers import ErrorEnvelope
from tinyllm.api.contract.dialect import DIALECTS, Dialect
from tinyllm.api.contract.endpoints import ENDPOINTS, Endpoint
from tinyllm.api.contract.fields import SESSION_ID

Json = dict[str, Any]

ANSWER_HEADERS = ("X-Session-ID", "X-Ignored-Params", "X-Relaxed-Schema", "X-Prompt-Truncated")
# The schemas that hold a message's name, whose pattern is each dialect's own.
_OF_DIALECT = {"ChatRequest", "SystemMessage", "UserMessage", "AssistantMessage", "TokenizeRequest"}
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
    paths: dict[str, Json] = {}
    for row in ENDPOINTS:
        for dialect, path in row.paths():
            operation = _operation(row, dialect)
            if authenticated and path not in ("/", "/health"):
                operation["security"] = [{"key": []}]
                operation["responses"]["401"] = _error(401)
            paths.setdefault(path, {})[row.method.lower()] = operation
    document: Json = {
        "openapi": "3.1.0",
        "info": {
            "title": "tinyllm",
            "version": tinyllm.__version__,
            "description": "Chat completions and their like, in two dialects of one route.",
        },
        "paths": paths,
        "components": {"schemas": _components()},
    }
    if authenticated:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return document


def _components() -> Json:
    """Every schema by name. Some requests are there once a dialect: they differ in one pattern."""
    template = "#/components/schemas/{model}"
    asked = {row.request for row in ENDPOINTS if row.request is not None}
    _, requests = models_json_schema(
        [(kind, "validation") for kind in asked], ref_template=template
    )
    schemas: Json = dict(requests["$defs"])
    told = [shape for row in ENDPOINTS for shape in (row.answer, row.chunk)]
    for kind in (*told, ErrorEnvelope):
        if kind is None or isinstance(kind, str):
            continue
        schema = TypeAdapter(kind).json_schema(ref_template=template, mode="serialization")
        schemas |= schema.pop("$defs", {})
        schemas[kind.__name__] = schema
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
    own = _OF_DIALECT
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


def _operation(row: Endpoint, dialect: str) -> Json:
    """One row as an operation, under one dialect's prefix ("" for neither)."""
    content: Json
    if isinstance(row.answer, str):
        kind = "string" if row.answer.startswith("text/") else "object"
        content = {row.answer: {"schema": {"type": kind}}}
    else:
        content = {"application/json": {"schema": _ref(row.answer.__name__)}}
    answer: Json = {"description": "As asked", "content": content}
    if row.generates:
        content["text/event-stream"] = {
            "schema": {
                "type": "object",
                "description": "One server-sent event, with stream: true. `data` is a "
                f"{row.chunk.__name__} or, after a fault, an ErrorEnvelope; that of the last event "
                "is [DONE], save in a response's stream, whose events have names.",
                "properties": {"data": {"type": "string"}, "event": {"type": "string"}},
                "required": ["data"],
            }
        }
        answer["headers"] = {
            name: {"schema": {"type": "string"}, "required": False} for name in ANSWER_HEADERS
        }
    statuses = set(row.statuses)
    if row.request is not None or row.query:
        statuses |= {d.schema_status for d in DIALECTS if d.name == dialect}
    operation: Json = {
        "operationId": f"{row.name}_{dialect}" if dialect else row.name,
        "summary": row.summary,
        "parameters": [_path(name) for name in re.findall(r"{(\w+)", row.path)],
        "responses": {"200": answer, **{str(s): _error(s) for s in sorted(statuses)}},
    }
    operation["parameters"] += [
        {"name": name, "in": "query", "required": False, "schema": schema}
        for name, schema in row.query.items()
    ]
    if row.generates:
        operation["parameters"].append(_header("X-Session-ID", SESSION_ID.pattern))
    if row.request is not None:
        name = row.request.__name__
        suffix = dialect if name in _OF_DIALECT else ""
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": _ref(name + suffix)}},
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
