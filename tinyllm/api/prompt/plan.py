"""From a valid request to what the engine is asked: the prompt, its limits, and its guide."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinyllm.api.constraints.grammar import Matcher, UnsupportedSchema, json_grammar
from tinyllm.api.constraints.guides import ChoiceGuide
from tinyllm.api.constraints.thinking import ThinkSpec
from tinyllm.api.constraints.tool_calls import calls_grammar
from tinyllm.api.contract.answers import Truncation
from tinyllm.api.contract.chat_completions import ChatRequest
from tinyllm.api.contract.dialect import Dialect
from tinyllm.api.contract.errors import ApiError, invalid
from tinyllm.api.contract.messages import ImagePart, UserMessage
from tinyllm.api.contract.sampling import MAX_PROMPTS
from tinyllm.api.contract.tools import JsonFormat, NamedTool, SchemaFormat, Tool
from tinyllm.api.prompt.chat import (
    Conversation,
    Layout,
    Picture,
    open_thinking,
    think_spec,
)
from tinyllm.api.prompt.images import MAX_IMAGES, ImageSource, bad_image, decode, read_url
from tinyllm.api.prompt.served import ServedModel
from tinyllm.api.prompt.tool_words import MAX_LISTED
from tinyllm.engine.types import Guide, Prompt
from tinyllm.sampler import SamplingParams

if TYPE_CHECKING:
    from tinyllm.api.house.settings import Settings


@dataclass(frozen=True)
class Plan:
    """All that is settled before the first token."""

    model: ServedModel
    request: ChatRequest
    dialect: Dialect
    prompt: Prompt
    params: SamplingParams
    max_tokens: int
    think: ThinkSpec | None = None
    grammar: str | None = None  # what the answer must fit
    calls: bool = False  # the answer is tool calls
    truncation: Truncation | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """Stop strings end words; a call ends where its grammar does."""
        return () if self.calls else self.request.stops

    @property
    def guided(self) -> bool:
        return bool(self.think or self.grammar or self.stops)

    def guide(self) -> ChoiceGuide:
        """A fresh guide for one choice."""
        matcher: Matcher | None = None
        if self.grammar is not None:
            matcher = self.model.grammars.matcher(self.grammar)
        return ChoiceGuide(
            self.model.tokenizer, self.think, matcher, self.stops, self.model.stop_ids
        )


class Planner:
    """Makes plans for one app.

    Args:
        settings: the server's.
        images: fetches https images.
    """

    def __init__(self, settings: Settings, images: ImageSource) -> None:
        self._settings = settings
        self._images = images

    def ignored(self, request: ChatRequest, model: ServedModel, unknown: list[str]) -> list[str]:
        """Names of what has no effect. ApiError for the unknown ones when the server is strict."""
        names = list(unknown)
        names += [f"logit_bias.{k}" for k in request.logit_bias or () if not _is_token_id(k)]
        if names and self._settings.strict:
            raise invalid(f"{names[0]} is not a known parameter.", names[0], kind="extra_forbidden")
        if model.reasoning == "none":
            names += [
                n for n in ("reasoning", "reasoning_effort") if getattr(request, n) is not None
            ]
        return names

    async def conversation(self, request: ChatRequest, model: ServedModel) -> Conversation:
        """The messages with their images fetched, checked and decoded. ApiError 400."""
        wanted = [
            (i, j, part.url)
            for i, message in enumerate(request.messages)
            if isinstance(message, UserMessage) and not isinstance(message.content, str)
            for j, part in enumerate(message.content)
            if isinstance(part, ImagePart)
        ]
        if not wanted:
            return Conversation(model, request.messages)
        i, j, _ = wanted[0]
        if model.vision is None:
            raise bad_image(
                f"The model {request.model!r} reads text alone and was given an image.",
                ("messages", i, "content", j),
            )
        if len(wanted) > MAX_IMAGES:
            raise bad_image(f"At most {MAX_IMAGES} images a request.", ("messages", i, "content"))
        pictures = []
        for i, j, url in wanted:
            loc = ("messages", i, "content", j, "image_url", "url")
            data = await read_url(url, self._images, loc)
            image = await asyncio.to_thread(decode, data, loc)
            pictures.append(Picture((i, j), image))
        await model.vision.ready()
        return Conversation(model, request.messages, pictures)

    def plan(
        self,
        request: ChatRequest,
        dialect: Dialect,
        conversation: Conversation,
        call: bool,
        first: Sequence[Tool] = (),
    ) -> Plan:
        """The plan of one request; with `call` the answer is tool calls, the first to a `first`.

        Renders, tokenizes and compiles: run it on a thread. Raises ApiError.
        """
        model = conversation.model
        params = self._sampling(request, model)
        n_max = min(self._settings.max_n, self._settings.max_batch)
        if (request.n or 1) > n_max:
            raise invalid(f"n must be at most {n_max} here.", "n", kind="less_than_equal")
        tools = self._callable(request) if call else ()
        grammar, words = self._grammar(request, model, tools, first)
        think = think_spec(request, model)
        listed = first if first and len(tools) > MAX_LISTED else tools
        layout = Layout(tuple(listed), think is not None, words)
        n_ctx = min(model.engine.n_ctx, 1 << 30)
        rendered = conversation.fit(layout, request.truncate_len(dialect), n_ctx)
        prompt = rendered.prompt
        if think is not None:
            prompt, think = open_thinking(prompt, think, model)
        limit = request.limit
        if self._settings.max_tokens_cap:
            limit = min(limit, self._settings.max_tokens_cap)
        max_tokens = max(0, min(limit, n_ctx - len(prompt.tokens)))
        self._check_trace(request, model, len(prompt.tokens))
        return Plan(
            model=model,
            request=request,
            dialect=dialect,
            prompt=prompt,
            params=params,
            max_tokens=max_tokens,
            think=think.fitted(max_tokens) if think is not None else None,
            grammar=grammar,
            calls=bool(tools),
            truncation=rendered.truncation,
        )

    def _check_trace(self, request: ChatRequest, model: ServedModel, n_prompt: int) -> None:
        """ApiError where a trace asks for what this model or this server doesn't have."""
        trace = request.trace
        if trace is None or not trace.inside:
            return
        field = "lens" if trace.lens else "attention"
        if not self._settings.trace_inside or model.readable is None:
            raise invalid("This server doesn't look inside the model.", "trace", field)
        if (wanted := trace.attention) is not None:
            if wanted.layer >= model.n_layers:
                raise invalid(f"layer must be at most {model.n_layers - 1} for this model.",
                              "trace", "attention", "layer", kind="less_than_equal")  # fmt: skip
            for i, head in enumerate(wanted.heads or ()):
                if head >= model.n_heads:
                    raise invalid(
                        f"A head must be at most {model.n_heads - 1} for this model.",
                        "trace", "attention", "heads", i, kind="less_than_equal",
                    )  # fmt: skip
        n = request.n or 1
        if n * n_prompt > MAX_PROMPTS:
            raise invalid(
                f"{n} × {n_prompt} prompt tokens are too many to look inside; at most "
                f"{MAX_PROMPTS}.",
                "trace",
                field,
            )

    def _sampling(self, request: ChatRequest, model: ServedModel) -> SamplingParams:
        bias: dict[int, float] = {}
        for key, value in (request.logit_bias or {}).items():
            if not _is_token_id(key):
                continue
            if int(key) >= model.vocab_size:
                raise invalid(f"{key[:20]} is no token of this model's {model.vocab_size}.",
                              "logit_bias", key[:20])  # fmt: skip
            bias[int(key)] = value
        return SamplingParams(
            temperature=1.0 if request.temperature is None else request.temperature,
            top_k=request.top_k or 0,
            top_p=1.0 if request.top_p is None else request.top_p,
            seed=request.seed,
            presence_penalty=request.presence_penalty or 0.0,
            frequency_penalty=request.frequency_penalty or 0.0,
            logit_bias=bias,
        )

    def _callable(self, request: ChatRequest) -> tuple[Tool, ...]:
        """The tools that may be called: all, or the one that was named."""
        choice = request.effective_tool_choice()
        tools = tuple(request.tools or ())
        if isinstance(choice, NamedTool):
            return tuple(t for t in tools if t.function.name == choice.function.name)
        return tools

    def _grammar(
        self,
        request: ChatRequest,
        model: ServedModel,
        tools: Sequence[Tool],
        first: Sequence[Tool],
    ) -> tuple[str | None, str]:
        """What the answer must fit, and the same in words for the prompt."""
        wanted = request.response_format
        if tools:
            return self._calls_grammar(request, model, tools, first), ""
        if isinstance(wanted, JsonFormat):
            grammar = _compiled(model, json_grammar({"type": "object"}), "response_format")
            return grammar, "Answer with a JSON object and nothing else."
        if isinstance(wanted, SchemaFormat):
            place = ("response_format", "json_schema", "schema")
            schema = wanted.json_schema.json_schema or {}
            try:
                text = json_grammar(schema)
            except UnsupportedSchema as error:
                raise _unsupported(error, *place) from None
            return _compiled(model, text, *place), "Answer with JSON and nothing else."
        return None, ""

    def _calls_grammar(
        self,
        request: ChatRequest,
        model: ServedModel,
        tools: Sequence[Tool],
        first: Sequence[Tool],
    ) -> str:
        names = [tool.function.name for tool in request.tools or ()]

        def place(tool: Tool) -> tuple[str | int, ...]:
            return ("tools", names.index(tool.function.name), "function", "parameters")

        try:
            grammar = calls_grammar(tools, request.parallel_tool_calls is not False, first)
        except UnsupportedSchema as error:
            raise _unsupported(error, *place(tools[error.index or 0])) from None
        try:
            model.grammars.compile(grammar)
        except UnsupportedSchema as error:
            for tool in tools:  # whose fault is it?
                try:
                    model.grammars.compile(calls_grammar([tool], parallel=False))
                except UnsupportedSchema as own:
                    raise _unsupported(own, *place(tool)) from None
            raise _unsupported(error, "tools") from None
        return grammar


def _compiled(model: ServedModel, grammar: str, *place: str) -> str:
    try:
        model.grammars.compile(grammar)
    except UnsupportedSchema as error:
        raise _unsupported(error, *place) from None
    return grammar


def _unsupported(error: UnsupportedSchema, *loc: str | int) -> ApiError:
    return invalid(f"This JSON Schema can't be followed: {error}.", *loc, kind="json_schema")


def _is_token_id(key: str) -> bool:
    return key.isascii() and key.isdigit() and len(key) < 12


def guide_factory(plan: Plan) -> Callable[[int], Guide] | None:
    """What `Request.guide` takes; None where nothing needs steering."""
    return (lambda index: plan.guide()) if plan.guided else None
