"""From a valid request to its plan: the one way that every shape of request goes."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar

import numpy as np

from tinyllm.api.constraints.call_forms import HERMES
from tinyllm.api.constraints.call_reader import CallSpec, texts_of
from tinyllm.api.constraints.trial import GivenUp
from tinyllm.api.contract.chat_completions import ChatRequest
from tinyllm.api.contract.completions import CompletionRequest
from tinyllm.api.contract.dialect import Dialect
from tinyllm.api.contract.errors import ApiError, Loc, context_length_exceeded, invalid, quoted
from tinyllm.api.contract.fields import unknown_fields
from tinyllm.api.contract.messages import ImagePart, Message, UserMessage
from tinyllm.api.contract.sampling import SampledRequest
from tinyllm.api.contract.tools import Tool
from tinyllm.api.limits import (
    MAX_IMAGES,
    MAX_INSIDE_PROMPT,
    MAX_LISTED_TOOLS,
)
from tinyllm.api.prompt.chat import (
    Conversation,
    Layout,
    Picture,
    around_pictures,
    never_read,
    open_thinking,
    think_spec,
)
from tinyllm.api.prompt.decide import Score, decide
from tinyllm.api.prompt.formats import answer_format, wanted_format
from tinyllm.api.prompt.images import ImageSource, bad_image, read_url
from tinyllm.api.prompt.plan import Plan
from tinyllm.api.prompt.relax import relaxed
from tinyllm.api.prompt.room import TOO_SHORT, check_together, too_short
from tinyllm.api.prompt.served import ServedModel
from tinyllm.api.prompt.turns import Client, WorkerPools
from tinyllm.engine.types import Prompt
from tinyllm.sampler import SamplingParams

if TYPE_CHECKING:
    from tinyllm.api.house.settings import Settings

P = ParamSpec("P")
Made = TypeVar("Made")


class Planner:
    """Makes plans for one app.

    Args:
        settings: the server's.
        images: fetches https images.
        pools: the threads that prompts are made on.
    """

    def __init__(self, settings: Settings, images: ImageSource, pools: WorkerPools) -> None:
        self._settings = settings
        self._images = images
        self._pools = pools

    async def reading(
        self, client: Client, work: Callable[P, Made], *args: P.args, **kwargs: P.kwargs
    ) -> Made:
        """`work(*args)` where large bodies are read: off the event loop, callers in turn."""
        return await self._pools.reading.run(client.share, work, *args, **kwargs)

    # -- a conversation ----------------------------------------------------------------------

    async def chat(
        self,
        request: ChatRequest,
        dialect: Dialect,
        model: ServedModel,
        score: Score,
        client: Client,
        unknown: Sequence[str] = (),
    ) -> Plan:
        """The plan of a conversation's answer. Raises ApiError, and what `score` raises.

        `unknown` names more that was sent and has no effect, beside the request's own.
        """
        ignored = self._ignored(request, model, unknown)
        request, dropped = relaxed(request)
        conversation = await self.conversation(request.messages, model, request.model, client.share)
        conversation.check_size(request.truncate_len(dialect) is not None, _n_ctx(model))
        call, first, words = await self._decide_on_calls(request, conversation, score)
        workers = self._pools.for_conversation(
            bool(conversation.pictures), call or request.response_format is not None
        )

        async def plan_it() -> Plan:
            return await workers.run(
                client.share,
                self._plan_chat,
                *(request, dialect, conversation, call, first, words, ignored, lambda: client.gone),
            )

        try:
            plan = await plan_it()
        except ApiError as error:
            if error.code != TOO_SHORT or request.effective_tool_choice() != "auto" or not call:
                raise
            call = words = False  # words have room where a call has none
            plan = await plan_it()
        undecided = words or conversation.has_tool_results() or request.continue_final_message
        if request.effective_tool_choice() != "auto" or undecided:
            return replace(plan, relaxed=tuple(dropped))
        decided: Literal["call", "words"] = "call" if call else "words"
        return replace(plan, relaxed=tuple(dropped), decided=decided)

    async def conversation(
        self, messages: Sequence[Message], model: ServedModel, named: str, share: str
    ) -> Conversation:
        """The messages with their images fetched; they are decoded when the prompt is made.

        ApiError 400.
        """
        wanted = [
            (i, j, part.url)
            for i, message in enumerate(messages)
            if isinstance(message, UserMessage) and not isinstance(message.content, str)
            for j, part in enumerate(message.content)
            if isinstance(part, ImagePart)
        ]
        if not wanted:
            return Conversation(model, messages)
        i, j, _ = wanted[0]
        self._check_sees(model, named, ("messages", i, "content", j))
        if len(wanted) > MAX_IMAGES:
            raise bad_image(f"At most {MAX_IMAGES} images a request.", ("messages", i, "content"))
        places: list[Loc] = [("messages", i, "content", j, "image_url", "url")
                             for i, j, _ in wanted]  # fmt: skip
        fetched = await self._fetched([url for _, _, url in wanted], places, model, share)
        pictures = [
            Picture(data, loc, (i, j))
            for data, loc, (i, j, _) in zip(fetched, places, wanted, strict=True)
        ]
        return Conversation(model, messages, pictures)

    async def pictures(
        self, urls: Sequence[str] | None, model: ServedModel, named: str, share: str
    ) -> list[Picture]:
        """The images that stand in token ids, fetched. ApiError 400."""
        if not urls:
            return []
        self._check_sees(model, named, ("images", 0))
        places: list[Loc] = [("images", i) for i in range(len(urls))]
        fetched = await self._fetched(urls, places, model, share)
        return [Picture(data, loc) for data, loc in zip(fetched, places, strict=True)]

    def _check_sees(self, model: ServedModel, named: str, loc: Loc) -> None:
        if model.vision is None:
            raise bad_image(
                f"The model {quoted(named)} reads text alone and was given an image.", loc
            )

    async def _fetched(
        self, urls: Sequence[str], places: Sequence[Loc], model: ServedModel, share: str
    ) -> list[bytes]:
        """The bytes of images, and the part of the model that reads them ready."""
        found = [
            await read_url(url, self._images, loc, self._pools.reading, share)
            for url, loc in zip(urls, places, strict=True)
        ]
        if model.vision is not None:
            await model.vision.ready()
        return found

    async def _decide_on_calls(
        self, request: ChatRequest, conversation: Conversation, score: Score
    ) -> tuple[bool, Sequence[Tool], bool]:
        """Whether tools may be called; which ones the first call may go to (() is any); and whether
        the model chooses between calls and words as it writes, as one that was taught to does.
        """
        choice, tools = request.effective_tool_choice(), request.callable_tools()
        if choice == "none" or request.continue_final_message:
            return False, (), False
        form = conversation.model.call_form
        if choice == "auto" and form is not None and form.in_free_text:
            return True, (), True
        if choice == "auto":
            if conversation.has_tool_results():
                return False, (), False
            decision = await decide(conversation, tools, score)
            return decision.call, decision.tools, False
        if choice == "required" and len(tools) > 1 and form is None:
            return True, (await decide(conversation, tools, score)).tools, False
        return True, (), False

    def _plan_chat(
        self,
        request: ChatRequest,
        dialect: Dialect,
        conversation: Conversation,
        call: bool,
        first: Sequence[Tool],
        may_say: bool,
        ignored: Sequence[str],
        gone: Callable[[], bool],
    ) -> Plan:
        """Renders, tokenizes and compiles: on a thread."""
        model = conversation.model
        params, n = _sampling(request, dialect, model), self._n(request)
        tools = request.callable_tools() if call else ()
        format, words = answer_format(request, model, tools, first, gone, may_say)
        continues = bool(request.continue_final_message)
        think = None if continues else think_spec(request, model)
        listed = first if first and len(tools) > MAX_LISTED_TOOLS else tools
        kwargs = request.chat_template_kwargs or {}
        layout = Layout(tuple(listed), think is not None, words, continues, kwargs)
        rendered = conversation.fit(layout, request.truncate_len(dialect), _n_ctx(model))
        prompt = rendered.prompt
        if not continues:
            prompt, think = open_thinking(prompt, think, model, call=bool(tools))
        max_tokens = self._room(request.limit, prompt, model)
        self._check_trace(request, model, len(prompt.tokens), n)
        shortest = format.shortest() if format is not None and max_tokens else 0
        if max_tokens < shortest + (len(think.close) + 1 if think is not None and shortest else 0):
            raise too_short(max_tokens, shortest, think, request.limit_name)
        return Plan(
            model=model,
            named=request.model,
            dialect=dialect,
            prompt=prompt,
            params=params,
            max_tokens=max_tokens,
            n=n,
            # Stop strings end words; a call ends where its grammar does.
            stops=() if tools and not may_say else request.stops,
            stop_ids=_stop_ids(request, model),
            min_tokens=request.min_tokens or 0,
            logprobs=bool(request.logprobs),
            top_logprobs=request.top_logprobs or 0,
            trace=request.trace,
            think=think.fitted(max_tokens - shortest) if think is not None else None,
            hide_thought=bool(request.reasoning and request.reasoning.exclude),
            format=format,
            format_place=("tools",) if tools else request.schema_place[:1],
            calls=CallSpec(model.call_form or HERMES, texts_of(tools), may_say) if tools else None,
            truncation=rendered.truncation,
            ignored=tuple(ignored),
        )

    # -- bare text ---------------------------------------------------------------------------

    async def completion(
        self, request: CompletionRequest, dialect: Dialect, model: ServedModel, client: Client
    ) -> list[Plan]:
        """The plans of a completion's prompts, in their order. Raises ApiError."""
        ignored = self._ignored(request, model)
        together = 0
        for where, given in request.prompts():
            n_tokens = len(given)
            if isinstance(given, str):
                n_tokens = model.tokenizer.least_tokens(len(given))
            if n_tokens > _n_ctx(model):
                raise context_length_exceeded(n_tokens, _n_ctx(model), *where, at_least=True)
            together += n_tokens
        check_together(together)
        request, dropped = relaxed(request)
        pictures = await self.pictures(request.images, model, request.model, client.share)
        workers = self._pools.for_conversation(bool(pictures), request.response_format is not None)
        plans = await workers.run(
            client.share,
            self._plan_completion,
            *(request, dialect, model, pictures, ignored, lambda: client.gone),
        )
        return [replace(plan, relaxed=tuple(dropped)) for plan in plans]

    def _plan_completion(
        self,
        request: CompletionRequest,
        dialect: Dialect,
        model: ServedModel,
        pictures: Sequence[Picture],
        ignored: Sequence[str],
        gone: Callable[[], bool],
    ) -> list[Plan]:
        params, n = _sampling(request, dialect, model), self._n(request)
        format, _ = wanted_format(request, model, gone)
        shortest = format.shortest() if format is not None else 0
        plans, together = [], 0
        for where, given in request.prompts():
            if gone():
                raise GivenUp
            prompt = around_pictures(_bare_prompt(given, where, model), pictures, model)
            n_prompt = len(prompt.tokens)
            if n_prompt > _n_ctx(model):
                raise context_length_exceeded(n_prompt, _n_ctx(model), *where)
            together += n_prompt
            check_together(together)
            self._check_trace(request, model, n_prompt, n)
            max_tokens = self._room(request.limit, prompt, model)
            if 0 < max_tokens < shortest:
                raise too_short(max_tokens, shortest, None, "max_tokens")
            plans.append(
                Plan(
                    model=model,
                    named=request.model,
                    dialect=dialect,
                    prompt=prompt,
                    params=params,
                    max_tokens=max_tokens,
                    n=n,
                    stops=request.stops,
                    format=format,
                    format_place=request.schema_place[:1],
                    stop_ids=_stop_ids(request, model),
                    min_tokens=request.min_tokens or 0,
                    logprobs=request.logprobs is not None,
                    top_logprobs=request.logprobs or 0,
                    echo=bool(request.echo),
                    score_prompt=bool(request.echo) and request.logprobs is not None,
                    trace=request.trace,
                    ignored=tuple(ignored),
                )
            )
        return plans

    # -- both --------------------------------------------------------------------------------

    def _ignored(
        self, request: SampledRequest, model: ServedModel, unknown: Sequence[str] = ()
    ) -> list[str]:
        """Names of what has no effect. ApiError for the unknown ones when the server is strict."""
        names = [*unknown_fields(request), *unknown]
        names += [f"logit_bias.{k}" for k in request.logit_bias or () if not _is_token_id(k)]
        names += never_read(request, model)
        if names and self._settings.strict:
            raise invalid(f"{names[0]} is not a known parameter.", names[0], kind="extra_forbidden")
        if model.reasoning == "none":
            thinking = ("reasoning", "reasoning_effort")
            names += [name for name in thinking if getattr(request, name, None) is not None]
        return names

    def _n(self, request: SampledRequest) -> int:
        """How many choices. ApiError beyond what the server makes at once."""
        n_max = min(self._settings.max_n, self._settings.max_batch)
        if (request.n or 1) > n_max:
            raise invalid(f"n must be at most {n_max} here.", "n", kind="less_than_equal")
        return request.n or 1

    def _room(self, limit: int, prompt: Prompt, model: ServedModel) -> int:
        """Most tokens of an answer: what was asked for, as far as server and context allow."""
        if self._settings.max_tokens_cap:
            limit = min(limit, self._settings.max_tokens_cap)
        return max(0, min(limit, _n_ctx(model) - len(prompt.tokens)))

    def _check_trace(
        self, request: SampledRequest, model: ServedModel, n_prompt: int, n: int
    ) -> None:
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
        if n * n_prompt > MAX_INSIDE_PROMPT:
            raise invalid(
                f"{n} × {n_prompt} prompt tokens are too many to look inside; at most "
                f"{MAX_INSIDE_PROMPT}.",
                "trace",
                field,
            )


