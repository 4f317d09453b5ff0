"""The shape of requests, answers and chunks: the one place that the code and the document share.

Requests are pydantic models in strict mode (no "5" for 5). Answers are typed dicts: plain dicts
at run time, checked by the type checker where they are built, and a JSON Schema for the document.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError
from typing_extensions import NotRequired, TypedDict

from tinyllm.api.contract.dialect import Dialect
from tinyllm.api.contract.errors import ApiError, Loc, invalid
from tinyllm.api.contract.strict_json import MAX_INT
from tinyllm.inside.trace_file import StepRecord

DEFAULT_MAX_TOKENS = 2000
MAX_HEADS = 64  # of one layer, in a trace
MAX_PROMPTS = 4096  # prompt tokens, times n, that can be looked into: 190 MB of KV caches
MAX_INSIDE = 128  # steps of a request, over all its choices, that can be looked into
INSIDE = f"for the first {MAX_INSIDE} tokens (over n choices)"
SESSION_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
Read = TypeVar("Read", bound=BaseModel)


def _whole(value: Any) -> Any:
    """JSON has one kind of number: 5.0 is an integer."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


_WHOLE = BeforeValidator(_whole)
AnyInt = Annotated[int, Field(ge=-MAX_INT, le=MAX_INT), _WHOLE]
Natural = Annotated[int, Field(ge=0, le=MAX_INT), _WHOLE]
Positive = Annotated[int, Field(ge=1, le=MAX_INT), _WHOLE]
Number = Annotated[float, Field(allow_inf_nan=False)]
Effort = Literal["max", "xhigh", "high", "medium", "low", "minimal", "none"]


def _fail(message: str, *loc: str | int) -> PydanticCustomError:
    """A rule over several fields; the place travels in the context, see `_error`."""
    return PydanticCustomError("value_error", "{reason}", {"reason": message, "at": list(loc)})


class Open(BaseModel):
    """Keys that are not in the schema are kept, so that they can be named to the caller."""

    model_config = ConfigDict(strict=True, extra="allow", protected_namespaces=())


# -- messages --------------------------------------------------------------------------------


class TextPart(Open):
    type: Literal["text"]
    text: str


class ImageURL(Open):
    url: str = Field(description="https://… or data:image/…;base64,…")
    detail: str | None = Field(None, description="Accepted and ignored.")


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


