"""Tools of a response's request: functions, by themselves or in a namespace, and the choice of one.

A namespace groups functions under a name. The model is shown each of them as a function whose name
begins with the namespace's; a call tells both names apart again. Tools that a server runs itself
(web_search, file_search …) are not here: they are refused by name, or left out where the server
was told to.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from tinyllm.api.contract.errors import Loc, quoted
from tinyllm.api.contract.fields import FunctionName, Open, fail
from tinyllm.api.limits import MAX_FUNCTION_NAME, MAX_TOOLS

Json = dict[str, Any]


class FunctionTool(Open):
    type: Literal["function"]
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = Field(None, description="A JSON Schema")
    strict: bool | None = None


class NamespaceTool(Open):
    type: Literal["namespace"]
    name: FunctionName
    description: str | None = None
    tools: list[FunctionTool] = Field(min_length=1, description="Functions of this namespace")


def _kind(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, Mapping) else getattr(value, "type", None)
    return kind if isinstance(kind, str) else None


def _tool_tag(value: Any) -> str | None:
    known = {"function": "~function", "namespace": "~namespace"}
    return known.get(_kind(value) or "")


ResponseTool = Annotated[
    Annotated[FunctionTool, Tag("~function")] | Annotated[NamespaceTool, Tag("~namespace")],
    Discriminator(
        _tool_tag,
        custom_error_type="tool_type",
        custom_error_message="A tool must be a function or a namespace",
    ),
]


class NamedChoice(Open):
    type: Literal["function"]
    name: FunctionName


class AllowedTools(Open):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[NamedChoice] = Field(
        min_length=1, description="Those of `tools` that may be called"
    )


def _choice_tag(value: Any) -> str | None:
    if isinstance(value, str):
        return "~word"
    known = {"function": "~named", "allowed_tools": "~allowed"}
    return known.get(_kind(value) or "")


ResponseToolChoice = Annotated[
    Annotated[Literal["auto", "none", "required"], Tag("~word")]
    | Annotated[NamedChoice, Tag("~named")]
    | Annotated[AllowedTools, Tag("~allowed")],
    Discriminator(
        _choice_tag,
        custom_error_type="tool_choice",
        custom_error_message="tool_choice must be auto, none, required, "
        '{"type": "function", …} or {"type": "allowed_tools", …}',
    ),
]


def positions_without(tools: Any, kinds: Collection[str]) -> list[int]:
    """Which of a request's tools are left when those of these kinds are left out."""
    given = tools if isinstance(tools, list) else ()
    return [i for i, tool in enumerate(given) if _kind(tool) not in kinds]


def check_kinds(tools: Any) -> None:
    """Raises a broken rule that names the first kind of tool which isn't offered."""
    for i, tool in enumerate(tools if isinstance(tools, list) else ()):
        kind = _kind(tool)
        if kind is not None and _tool_tag(tool) is None:
            raise fail(
                f"Tools of type {quoted(kind)} are not offered here, only functions, by themselves "
                "or in a namespace", "tools", i, "type",
            )  # fmt: skip


def full_name(namespace: str | None, name: str) -> str:
    """What the model calls a function of a namespace."""
    if not namespace:
        return name
    return namespace + ("" if namespace.endswith("__") else "__") + name


class Functions:
    """The functions that a request's tools hold, by the names that the model knows.

    Raises a broken rule for a name that is too long, and for too many functions.
    """

    def __init__(self, tools: Sequence[FunctionTool | NamespaceTool]) -> None:
        self.shown: list[Json] = []  # as tools of a chat request
        self.places: list[Loc] = []  # of each of them in the request
        self._names: dict[str, tuple[str | None, str]] = {}  # full: (namespace, own)
        for i, tool in enumerate(tools):
            if isinstance(tool, FunctionTool):
                self._add(tool, None, ("tools", i))
                continue
            for j, function in enumerate(tool.tools):
                self._add(function, tool, ("tools", i, "tools", j))
        if len(self.shown) > MAX_TOOLS:
            raise fail(f"At most {MAX_TOOLS} functions, those of namespaces included", "tools")

    def _add(self, tool: FunctionTool, space: NamespaceTool | None, place: Loc) -> None:
        function = tool.model_dump(exclude={"type"}, exclude_none=True)
        if space is not None:
            name = full_name(space.name, tool.name)
            if len(name) > MAX_FUNCTION_NAME:
                many = f"more than {MAX_FUNCTION_NAME} letters"
                raise fail(f"Its name behind the namespace's has {many}", *place, "name")
            function["name"] = name
            told = [text for text in (space.description, tool.description) if text]
            if told:
                function["description"] = "\n".join(told)
            self._names[name] = (space.name, tool.name)
        else:
            self._names.setdefault(tool.name, (None, tool.name))
        self.shown.append({"type": "function", "function": function})
        self.places.append(place)

    def split(self, name: str) -> tuple[str | None, str]:
        """The namespace, if there is one, and the function's own name."""
        return self._names.get(name, (None, name))

    def find(self, name: str) -> str:
        """The full name of a function that is chosen by it, or by its own name where one has it."""
        if name in self._names:
            return name
        found = [full for full, (_, own) in self._names.items() if own == name]
        return found[0] if len(found) == 1 else name