def _n_ctx(model: ServedModel) -> int:
    return min(model.engine.n_ctx, 1 << 30)


def _bare_prompt(given: str | list[int], where: Loc, model: ServedModel) -> Prompt:
    """Text, control tokens in it read as such, or ids as they are. ApiError names the place."""
    if isinstance(given, str):
        ids = [*model.tokenizer.bos_ids, *model.tokenizer.encode(given, allow_special=True)]
    else:
        ids = given
        for i, id in enumerate(ids):
            if id >= model.vocab_size:
                raise invalid(f"The vocabulary has {model.vocab_size} tokens.", *where, i)
    if not ids:
        raise invalid("A prompt must hold at least one token.", *where)
    return Prompt(np.array(ids, np.int32))


def _sampling(request: SampledRequest, dialect: Dialect, model: ServedModel) -> SamplingParams:
    """How to sample: what the request says, and the model's defaults for what it leaves out."""
    bias: dict[int, float] = {}
    for key, value in (request.logit_bias or {}).items():
        if not _is_token_id(key):
            continue
        if int(key) >= model.vocab_size:
            raise invalid(f"{key[:20]} is no token of this model's {model.vocab_size}.",
                          "logit_bias", key[:20])  # fmt: skip
        bias[int(key)] = value
    defaults: dict[str, Any] = model.defaults.under(dialect)
    given = {name: getattr(request, name) for name in defaults}
    return SamplingParams(
        **defaults | {name: value for name, value in given.items() if value is not None},
        seed=_seed(request),
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        logit_bias=bias,
    )


def _seed(request: SampledRequest) -> int | None:
    """The request's, or none, which the engine draws; drawn here where the trace has to tell it."""
    if request.seed is None and request.trace is not None and request.trace.whole:
        return secrets.randbits(63)
    return request.seed


def _stop_ids(request: SampledRequest, model: ServedModel) -> frozenset[int]:
    """The tokens that end an answer. ApiError for one that isn't in the vocabulary."""
    for i, id in enumerate(request.stop_token_ids or ()):
        if id >= model.vocab_size:
            raise invalid(f"The vocabulary has {model.vocab_size} tokens.", "stop_token_ids", i)
    own = frozenset() if request.ignore_eos else model.stop_ids
    return own | frozenset(request.stop_token_ids or ())


def _is_token_id(key: str) -> bool:
    return key.isascii() and key.isdigit() and len(key) < 12