Part = Annotated[
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
Content = Annotated[Annotated[str, Tag("~string")] | Annotated[list[Part], Tag("~parts")], _CONTENT]

Author = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
FunctionName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


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
    arguments: str = Field(description="JSON text")


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


# -- tools and formats -----------------------------------------------------------------------


class Function(Open):
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = Field(None, description="A JSON Schema")
    strict: bool | None = None


class Tool(Open):
    type: Literal["function"]
    function: Function


class NamedFunction(Open):
    name: FunctionName


class NamedTool(Open):
    type: Literal["function"]
    function: NamedFunction


ToolChoice = Annotated[
    Annotated[FunctionName, Tag("~word")] | Annotated[NamedTool, Tag("~named")],
    Discriminator(
        lambda v: "~word" if isinstance(v, str) else "~named" if isinstance(v, dict) else None,
        custom_error_type="tool_choice",
        custom_error_message=(
            "tool_choice must be auto, none, required, a function's name, or "
            '{"type": "function", "function": {"name": …}}'
        ),
    ),
]


class Reasoning(Open):
    effort: Effort | None = None
    max_tokens: Positive | None = None
    exclude: bool | None = None
    enabled: bool | None = None

    @model_validator(mode="after")
    def _one_measure(self) -> Reasoning:
        if self.effort is not None and self.max_tokens is not None:
            raise _fail("Give either effort or max_tokens, not both", "effort")
        return self


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


class StreamOptions(Open):
    include_usage: bool | None = None


class TraceAttention(Open):
    layer: Natural
    heads: Annotated[list[Natural], Field(min_length=1, max_length=MAX_HEADS)] | None = Field(
        None, description="All of the layer's if not given"
    )


class Trace(Open):
    """How each token came to be drawn, on the choice. Extension; everything in it is off until
    asked for."""

    candidates: Annotated[int, Field(ge=0, le=20), _WHOLE] | None = Field(
        None, description="Likeliest tokens a step, and why each was cut; the chosen one on top"
    )
    stages: bool | None = Field(None, description="What each filter of the sampler kept")
    attention: TraceAttention | None = Field(
        None,
        description="Where these heads looked from the newest token, "
        f"{INSIDE}; computed again in float32, without the fused kernels",
    )
    lens: Annotated[int, Field(ge=0, le=20), _WHOLE] | None = Field(
        None, description=f"Likeliest tokens at each depth, {INSIDE}; computed as attention is"
    )

    @property
    def inside(self) -> bool:
        """Whether it asks for what goes on inside the model."""
        return self.attention is not None or bool(self.lens)


StopString = Annotated[str, StringConstraints(min_length=1)]


# -- the request -----------------------------------------------------------------------------


class ChatRequest(Open):
    """Generate an answer to a conversation."""

    model: str = Field(description="Id or alias of a model", examples=["nugen-flash-instruct"])
    messages: list[Message] = Field(min_length=1, description="The whole conversation so far")
    max_tokens: Natural | None = Field(
        None, description=f"Most tokens of the completion; {DEFAULT_MAX_TOKENS} if not given"
    )
    max_completion_tokens: Natural | None = Field(None, description="The same as max_tokens")
    prompt_truncate_len: Positive | None = Field(
        None, description="Tokens to which long conversations are cut, oldest turns first"
    )
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=MAX_INT), _WHOLE] | None = None
    n: Positive | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: (
        Annotated[
            Annotated[StopString, Tag("~string")]
            | Annotated[list[StopString], Field(max_length=4), Tag("~list")],
            Discriminator(
                lambda v: {str: "~string", list: "~list"}.get(type(v)),
                custom_error_type="stop",
                custom_error_message="stop must be a string or a list of at most 4",
            ),
        ]
        | None
    ) = None
    seed: AnyInt | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20), _WHOLE] | None = None
    presence_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    logit_bias: dict[str, Annotated[Number, Field(ge=-100, le=100)]] | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    reasoning: Reasoning | None = None
    reasoning_effort: Effort | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    trace: Trace | None = None

    @model_validator(mode="after")
    def _rules(self) -> ChatRequest:
        both = (self.max_tokens, self.max_completion_tokens)
        if None not in both and both[0] != both[1]:
            raise _fail("max_completion_tokens and max_tokens differ", "max_completion_tokens")
        if self.top_logprobs and not self.logprobs:
            raise _fail("top_logprobs needs logprobs: true", "top_logprobs")
        self._check_tools()
        self._check_reasoning()
        self._check_conversation()
        return self

    def _check_tools(self) -> None:
        names = [tool.function.name for tool in self.tools or ()]
        for i, name in enumerate(names):
            if name in names[:i]:
                raise _fail(f"Two tools are named {name!r}", "tools", i, "function", "name")
        choice = self.tool_choice
        if choice is None or choice in ("auto", "none"):
            return
        if choice == "required":
            if not names:
                raise _fail("'required' needs tools", "tool_choice")
            return
        wanted = choice if isinstance(choice, str) else choice.function.name
        if wanted not in names:
            raise _fail(f"There is no tool named {wanted!r}", "tool_choice")

    def _check_reasoning(self) -> None:
        if self.reasoning is None:
            return
        if self.reasoning_effort is not None:
            if self.reasoning.max_tokens is not None:
                raise _fail(
                    "Give either reasoning_effort or reasoning.max_tokens, not both",
                    "reasoning_effort",
                )
            if self.reasoning.effort not in (None, self.reasoning_effort):
                raise _fail("reasoning_effort and reasoning.effort differ", "reasoning_effort")
        if self.reasoning.max_tokens is not None and self.reasoning.max_tokens >= self.limit:
            raise _fail(
                f"reasoning.max_tokens must be less than max_tokens ({self.limit})",
                "reasoning",
                "max_tokens",
            )

    def _check_conversation(self) -> None:
        called: set[str] = set()
        for i, message in enumerate(self.messages):
            if isinstance(message, AssistantMessage):
                if message.content is None and not message.tool_calls:
                    raise _fail("Only a message with tool_calls may go without content",
                                "messages", i, "content")  # fmt: skip
                for j, call in enumerate(message.tool_calls or ()):
                    place = ("messages", i, "tool_calls", j, "function", "arguments")
                    try:
                        json.loads(call.function.arguments)
                    except (ValueError, RecursionError):
                        raise _fail("arguments must be JSON text", *place) from None
                    called.add(call.id)
            elif isinstance(message, ToolMessage) and message.tool_call_id not in called:
                raise _fail(f"No earlier tool call has the id {message.tool_call_id!r}",
                            "messages", i, "tool_call_id")  # fmt: skip

    # What the fields mean once defaults and aliases are settled.

    @property
    def limit(self) -> int:
        """Most tokens of the completion, before the context has its say."""
        for given in (self.max_tokens, self.max_completion_tokens):
            if given is not None:
                return given
        return DEFAULT_MAX_TOKENS

    @property
    def stops(self) -> tuple[str, ...]:
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    def truncate_len(self, dialect: Dialect) -> int | None:
        """null turns truncation off, absence means the dialect's default."""
        if "prompt_truncate_len" in self.model_fields_set:
            return self.prompt_truncate_len
        return dialect.truncate_len

    def effective_tool_choice(self) -> str | NamedTool:
        """auto, none, required or the tool; a bare function name becomes the tool."""
        if not self.tools:
            return "none"
        if self.tool_choice is None:
            return "auto"
        if isinstance(self.tool_choice, str) and self.tool_choice not in _CHOICES:
            named = NamedFunction(name=self.tool_choice)
            return NamedTool(type="function", function=named)
        return self.tool_choice


