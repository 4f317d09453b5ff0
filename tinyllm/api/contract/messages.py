"""The messages of a conversation: who said what, in which parts, with which calls of tools."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, StringConstraints, Tag

from tinyllm.api.contract.fields import FunctionName, Open
from tinyllm.api.limits import MAX_IMAGES


class TextPart(Open):
    type: Literal["text"]
    text: str


class ImageURL(Open):
    url: str = Field(description="https://… or data:image/…;base64,…")
    detail: str | None = Field(None, description="Accepted and ignored.")


ImageURLs = Annotated[list[str], Field(max_length=MAX_IMAGES)]


class ImagePart(Open):
    type: Literal["image_url"]
    image_url: Annotated[
        Annotated[ImageURL, Tag("~object")] | Annotated[str, Tag("~url")],
        Discriminator(lambda v: "~url" if isinstance(v, str) else "~object"),
    ]

    @property
    def url(self) -> str:
        return self.image_url if isinstance(self.image_url, str) else self.image_url.url


def _part_tag(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return {"text": "~text", "image_url": "~image_url"}.get(kind) if isinstance(kind, str) else None


ContentPart = Annotated[
    Annotated[TextPart, Tag("~text")] | Annotated[ImagePart, Tag("~image_url")],
    Discriminator(
        _part_tag,
        custom_error_type="part_type",
        custom_error_message="A content part must be an object of type 'text' or 'image_url'",
    ),
]


def _content_tag(value: Any) -> str | None:
    return "~string" if isinstance(value, str) else "~parts" if isinstance(value, list) else None


_CONTENT = Discriminator(
    _content_tag,
    custom_error_type="content_type",
    custom_error_message="Content must be a string or a list of parts",
)
TextContent = Annotated[
    Annotated[str, Tag("~string")] | Annotated[list[TextPart], Tag("~parts")], _CONTENT
]
Content = Annotated[
    Annotated[str, Tag("~string")] | Annotated[list[ContentPart], Tag("~parts")], _CONTENT
]

Author = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


class SystemMessage(Open):
    role: Literal["system", "developer"]
    content: TextContent
    name: Author | None = None


class UserMessage(Open):
    role: Literal["user"]
    content: Content
    name: Author | None = None


class CalledFunction(Open):
    name: FunctionName
    arguments: Annotated[str, AfterValidator(lambda text: text if text.strip() else "{}")] = Field(
        description="JSON text; nothing, or blanks, mean no arguments"
    )


class ToolCall(Open):
    id: str = Field(min_length=1)
    type: Literal["function"] = "function"
    function: CalledFunction


class AssistantMessage(Open):
    role: Literal["assistant"]
    content: TextContent | None = None
    name: Author | None = None
    tool_calls: list[ToolCall] | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    reasoning_details: list[Any] | None = None


class ToolMessage(Open):
    role: Literal["tool"]
    content: TextContent
    tool_call_id: str = Field(min_length=1)
    name: str | None = None


_ROLES = {
    "system": "~system", "developer": "~system", "user": "~user",
    "assistant": "~assistant", "tool": "~tool",
}  # fmt: skip


def _role_tag(value: Any) -> str | None:
    role = value.get("role") if isinstance(value, dict) else getattr(value, "role", None)
    return _ROLES.get(role) if isinstance(role, str) else None


Message = Annotated[
    Annotated[SystemMessage, Tag("~system")]
    | Annotated[UserMessage, Tag("~user")]
    | Annotated[AssistantMessage, Tag("~assistant")]
    | Annotated[ToolMessage, Tag("~tool")],
    Discriminator(
        _role_tag,
        custom_error_type="role",
        custom_error_message=(
            "A message must be an object whose role is system, developer, user, assistant or tool"
        ),
    ),
]
