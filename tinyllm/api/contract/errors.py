"""One envelope for everything that goes wrong, and what each dialect makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from pydantic_core import to_json
from starlette.responses import Response

from tinyllm.api.contract.dialect import DIALECTS, Dialect
from tinyllm.api.limits import MAX_ERROR, MAX_QUOTED

Loc = tuple[str | int, ...]


def quoted(words: object) -> str:
    """A caller's own words as an error repeats them: enough to know them by, whatever was sent."""
    text = str(words)
    return repr(text if len(text) <= MAX_QUOTED else text[: MAX_QUOTED - 1] + "…")


@dataclass(eq=False)
class ApiError(Exception):
    """An answer other than 200.

    `loc` is where in the request the fault lies, as keys and list positions; `retry_after` is in
    seconds; `retry=False` tells clients that trying again cannot help.
    """

    status: int
    message: str
    type: str = "invalid_request_error"
    code: str | None = None
    loc: Loc = ()
    kind: str = "value_error"  # the name of the rule that was broken, for S's `detail`
    retry_after: float | None = None
    retry: bool | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)  # more keys inside `error`

    def __post_init__(self) -> None:
        """However long a caller's words, keys and patterns are, the error stays readable."""
        if len(self.message) > MAX_ERROR:
            self.message = self.message[: MAX_ERROR - 1] + "…"
        self.loc = tuple(
            key if isinstance(key, int) or len(key) <= MAX_QUOTED else key[: MAX_QUOTED - 1] + "…"
            for key in self.loc
        )

    def __str__(self) -> str:
        return self.message

    @property
    def param(self) -> str | None:
        """The fault's place in one string: `messages[0].content`."""
        return path_of(self.loc) or None


def path_of(loc: Loc) -> str:
    """("messages", 0, "content") → "messages[0].content"."""
    text = ""
    for key in loc:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else str(key)
    return text


def invalid(message: str, *loc: str | int, kind: str = "value_error") -> ApiError:
    """A request that breaks a rule: 422 on S and 400 on O. `loc` names the place."""
    return ApiError(SCHEMA, message, loc=loc, kind=kind)


def sentence(text: str) -> str:
    """An error's words as a sentence; the name of a field keeps its letters."""
    first, _, _ = text.partition(" ")
    name = any(mark in first for mark in "_.[")
    return f"{text if name else text[:1].upper() + text[1:]}."


SCHEMA = 422  # turned into 400 on O, see `error_response`


def not_found(what: str) -> ApiError:
    return ApiError(404, f"{what} was not found.", code="not_found")


def model_not_found(name: str) -> ApiError:
    return ApiError(
        404,
        f"The model {quoted(name)} is not served here; GET …/models lists those that are.",
        code="model_not_found",
        loc=("model",),
    )


def unauthorized(given: bool) -> ApiError:
    message = (
        "This API key is not known."
        if given
        else "An API key is needed: send the header 'Authorization: Bearer KEY'."
    )
    return ApiError(
        401,
        message,
        "authentication_error",
        code="invalid_api_key",
        headers={"WWW-Authenticate": "Bearer"},
    )


def too_many(message: str, retry_after: float) -> ApiError:
    return ApiError(
        429, message, "rate_limit_exceeded", code="rate_limit_exceeded", retry_after=retry_after
    )


def unavailable(
    message: str, code: str, retry_after: float, retry: bool | None = None, **extra: Any
) -> ApiError:
    return ApiError(
        503, message, "service_unavailable", code=code, retry_after=retry_after, retry=retry,
        extra=extra,
    )  # fmt: skip


def server_error(message: str = "The server failed to answer; the fault is its own.") -> ApiError:
    return ApiError(500, message, "server_error", code="server_error", retry=False)


def context_length_exceeded(
    n_prompt_tokens: int, n_ctx: int, *loc: str | int, at_least: bool = False
) -> ApiError:
    """A prompt that doesn't fit; clients know it by the message's first words or by its code.

    `at_least`: the tokens weren't counted, for there can't be fewer.
    """
    has = "at least " if at_least else ""
    return ApiError(
        400,
        f"This model's maximum context length is {n_ctx} tokens. However, the prompt has "
        f"{has}{n_prompt_tokens} tokens: shorten it.",
        code="context_length_exceeded",
        loc=loc or ("messages",),
        extra={"n_prompt_tokens": n_prompt_tokens, "n_ctx": n_ctx},
    )


def status_error(status: int) -> ApiError:
    """The error for a bare HTTP status, such as the router's 404 and 405."""
    if status == 404:
        bases = " or ".join(dialect.prefix for dialect in DIALECTS)
        message = f"There is no such address here; a client's base URL ends in {bases}."
        return ApiError(404, message, code="not_found")
    if status == 405:
        return ApiError(405, "This address doesn't take that method.", code="method_not_allowed")
    if status >= 500:
        return server_error()
    return ApiError(status, HTTPStatus(status).phrase, code=f"http_{status}")


def envelope(error: ApiError) -> dict[str, Any]:
    """The body that every error has: all four keys, always."""
    return {
        "error": {
            "message": error.message,
            "type": error.type,
            "param": error.param,
            "code": error.code,
            **error.extra,
        }
    }


def error_response(error: ApiError, dialect: Dialect | None) -> Response:
    """The HTTP answer; S adds the page family's `detail` to schema errors, O calls them 400."""
    body = envelope(error)
    status = error.status
    if status == SCHEMA:
        if dialect is not None and dialect.schema_status != SCHEMA:
            status = dialect.schema_status
        else:
            loc = ["body", *error.loc]
            body["detail"] = [{"loc": loc, "msg": error.message, "type": error.kind}]
    headers = dict(error.headers)
    if error.retry_after is not None:
        headers["Retry-After"] = str(max(1, round(error.retry_after)))
    if error.retry is not None:
        headers["x-should-retry"] = "true" if error.retry else "false"
    return Response(to_json(body), status, headers, media_type="application/json")
