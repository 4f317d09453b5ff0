"""What an answer must be: calls of tools, or text that fits a format."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from tinyllm.api.contract.fields import FunctionName, Open, fail


class Function(Open):
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = Field(None, description="A JSON Schema")
    strict: bool | None = None

    @model_validator(mode="after")
    def _an_object(self) -> Function:
        kind = _root_type(self.parameters or {})
        if kind is not None and kind != "object" and kind != ["object"]:
            raise fail('parameters must be a JSON Schema of type "object"', "parameters")
        return self


def _root_type(schema: dict[str, Any]) -> Any:
    """The type of a schema's root, its `$ref`s followed; None if it says nothing of it."""
    node: Any = schema
    for _ in range(16):
        ref = node.get("$ref") if isinstance(node, dict) else None
        if not isinstance(ref, str) or not ref.startswith("#/"):
            break
        node = schema
        for key in ref[2:].split("/"):
            node = node.get(key) if isinstance(node, dict) else None
    return node.get("type") if isinstance(node, dict) else None


class Tool(Open):
    type: Literal["function"]
    function: Function


class NamedFunction(Open):
    name: FunctionName


class NamedTool(Open):
    type: Literal["function"]
    function: NamedFunction


class Allowed(Open):
    mode: Literal["auto", "required"]
    tools: list[NamedTool] = Field(min_length=1, description="Those of `tools` that may be called")


class AllowedTools(Open):
    type: Literal["allowed_tools"]
    allowed_tools: Allowed


def _choice_tag(value: Any) -> str | None:
    if isinstance(value, str):
        return "~word"
    if not isinstance(value, dict):
        return None
    return "~allowed" if value.get("type") == "allowed_tools" else "~named"


ToolChoice = Annotated[
    Annotated[FunctionName, Tag("~word")]
    | Annotated[NamedTool, Tag("~named")]
    | Annotated[AllowedTools, Tag("~allowed")],
    Discriminator(
        _choice_tag,
        custom_error_type="tool_choice",
        custom_error_message=(
            "tool_choice must be auto, none, required, a function's name, "
            '{"type": "function", …} or {"type": "allowed_tools", …}'
        ),
    ),
]


class TextFormat(Open):
    type: Literal["text"]


class JsonFormat(Open):
    type: Literal["json_object"]


class NamedSchema(Open):
    name: FunctionName
    description: str | None = None
    json_schema: dict[str, Any] | None = Field(None, alias="schema", description="A JSON Schema")
    strict: bool | None = None


class SchemaFormat(Open):
    type: Literal["json_schema"]
    json_schema: NamedSchema


def _format_tag(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else None
    known = {"text": "~text", "json_object": "~json", "json_schema": "~schema"}
    return known.get(kind) if isinstance(kind, str) else None


ResponseFormat = Annotated[
    Annotated[TextFormat, Tag("~text")]
    | Annotated[JsonFormat, Tag("~json")]
    | Annotated[SchemaFormat, Tag("~schema")],
    Discriminator(
        _format_tag,
        custom_error_type="response_format",
        custom_error_message="type must be text, json_object or json_schema",
    ),
]