_CHOICES = ("auto", "none", "required")


class TokenizeRequest(Open):
    """Text, or a conversation, as token ids."""

    model: str | None = None
    text: str | None = Field(None, description="Text as a user would type it")
    messages: list[Message] | None = Field(None, min_length=1, description="Or a conversation")

    @model_validator(mode="after")
    def _one_source(self) -> TokenizeRequest:
        if (self.text is None) == (self.messages is None):
            raise _fail("Give either text or messages", "text")
        return self


class DetokenizeRequest(Open):
    """Token ids as text."""

    model: str | None = None
    tokens: list[Natural] = Field(max_length=1_000_000)


# -- reading them ----------------------------------------------------------------------------


def read_chat(body: Mapping[str, Any], dialect: Dialect) -> ChatRequest:
    """A valid request, or the ApiError of the first rule that it breaks."""
    request = read(ChatRequest, body)
    for i, message in enumerate(request.messages):
        name = message.name
        if isinstance(message, ToolMessage) or name is None:
            continue
        if not dialect.author.fullmatch(name):
            raise invalid(f"A name must match {dialect.author.pattern}", "messages", i, "name",
                          kind="string_pattern_mismatch")  # fmt: skip
    return request


def read(kind: type[Read], body: Mapping[str, Any]) -> Read:
    """`body` as a `kind`, or the ApiError of the first rule that it breaks."""
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        raise _error(error) from None


def _error(error: ValidationError) -> ApiError:
    first = error.errors(include_url=False)[0]
    at = first.get("ctx", {}).get("at", [])
    loc: Loc = tuple(k for k in (*first["loc"], *at) if not str(k).startswith("~"))
    message = first["msg"]
    return invalid(f"{message[:1].upper()}{message[1:]}.", *loc, kind=first["type"])


