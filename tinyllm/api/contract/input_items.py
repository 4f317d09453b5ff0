"""The items that a response was made from: messages of its conversation, in the newer shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from typing_extensions import TypedDict

from tinyllm.api.contract.errors import invalid, quoted
from tinyllm.api.limits import MAX_PAGE, PAGE

Json = dict[str, Any]
QUERY: Mapping[str, Json] = {  # as JSON Schemas, for the OpenAPI document
    "limit": {"type": "integer", "minimum": 1, "maximum": MAX_PAGE, "default": PAGE},
    "order": {"type": "string", "enum": ["asc", "desc"], "default": "desc"},
    "after": {"type": "string", "description": "An item's id: those behind it"},
}


class ItemList(TypedDict):
    object: str
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool


def items_of(messages: Sequence[Mapping[str, Any]], response_id: str) -> list[Json]:
    """Messages as items, in their order; each id names the response and the item's position."""
    own = response_id.rpartition("_")[2]
    items: list[Json] = []

    def add(kind: str, **fields: Any) -> None:
        prefix = {"message": "msg", "reasoning": "rs", "function_call": "fc"}.get(kind, "fco")
        items.append(
            {"id": f"{prefix}_{own}_{len(items)}", "type": kind, "status": "completed", **fields}
        )

    for message in messages:
        role, content = message["role"], message.get("content")
        if message.get("reasoning"):
            thought = {"type": "reasoning_text", "text": message["reasoning"]}
            add("reasoning", summary=[], content=[thought])
        if role == "tool":
            output = content if isinstance(content, str) else _parts(content, role)
            add("function_call_output", call_id=message["tool_call_id"], output=output)
        elif content is not None:
            add("message", role=role, content=_parts(content, role))
        for call in message.get("tool_calls", ()):
            add("function_call", call_id=call["id"], **call["function"])
    return items


def _parts(content: Any, role: str) -> list[Json]:
    """Content of a chat message as parts of an item."""
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return [_part(part, role) for part in parts or ()]


def _part(part: Mapping[str, Any], role: str) -> Json:
    if part["type"] == "image_url":
        return {"type": "input_image", "image_url": part["image_url"]["url"], "detail": "auto"}
    if role == "assistant":
        return {"type": "output_text", "text": part["text"], "annotations": [], "logprobs": []}
    return {"type": "input_text", "text": part["text"]}


def page(items: Sequence[Json], query: Mapping[str, str]) -> ItemList:
    """The part of a list that a query asks for, the newest first as OpenAI has it. ApiError."""
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise invalid("order must be asc or desc.", "order")
    limit = query.get("limit", str(PAGE))
    if not (
        limit.isascii() and limit.isdecimal() and len(limit) < 9 and 1 <= int(limit) <= MAX_PAGE
    ):
        raise invalid(f"limit must be a number from 1 to {MAX_PAGE}.", "limit")
    rows = list(items if order == "asc" else reversed(items))
    if (after := query.get("after")) is not None:
        places = [i for i, item in enumerate(rows) if item["id"] == after]
        if not places:
            raise invalid(f"No item of this response has the id {quoted(after)}.", "after")
        rows = rows[places[0] + 1 :]
    shown = rows[: int(limit)]
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": len(rows) > len(shown),
    }
