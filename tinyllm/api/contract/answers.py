"""The shapes of answers: plain dicts at run time, checked by the type checker where they are built,
and a JSON Schema for the document.
"""

from __future__ import annotations

from typing import Literal

from typing_extensions import NotRequired, TypedDict

from tinyllm.inside.trace_file import StepRecord

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


class TextLogprobs(TypedDict):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(TypedDict):
    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Literal["stop", "length"] | None
    trace: NotRequired[TraceOut]


class TextCompletion(TypedDict):
    """A text completion, or a piece of one in a stream."""

    id: str
    object: Literal["text_completion"]
    created: float
    model: str
    choices: list[TextChoice]
    system_fingerprint: str
    usage: NotRequired[Usage]


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


class SamplingOut(TypedDict):
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float


class InsideOut(TypedDict):
    """What a page needs to know before it looks inside; nothing of it changes while serving."""

    dtype: str  # the weights' format that answers are drawn from
    n_layers: int
    n_heads: int
    sees: bool  # whether it takes images
    breakages: dict[str, str]  # what `break` of a look may name: what is wrong then


class ModelOut(TypedDict):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    default_sampling: SamplingOut  # where a request under the same prefix doesn't say
    inside: NotRequired[InsideOut]  # of one model; the list goes without


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


class DrawnToken(TypedDict):
    token: int
    logprob: float


class Difference(TypedDict):
    """The first token that differs; None for one past the end of a run."""

    index: int
    position: int
    recorded: DrawnToken | None
    replayed: DrawnToken | None


class ReplayOut(TypedDict):
    id: str
    object: Literal["chat.completion.replay"]
    identical: bool
    tokens_compared: int
    seed: int
    first_difference: Difference | None


class Piece(TypedDict):
    text: str  # U+FFFD stands for bytes of half a character
    bytes: str  # hexadecimal
    special: bool


class Span(TypedDict):
    start: int  # the first token's position
    stop: int  # the one behind the last


class Tokens(TypedDict):
    tokens: list[int]
    images: NotRequired[list[Span]]  # where each of the conversation's images stands
    count: int
    max_model_len: int
    pieces: NotRequired[list[Piece]]


class Text(TypedDict):
    text: str
    pieces: NotRequired[list[Piece]]


class Index(TypedDict):
    name: Literal["tinyllm"]
    page: str
    base_urls: list[str]
    openapi: str
    health: str
    needs_key: bool


class Health(TypedDict):
    status: Literal["ready"]
    models: list[str]
    processor: str
