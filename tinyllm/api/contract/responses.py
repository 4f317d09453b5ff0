"""The request for a response: OpenAI's newer shape, read as the conversation that it stands for.

Items become messages, so that one way leads from either shape to a plan. What this server doesn't
have (tools of its own, files, background work) is refused by name, never left out in silence.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, PrivateAttr, Tag, model_validator

from tinyllm.api.contract.chat_completions import ChatRequest, Effort
from tinyllm.api.contract.errors import ApiError, Loc, invalid, path_of, quoted
from tinyllm.api.contract.fields import (
    WHOLE,
    FunctionName,
    Open,
    Positive,
    fail,
    read,
    unknown_fields,
)
from tinyllm.api.contract.response_tools import (
    AllowedTools,
    Functions,
    NamedChoice,
    ResponseTool,
    ResponseToolChoice,
    check_kinds,
    full_name,
    positions_without,
)
from tinyllm.api.contract.structured import SCHEMA_PLACE
from tinyllm.api.contract.templated import TemplatedRequest
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


# What a chat request calls otherwise than a response's, and the name to use.
MOVED = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "prompt_truncate_len": "truncation",
    "reasoning_effort": "reasoning.effort",
    "logprobs": f"include: [{LOGPROBS!r}]",
}


class ResponsesRequest(TemplatedRequest):
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

    _functions: Functions = PrivateAttr()

    @model_validator(mode="before")
    @classmethod
    def _names(cls, body: Any) -> Any:
        """What is missing here, by its name."""
        if isinstance(body, Mapping):
            check_kinds(body.get("tools"))
            for name, other in MOVED.items():
                if body.get(name) is not None:
                    raise fail(f"{name} is a chat completion's; here it is {other}", name)
        return body

    @model_validator(mode="after")
    def _rules(self) -> ResponsesRequest:
        self._functions = Functions(self.tools or ())
        wanted = self.text.format if self.text else None
        if self.response_format is not None and wanted is not None and wanted.type != "text":
            raise fail("Give either text.format or another name of it", "text", "format")
        for name, given in (("background", self.background), ("conversation", self.conversation),
                            ("prompt", self.prompt)):  # fmt: skip
            if given:
                raise fail(f"{name} is not supported here", name)
        if self.n not in (None, 1):
            raise fail("A response has one answer", "n")
        return self

    @property
    def functions(self) -> Functions:
        """The functions that its tools hold."""
        return self._functions

    @property
    def kept(self) -> bool:
        return self.store is not False

    @property
    def wants_logprobs(self) -> bool:
        return bool(self.top_logprobs) or LOGPROBS in (self.include or ())

    def without_effect(self) -> list[str]:
        """What a chat request has no place for, and so would not name as ignored."""
        names = [f"include[{i}]" for i, what in enumerate(self.include or ()) if what != LOGPROBS]
        if self.text is not None:
            names += unknown_fields(self.text, "text.")
            names += ["text.verbosity"] if self.text.verbosity is not None else []
        if self.reasoning is not None:
            names += unknown_fields(self.reasoning, "reasoning.")
            names += ["reasoning.summary"] if self.reasoning.summary is not None else []
        return names


def read_response(
    body: Mapping[str, Any], ignored_tools: Collection[str] = ()
) -> tuple[ResponsesRequest, list[str]]:
    """A valid request without its tools of these types, and the places of what was left out.

    Raises the ApiError of the first rule that it breaks.
    """
    given = body.get("tools")
    kept = positions_without(given, ignored_tools) if ignored_tools else []
    if not isinstance(given, list) or len(kept) == len(given) or not ignored_tools:
        return read(ResponsesRequest, body), []

    def sent(loc: Loc) -> Loc:
        """A place among the tools that are left, as it was sent."""
        at = loc[1] if loc[:1] == ("tools",) and len(loc) > 1 else None
        return ("tools", kept[at], *loc[2:]) if isinstance(at, int) else loc

    try:
        request = read(ResponsesRequest, {**body, "tools": [given[i] for i in kept]})
    except ApiError as error:
        raise replace(error, loc=sent(error.loc)) from None
    request.functions.places = [sent(place) for place in request.functions.places]
    return request, [f"tools[{i}]" for i in range(len(given)) if i not in kept]


@dataclass(frozen=True)
class Places:
    """Where in a response's request each part of its chat request comes from."""

    messages: Sequence[Loc]
    tools: Sequence[Loc]
    schema: Loc

    def of(self, loc: Loc) -> Loc:
        """The place of one of the chat request's."""
        if loc[:1] == ("messages",):
            known = len(loc) > 1 and isinstance(loc[1], int)
            place = self.messages[int(loc[1])] if known else ("input",)
            return place or ("previous_response_id",)
        if loc[:1] == ("tools",) and len(loc) > 1:
            rest = tuple(key for key in loc[2:] if key != "function")
            return (*self.tools[int(loc[1])], *rest)
        if loc[:3] == SCHEMA_PLACE:
            return (*self.schema, *loc[3:])
        if loc[:1] == ("response_format",) and self.schema[0] != "response_format":
            rest = tuple(key for key in loc[1:] if key != "json_schema")
            return (*(self.schema[:-1] or self.schema), *rest)
        return _OTHERS.get(loc[:1], loc)

    def error(self, error: ApiError) -> ApiError:
        """An error of the chat request, by the names of the request that was sent."""
        place = self.of(error.loc)
        if len(place) == 1:  # it may be a whole path
            place = (self.name(str(place[0])),)
        message = error.message
        if error.param is not None:
            message = message.replace(error.param, path_of(place))
        return replace(error, loc=place, message=message)

    def name(self, name: str) -> str:
        """The name of a chat request's field, as headers have it: `tools[0].function.strict`.

        A name that the caller made up stays as it is: it may be anything.
        """
        keys = _keys(name)
        of_a_tool = keys[:1] == ("tools",) and len(keys) > 1 and keys[1] in range(len(self.tools))
        if not of_a_tool and keys[:1] not in (("response_format",), *_OTHERS):
            return name
        return path_of(self.of(keys))