def unknown_fields(model: BaseModel, prefix: str = "") -> Iterator[str]:
    """The paths of every key that the schema doesn't know, depth first."""
    for name in model.model_extra or ():
        yield prefix + name
    for name, value in model:
        if name in (model.model_extra or ()):
            continue
        if isinstance(value, BaseModel):
            yield from unknown_fields(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            for i, item in enumerate(value):
                if isinstance(item, BaseModel):
                    yield from unknown_fields(item, f"{prefix}{name}[{i}].")


# -- answers ---------------------------------------------------------------------------------

Finish = Literal["stop", "length", "tool_calls"]


class TopLogprob(TypedDict):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class Logprobs(TypedDict):
    content: list[TokenLogprob]
    refusal: None


class ReasoningDetail(TypedDict):
    type: Literal["reasoning.text"]
    text: str
    index: int


class FunctionOut(TypedDict):
    name: str
    arguments: str


class ToolCallOut(TypedDict):
    id: str
    type: Literal["function"]
    function: FunctionOut


class MessageOut(TypedDict):
    role: Literal["assistant"]
    content: str | None
    refusal: NotRequired[None]
    reasoning: NotRequired[str]
    reasoning_content: NotRequired[str]
    reasoning_details: NotRequired[list[ReasoningDetail]]
    tool_calls: NotRequired[list[ToolCallOut]]


class TraceOut(TypedDict):
    version: int
    steps: list[StepRecord]


class ChoiceOut(TypedDict):
    index: int
    message: MessageOut
    finish_reason: Finish
    logprobs: Logprobs | None
    confidence_score: NotRequired[float]
    trace: NotRequired[TraceOut]


class PromptDetails(TypedDict):
    cached_tokens: int


class CompletionDetails(TypedDict):
    reasoning_tokens: int


class Usage(TypedDict):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


class Truncation(TypedDict):
    dropped_messages: int
    dropped_tokens: int


class Completion(TypedDict):
    id: str
    object: Literal["chat.completion"]
    created: float
    model: str
    choices: list[ChoiceOut]
    usage: Usage
    system_fingerprint: str
    confidence_score: NotRequired[float]
    prompt_truncation: NotRequired[Truncation]


class FunctionDelta(TypedDict):
    name: NotRequired[str]
    arguments: str


class ToolCallDelta(TypedDict):
    index: int
    id: NotRequired[str]
    type: NotRequired[Literal["function"]]
    function: FunctionDelta


class Delta(TypedDict, total=False):
    role: Literal["assistant"]
    content: str | None
    reasoning: str
    reasoning_content: str
    reasoning_details: list[ReasoningDetail]
    tool_calls: list[ToolCallDelta]


class ChunkChoice(TypedDict):
    index: int
    delta: Delta
    finish_reason: Finish | None
    logprobs: NotRequired[Logprobs | None]
    confidence_score: NotRequired[float]
    trace: NotRequired[TraceOut]


class Chunk(TypedDict):
    id: str
    object: Literal["chat.completion.chunk"]
    created: float
    model: str
    choices: list[ChunkChoice]
    system_fingerprint: str
    usage: NotRequired[Usage | None]
    confidence_score: NotRequired[float]
    prompt_truncation: NotRequired[Truncation]


class ErrorBody(TypedDict):
    message: str
    type: str
    param: str | None
    code: str | None
    n_prompt_tokens: NotRequired[int]
    n_ctx: NotRequired[int]


class ErrorDetail(TypedDict):
    loc: list[str | int]
    msg: str
    type: str


class ErrorEnvelope(TypedDict):
    error: ErrorBody
    detail: NotRequired[list[ErrorDetail]]
    status: NotRequired[str]


class ModelOut(TypedDict):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(TypedDict):
    object: Literal["list"]
    data: list[ModelOut]


class SessionRequest(TypedDict):
    id: str
    created: float
    seconds: float
    usage: Usage | None


class SessionOut(TypedDict):
    id: str
    object: Literal["session"]
    created: float
    last_used: float
    requests: list[SessionRequest]
    n_requests: int
    total_tokens: int


class SessionDeleted(TypedDict):
    id: str
    object: Literal["session.deleted"]
    deleted: Literal[True]


class ReplayOut(TypedDict):
    id: str
    object: Literal["chat.completion.replay"]
    identical: bool
    tokens_compared: int
    first_difference: dict[str, Any] | None


class Tokens(TypedDict):
    tokens: list[int]
    count: int
    max_model_len: int


class Text(TypedDict):
    text: str


class Health(TypedDict):
    status: Literal["ready", "loading"]
    models: list[str]
