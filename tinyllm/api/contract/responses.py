"""The request for a response: OpenAI's newer shape, read as the conversation that it stands for.

Items become messages, so that one way leads from either shape to a plan. What this server doesn't
have (tools of its own, files, background work) is refused by name, never left out in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from tinyllm.api.contract.chat_completions import ChatRequest, Effort
from tinyllm.api.contract.errors import ApiError, Loc, invalid, quoted
from tinyllm.api.contract.fields import WHOLE, FunctionName, Open, Positive, fail, read
from tinyllm.api.contract.sampling import SampledRequest
from tinyllm.api.contract.tools import ResponseFormat
from tinyllm.api.limits import MAX_TOOLS, MAX_TOP_LOGPROBS

Json = dict[str, Any]
LOGPROBS = "message.output_text.logprobs"


class TextFormat(Open):
    type: Literal["text", "json_object", "json_schema"]
    name: FunctionName | None = None
    description: str | None = None
    json_schema: dict[str, Any] | None = Field(None, alias="schema", description="A JSON Schema")
    strict: bool | None = None

    @model_validator(mode="after")
    def _rules(self) -> TextFormat:
        if self.type == "json_schema" and (self.name is None or self.json_schema is None):
            raise fail("json_schema needs a name and a schema", "schema")
        return self


class TextOptions(Open):
    format: TextFormat | None = None
    verbosity: str | None = Field(None, description="Accepted and ignored")


class ReasoningOptions(Open):
    effort: Effort | None = None
    summary: str | None = Field(None, description="Ignored: the reasoning itself is given")


class FunctionTool(Open):
    type: Literal["function"]
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = Field(None, description="A JSON Schema")
    strict: bool | None = None


def _is_function(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return "~function" if kind == "function" else None


ResponseTool = Annotated[
    Annotated[FunctionTool, Tag("~function")],
    Discriminator(
        _is_function,
        custom_error_type="tool_type",
        custom_error_message="Only tools of type function are offered; built-in tools are not",
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


def _kind_of_choice(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    if isinstance(value, str):
        return "~word"
    known = {"function": "~named", "allowed_tools": "~allowed"}
    return known.get(kind) if isinstance(kind, str) else None


ResponseToolChoice = Annotated[
    Annotated[Literal["auto", "none", "required"], Tag("~word")]
    | Annotated[NamedChoice, Tag("~named")]
    | Annotated[AllowedTools, Tag("~allowed")],
    Discriminator(
        _kind_of_choice,
        custom_error_type="tool_choice",
        custom_error_message="tool_choice must be auto, none, required, "
        '{"type": "function", …} or {"type": "allowed_tools", …}',
    ),
]


class ResponsesRequest(SampledRequest):
    """Generate a response to a text, or to the items of a conversation."""

    input: Annotated[
        Annotated[str, Tag("~string")] | Annotated[list[dict[str, Any]], Tag("~items")],
        Discriminator(
            lambda v: {str: "~string", list: "~items"}.get(type(v)),
            custom_error_type="input",
            custom_error_message="input must be a string or a list of items",
        ),
    ] = Field(description="Text, or messages, function calls and their outputs")
    instructions: str | None = Field(None, description="A system message, for this response alone")
    previous_response_id: str | None = Field(
        None, description="A kept response whose conversation goes on"
    )
    store: bool | None = Field(None, description="Keep the response; true if not given")
    tools: Annotated[list[ResponseTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: ResponseToolChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    max_output_tokens: Positive | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS), WHOLE] | None = None
    include: list[str] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    background: bool | None = Field(None, description="Refused if true")
    conversation: Any = Field(None, description="Refused: use previous_response_id")
    prompt: Any = Field(None, description="Refused: templates are not kept here")

    @model_validator(mode="after")
    def _rules(self) -> ResponsesRequest:
        if isinstance(self.tool_choice, AllowedTools):
            offered = {tool.name for tool in self.tools or ()}
            for tool in self.tool_choice.tools:
                if tool.name not in offered:
                    raise fail(
                        f"allowed_tools names {tool.name!r}, which is no tool", "tool_choice"
                    )
        for name, given in (("background", self.background), ("conversation", self.conversation),
                            ("prompt", self.prompt)):  # fmt: skip
            if given:
                raise fail(f"{name} is not supported here", name)
        if self.n not in (None, 1):
            raise fail("A response has one answer", "n")
        return self

    @property
    def kept(self) -> bool:
        return self.store is not False

    @property
    def wants_logprobs(self) -> bool:
        return bool(self.top_logprobs) or LOGPROBS in (self.include or ())


@dataclass
class Transcript:
    """Messages of a conversation, each with its place in `input`; kept ones have none."""

    messages: list[Json] = field(default_factory=list)
    places: list[Loc] = field(default_factory=list)
    thought: str = ""  # before the assistant's next message

    def add(self, message: Json, place: Loc = ()) -> None:
        if message["role"] == "assistant" and self.thought:
            message, self.thought = {**message, "reasoning": self.thought}, ""
        self.messages.append(message)
        self.places.append(place)


def as_chat(
    request: ResponsesRequest,
    history: Sequence[Json],
    find_item: Callable[[str], Json | None],
    n_ctx: int,
) -> tuple[ChatRequest, list[Json], list[Loc]]:
    """The chat request that a response's request stands for; its messages to keep; their places.

    Args:
        history: messages of the previous response's conversation, its answer included.
        find_item: a kept item by its id, for item references.
        n_ctx: tokens of the model's context, to which `truncation: auto` cuts.

    Raises ApiError, with the places of this request's own fields.
    """
    turn = Transcript()
    for message in history:
        turn.add(dict(message))
    if turn.messages and turn.messages[-1].get("tool_calls"):  # a call may be added: not to theirs
        turn.messages[-1]["tool_calls"] = [*turn.messages[-1]["tool_calls"]]
    if isinstance(request.input, str):
        turn.add({"role": "user", "content": request.input}, ("input",))
    else:
        for i, item in enumerate(request.input):
            _add_item(turn, item, ("input", i), find_item)
    if not turn.messages:
        raise invalid("input must hold at least one item.", "input")
    kept = list(turn.messages)
    if request.instructions:
        turn.messages.insert(0, {"role": "system", "content": request.instructions})
        turn.places.insert(0, ("instructions",))
    options = _options(request, n_ctx)
    try:
        chat = read(ChatRequest, {**options, "messages": turn.messages})
    except ApiError as error:
        raise replace_place(error, turn.places) from None
    return chat, kept, turn.places


def _options(request: ResponsesRequest, n_ctx: int) -> Json:
    """Everything but the messages, by the chat request's names."""
    shared = {
        name: getattr(request, name)
        for name in SampledRequest.model_fields
        if name in request.model_fields_set and name != "stream_options"
    }
    shared |= request.model_extra or {}
    limit = request.max_output_tokens
    options: Json = {
        **shared,
        "max_tokens": limit,
        "logprobs": request.wants_logprobs,
        "top_logprobs": request.top_logprobs,
        "parallel_tool_calls": request.parallel_tool_calls,
        "prompt_truncate_len": None,
        "reasoning_effort": request.reasoning.effort if request.reasoning else None,
    }
    if request.truncation == "auto":
        options["prompt_truncate_len"] = max(1, n_ctx - min(limit or n_ctx, n_ctx // 2))
    choice = request.tool_choice
    if request.tools:
        # A chat request has no such choice: the tools that may not be called are not shown.
        allowed = {t.name for t in choice.tools} if isinstance(choice, AllowedTools) else None
        options["tools"] = [
            {"type": "function", "function": tool.model_dump(exclude={"type"}, exclude_none=True)}
            for tool in request.tools
            if allowed is None or tool.name in allowed
        ]
    if isinstance(choice, AllowedTools):
        options["tool_choice"] = choice.mode
    elif isinstance(choice, NamedChoice):
        options["tool_choice"] = {"type": "function", "function": {"name": choice.name}}
    elif request.tools:
        options["tool_choice"] = choice
    wanted = request.text.format if request.text else None
    if wanted is not None:
        options["response_format"] = _format(wanted)
    return options


def _format(wanted: TextFormat) -> Json | ResponseFormat:
    if wanted.type != "json_schema":
        return {"type": wanted.type}
    schema = {"name": wanted.name, "schema": wanted.json_schema, "strict": wanted.strict}
    return {"type": "json_schema", "json_schema": schema}


def replace_place(error: ApiError, places: Sequence[Loc]) -> ApiError:
    """An error of the chat request, at the place in the request that was sent."""
    loc = error.loc
    if loc[:1] == ("messages",):
        place = places[loc[1]] if len(loc) > 1 and isinstance(loc[1], int) else ("input",)
        loc = place or ("previous_response_id",)
    elif loc[:1] == ("tools",):
        loc = tuple(key for key in loc if key != "function")
    elif loc[:1] == ("response_format",):
        loc = ("text", "format", *(key for key in loc[1:] if key != "json_schema"))
    elif loc[:1] == ("max_tokens",):
        loc = ("max_output_tokens",)
    elif loc[:1] == ("reasoning_effort",):
        loc = ("reasoning", "effort")
    return replace(error, loc=loc)


# -- items -----------------------------------------------------------------------------------


def _add_item(
    turn: Transcript, item: Mapping[str, Any], place: Loc, find_item: Callable[[str], Json | None]
) -> None:
    """An item as a message, or as a part of the one before it. ApiError."""
    kind = item.get("type", "message" if "role" in item else None)
    if kind == "item_reference":
        found = find_item(str(item.get("id")))
        if found is None:
            raise invalid(f"No kept item has the id {quoted(item.get('id'))}.", *place, "id")
        item, kind = found, found["type"]
    if kind == "message":
        turn.add(_message(item, place), place)
    elif kind == "function_call":
        call = {
            "id": _text(item, "call_id", place),
            "type": "function",
            "function": {
                "name": _text(item, "name", place),
                "arguments": _text(item, "arguments", place),
            },
        }
        _assistant(turn, place).setdefault("tool_calls", []).append(call)
    elif kind == "function_call_output":
        output = item.get("output")
        content = output if isinstance(output, str) else _parts(output, (*place, "output"), False)
        turn.add(
            {"role": "tool", "tool_call_id": _text(item, "call_id", place), "content": content},
            place,
        )
    elif kind == "reasoning":
        parts = item.get("content") or ()
        thought = "".join(str(part.get("text", "")) for part in parts if isinstance(part, dict))
        turn.thought = thought
    else:
        raise invalid(f"Items of type {quoted(kind)} are not supported here.", *place, "type")


def _assistant(turn: Transcript, place: Loc) -> Json:
    """The assistant's message that a call belongs to: the one before, or a new one."""
    if not turn.messages or turn.messages[-1]["role"] != "assistant":
        turn.add({"role": "assistant", "content": None}, place)
    return turn.messages[-1]


def _message(item: Mapping[str, Any], place: Loc) -> Json:
    role, content = item.get("role"), item.get("content")
    if not isinstance(content, str):
        content = _parts(content, (*place, "content"), role == "user")
    return {"role": role, "content": content}


def _parts(content: Any, place: Loc, images: bool) -> list[Json]:
    """Content parts by the chat request's names. ApiError."""
    if not isinstance(content, list):
        raise invalid("It must be a string or a list of parts.", *place, kind="content_type")
    parts: list[Json] = []
    for i, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("input_text", "output_text", "text"):
            parts.append({"type": "text", "text": _text(part, "text", (*place, i))})
        elif kind == "refusal":
            parts.append({"type": "text", "text": _text(part, "refusal", (*place, i))})
        elif kind == "input_image" and images:
            if part.get("file_id"):
                raise invalid("Files are not kept here: send image_url.", *place, i, "file_id")
            url = _text(part, "image_url", (*place, i))
            parts.append({"type": "image_url", "image_url": {"url": url}})
        else:
            raise invalid(f"Parts of type {quoted(kind)} are not supported here.",
                          *place, i, "type", kind="part_type")  # fmt: skip
    return parts


def _text(item: Mapping[str, Any], key: str, place: Loc) -> str:
    value = item.get(key)
    if not isinstance(value, str):
        raise invalid(f"{key} must be a string.", *place, key, kind="string_type")
    return value