_OTHERS: dict[Loc, Loc] = {
    ("max_tokens",): ("max_output_tokens",),
    ("reasoning_effort",): ("reasoning", "effort"),
}


def _keys(name: str) -> Loc:
    """What `path_of` makes a path of: `tools[0].function` → ("tools", 0, "function")."""
    found = re.findall(r"[^.\[\]]+", name)
    return tuple(int(key) if re.fullmatch("[0-9]{1,4}", key) else key for key in found)


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
) -> tuple[ChatRequest, list[Json], Places]:
    """The chat request that a response's request stands for; its messages to keep; the places.

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
    places = Places(turn.places, request.functions.places, _place_of_schema(request))
    options = _options(request, n_ctx)
    try:
        chat = read(ChatRequest, {**options, "messages": turn.messages})
    except ApiError as error:
        raise places.error(error) from None
    return chat, kept, places


def _options(request: ResponsesRequest, n_ctx: int) -> Json:
    """Everything but the messages, by the chat request's names."""
    shared = {
        name: getattr(request, name)
        for name in TemplatedRequest.model_fields
        if name in request.model_fields_set and name not in _READ
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
    functions, choice = request.functions, request.tool_choice
    if functions.shown:
        options["tools"] = functions.shown
    if isinstance(choice, AllowedTools):
        tools = [_named(functions, tool.name) for tool in choice.tools]
        allowed = {"mode": choice.mode, "tools": tools}
        options["tool_choice"] = {"type": "allowed_tools", "allowed_tools": allowed}
    elif isinstance(choice, NamedChoice):
        options["tool_choice"] = _named(functions, choice.name)
    elif functions.shown:
        options["tool_choice"] = choice
    if request.response_format is not None:
        named = request.response_format.model_dump(by_alias=True, exclude_unset=True)
        options["response_format"] = named
        return options
    if request.text is not None and request.text.format is not None:
        options["response_format"] = _format(request.text.format)
    return options


# Fields of the chat request's that are read here already.
_READ = {"stream_options", "response_format", "guided_json", "json_schema", "structured_outputs"}


def _named(functions: Functions, name: str) -> Json:
    return {"type": "function", "function": {"name": functions.find(name)}}


def _place_of_schema(request: ResponsesRequest) -> Loc:
    named = request.response_format is not None
    return request.schema_place if named else ("text", "format", "schema")


def _format(wanted: TextFormat) -> Json:
    if wanted.type != "json_schema":
        return {"type": wanted.type}
    schema = {"name": wanted.name, "schema": wanted.json_schema, "strict": wanted.strict}
    return {"type": "json_schema", "json_schema": schema}


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
                "name": full_name(item.get("namespace"), _text(item, "name", place)),
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
