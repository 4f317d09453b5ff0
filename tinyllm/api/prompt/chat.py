"""A conversation → a prompt: the model's template, tools, thinking, and truncation.

Templates differ in what they know. Where one has no place for tools, names or tool results, they
are put into words here, in the way that the default model was found to follow best.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from tinyllm.api.constraints.thinking import ThinkSpec, budget_for
from tinyllm.api.contract.answers import Truncation
from tinyllm.api.contract.chat_completions import ChatRequest, Reasoning
from tinyllm.api.contract.errors import ApiError, Loc, context_length_exceeded, invalid, sentence
from tinyllm.api.contract.messages import (
    AssistantMessage,
    ImagePart,
    Message,
    TextPart,
    ToolMessage,
    UserMessage,
)
from tinyllm.api.contract.sampling import SampledRequest
from tinyllm.api.contract.templated import TemplatedRequest
from tinyllm.api.contract.tools import Tool
from tinyllm.api.prompt import tool_words
from tinyllm.api.prompt.channels import has_channels, open_channel, think_in_channel
from tinyllm.api.prompt.images import Pixels, bad_image, decode
from tinyllm.api.prompt.served import ServedModel
from tinyllm.api.prompt.tool_forms import short_id
from tinyllm.engine.types import Prompt
from tinyllm.errors import ImageError, TokenizerError

THINK_OPEN = "<think>\n"
AROUND = 15  # letters for the control tokens that a template writes around a message


@dataclass(frozen=True)
class Layout:
    """What goes into the prompt beside the messages."""

    tools: tuple[Tool, ...] = ()
    think: bool = False
    format: str = ""  # how the answer must look, in words
    continues: bool = False  # the last message is gone on with
    kwargs: Mapping[str, Any] = field(default_factory=dict)  # of the caller, for the template


@dataclass(frozen=True)
class Rendered:
    """A prompt, and what had to go to make it fit."""

    prompt: Prompt
    truncation: Truncation | None = None


@dataclass(frozen=True)
class Picture:
    """An image of the conversation, in the order of its parts; decoded when it is first used."""

    data: bytes  # encoded
    loc: Loc
    place: tuple[int, int] = (0, 0)  # message, part

    @cached_property
    def image(self) -> Pixels:
        """Its pixels. ApiError 400."""
        return decode(self.data, self.loc)


def around_pictures(prompt: Prompt, pictures: Sequence[Picture], model: ServedModel) -> Prompt:
    """Token ids with the rows of the images that stand in them. ApiError 400."""
    if not pictures or model.vision is None:
        return prompt
    try:
        return model.vision.around(prompt.tokens.tolist(), [one.image for one in pictures])
    except ImageError as error:
        raise bad_image(sentence(str(error)), ("images",)) from None


@dataclass(frozen=True)
class Conversation:
    """A request's messages, with the images that were fetched for them."""

    model: ServedModel
    messages: Sequence[Message]
    pictures: Sequence[Picture] = field(default_factory=tuple)

    # -- what a template takes ---------------------------------------------------------------

    @property
    def template(self) -> str:
        return self.model.tokenizer.chat_template or ""

    def has_tool_results(self) -> bool:
        """Whether the last word is a tool's."""
        return isinstance(self.messages[-1], ToolMessage)

    def render(self, layout: Layout, kept: Sequence[int] | None = None) -> Prompt:
        """The prompt of the messages at positions `kept` (all of them by default).

        Raises ApiError when the template refuses them.
        """
        kept = range(len(self.messages)) if kept is None else kept
        chat = [self._message(i) for i in kept]
        native = self._native_tools()
        if not native:
            spell_out = tool_words.calling if layout.tools else tool_words.answering
            chat = spell_out(chat, layout.tools)
        if layout.format:
            chat = tool_words.with_system(chat, layout.format)
        extra: dict[str, Any] = {}
        if layout.tools and native:
            extra["tools"] = [tool.model_dump(exclude_none=True) for tool in layout.tools]
        extra |= layout.kwargs
        if layout.continues:
            extra["continue_final_message"] = True
        if "enable_thinking" in self.template:
            extra["enable_thinking"] = layout.think
        try:
            if self.model.vision is not None and self.pictures:
                chosen = set(kept)
                images = [p.image for p in self.pictures if p.place[0] in chosen]
                return self.model.vision.prompt(chat, images, **extra)
            ids = self.model.tokenizer.apply_chat_template(chat, **extra)
        except (ImageError, TokenizerError) as error:
            message = f"The chat template of {self.model.id} can't take this: {error}."
            raise invalid(message, "messages") from None
        return Prompt(np.array(ids, np.int32))

    def _native_tools(self) -> bool:
        return "tools" in self.template

    def _message(self, index: int) -> dict[str, Any]:
        """One message as OpenAI's dict, its content flattened, the author's name put in front."""
        message = self.messages[index]
        role = "system" if message.role == "developer" else message.role
        out: dict[str, Any] = {"role": role, "content": self._content(message)}
        name = message.name
        if name is not None:
            if ".name" in self.template or "['name']" in self.template:
                out["name"] = name
            elif not isinstance(message, ToolMessage):
                out["content"] = _prefixed(f"{name}: ", out["content"])
        if isinstance(message, AssistantMessage):
            if message.tool_calls:
                out["tool_calls"] = [
                    {
                        "id": self._id(call.id),
                        "type": "function",
                        "function": {
                            "name": call.function.name,
                            "arguments": json.loads(call.function.arguments),
                        },
                    }
                    for call in message.tool_calls
                ]
            thought = message.reasoning_content or message.reasoning
            if thought and "reasoning_content" in self.template:
                out["reasoning_content"] = thought
        if isinstance(message, ToolMessage):
            out["tool_call_id"] = self._id(message.tool_call_id)
            out["name"] = message.name or self._called_name(message.tool_call_id, index)
        return out

    def _id(self, id: str) -> str:
        """A call's id, in the length that the template insists on, if it does."""
        return short_id(id) if "length != 9" in self.template else id

    def _content(self, message: Message) -> Any:
        content = message.content
        if content is None or isinstance(content, str):
            return content or ""
        if isinstance(message, UserMessage) and any(isinstance(p, ImagePart) for p in content):
            return [
                {"type": "text", "text": part.text}
                if isinstance(part, TextPart)
                else {"type": "image"}
                for part in content
            ]
        return "\n".join(part.text for part in content if isinstance(part, TextPart))

    def _called_name(self, call_id: str, before: int) -> str:
        """The function that an earlier call of that id named."""
        calls = self._calls.get(call_id, ())
        return next((name for place, name in reversed(calls) if place < before), "tool")

    @cached_property
    def _calls(self) -> dict[str, list[tuple[int, str]]]:
        """Id → (message, function) of each call; ids needn't be unique."""
        calls: dict[str, list[tuple[int, str]]] = {}
        for i, message in enumerate(self.messages):
            for call in (isinstance(message, AssistantMessage) and message.tool_calls) or ():
                calls.setdefault(call.id, []).append((i, call.function.name))
        return calls

    # -- making it fit -----------------------------------------------------------------------

    def check_size(self, truncated: bool, n_ctx: int) -> None:
        """ApiError `context_length_exceeded` for texts that no tokens make short enough.

        Counted in letters, so that what can't fit costs nothing; with `truncated` only those that
        can't be left out.
        """
        gone = {i for turn in self._turns() for i in turn} if truncated else set()
        n_letters = sum(
            _letters(message) for i, message in enumerate(self.messages) if i not in gone
        )
        if n_letters <= n_ctx:
            return  # a token stands for a letter or more; how many, takes a look at all of them
        least = self.model.tokenizer.least_tokens(n_letters)
        if least > n_ctx:
            raise context_length_exceeded(least, n_ctx, at_least=True)

    def fit(self, layout: Layout, length: int | None, n_ctx: int) -> Rendered:
        """The prompt, cut to `length` tokens by leaving out the oldest turns as far as allowed.

        A turn is one message; an assistant's calls go together with their results. System
        messages stay, and so does everything from the last user message on. ApiError
        `context_length_exceeded` when even so it is longer than the context.
        """
        prompt = self.render(layout)
        n_whole = len(prompt.tokens)
        truncation: Truncation | None = None
        if length is not None and n_whole > length and (turns := self._turns()):
            dropped, prompt = self._cut(turns, layout, length, n_whole)
            truncation = {
                "dropped_messages": sum(map(len, turns[:dropped])),
                "dropped_tokens": n_whole - len(prompt.tokens),
            }
        if len(prompt.tokens) > n_ctx:
            raise context_length_exceeded(len(prompt.tokens), n_ctx)
        return Rendered(prompt, truncation)

    def _cut(
        self, turns: Sequence[Sequence[int]], layout: Layout, length: int, n_whole: int
    ) -> tuple[int, Prompt]:
        """How many of the oldest turns have to go at least, and the prompt without them.

        A turn's tokens are about its share of all letters, those that the template writes around a
        message included. That says where to look, and rendering settles it: a few times, and never
        more often than bisecting would twice over, whatever the texts and the template are. Only
        the whole is ever encoded in full.
        """
        sizes = [sum(map(len, _texts(m))) + AROUND for m in self.messages]
        total, left, n = sum(sizes), float(n_whole), 0
        while n < len(turns) and left > length:
            left -= n_whole * sum(sizes[i] for i in turns[n]) / total
            n += 1
        low, high, step = 0, len(turns), 1  # `low` is known to be too few, `high` is all there is
        cut: Prompt | None = None  # without `high`, once it was rendered
        while cut is None or high - low > 1:
            prompt = self._without(turns[:n], layout)
            if len(prompt.tokens) <= length or n == len(turns):
                high, cut, n = n, prompt, n - step
            else:
                low, n = n, n + step
            step *= 2
            if not low < n < high:
                n = (low + high) // 2 if high - low > 1 else high
        return high, cut

    def _without(self, turns: Sequence[Sequence[int]], layout: Layout) -> Prompt:
        gone = {i for turn in turns for i in turn}
        return self.render(layout, [i for i in range(len(self.messages)) if i not in gone])

    def _turns(self) -> list[list[int]]:
        """The messages that may go, oldest first, those that belong together in one list."""
        users = [i for i, m in enumerate(self.messages) if isinstance(m, UserMessage)]
        last = users[-1] if users else len(self.messages) - 1
        turns: list[list[int]] = []
        caller: dict[str, list[int]] = {}  # call id → the turn of the assistant that made it
        for i, message in enumerate(self.messages[:last]):
            if message.role in ("system", "developer"):
                continue
            if isinstance(message, ToolMessage) and message.tool_call_id in caller:
                caller[message.tool_call_id].append(i)
                continue
            turns.append([i])
            if isinstance(message, AssistantMessage):
                caller.update({call.id: turns[-1] for call in message.tool_calls or ()})
        # A result that comes after the last user message keeps its call here too.
        late = {m.tool_call_id for m in self.messages[last:] if isinstance(m, ToolMessage)}
        bound = [caller[id] for id in late if id in caller]
        return [turn for turn in turns if turn not in bound]


def _texts(message: Message) -> Iterator[str]:
    """All that a template may write of a message."""
    content = message.content
    if isinstance(content, str):
        yield content
    elif content is not None:
        yield from (part.text for part in content if isinstance(part, TextPart))
    if isinstance(message, AssistantMessage):
        yield from (call.function.arguments for call in message.tool_calls or ())


def _letters(message: Message) -> int:
    """Letters that a message has at least in the prompt."""
    content = message.content
    if isinstance(content, str):
        return len(content)
    return sum(len(part.text) for part in content or () if isinstance(part, TextPart))


def _prefixed(prefix: str, content: Any) -> Any:
    if isinstance(content, str):
        return prefix + content
    return [{"type": "text", "text": prefix.rstrip() + " "}, *content]


# -- thinking ----------------------------------------------------------------------------------


def think_spec(request: ChatRequest, model: ServedModel) -> ThinkSpec | None:
    """How the request wants the model to think; None where it shouldn't, or can't."""
    if model.reasoning == "none":
        return None
    native = model.reasoning == "native"
    reasoning = request.reasoning
    effort = request.reasoning_effort or (reasoning.effort if reasoning else None)
    wanted = effort is not None or (reasoning is not None and (
        reasoning.max_tokens is not None or reasoning.enabled))  # fmt: skip
    enabled = (request.chat_template_kwargs or {}).get("enable_thinking")
    if reasoning is None and effort is None and enabled is not None:
        reasoning = Reasoning(enabled=bool(enabled))
        wanted = bool(enabled)
    if (reasoning is not None and reasoning.enabled is False) or effort == "none":
        return None
    if not wanted and not native:
        return None
    budget: int | None = None
    if reasoning is not None and reasoning.max_tokens is not None:
        budget = reasoning.max_tokens
    elif wanted:
        budget = budget_for(effort or "medium", request.limit)
    if budget == 0:
        return None
    if native and has_channels(model.tokenizer):
        return think_in_channel(model.tokenizer, budget)
    if native:
        open_id, close_id = _think_ids(model)
        return ThinkSpec(budget, (close_id,), frozenset({close_id}), opened=False, open_id=open_id)
    close = _turn_change(model)
    return ThinkSpec(budget, close, frozenset({close[0]}))


def _turn_change(model: ServedModel) -> tuple[int, ...]:
    """The tokens by which the template ends one answer and begins the next.

    A model that was never taught to close a think block does know how to end a turn. So that is
    what ends the block, by its own choice or by force, and the answer is a turn of its own; the
    default model answers far better so than behind a `</think>` that means nothing to it.
    """
    tokenizer = model.tokenizer
    user = {"role": "user", "content": "?"}
    before = tokenizer.apply_chat_template([user])
    answer = {"role": "assistant", "content": "!"}
    both = tokenizer.apply_chat_template([user, answer])
    said = tokenizer.encode("!")
    start = len(before) + len(said)
    if both[: len(before)] == before and both[len(before) : start] == said and len(both) > start:
        return tuple(both[start:])
    return tuple(tokenizer.encode("\n</think>\n"))


def _think_ids(model: ServedModel) -> tuple[int, int]:
    """The tokens <think> and </think> of a model that was trained with them."""
    ids = []
    for text in ("<think>", "</think>"):
        found = model.tokenizer.encode(text, allow_special=True)
        if len(found) != 1:
            raise ApiError(
                500, f"The card of {model.id} says reasoning: native, but {text} is no token.",
                "server_error", code="server_error", retry=False,
            )  # fmt: skip
        ids.append(found[0])
    return ids[0], ids[1]


def open_thinking(
    prompt: Prompt, think: ThinkSpec | None, model: ServedModel, call: bool
) -> tuple[Prompt, ThinkSpec | None]:
    """The prompt with a think block opened, where the template hasn't done so or won't.

    `call`: what follows is calls of tools.
    """
    if has_channels(model.tokenizer):
        return open_channel(prompt, think, model.tokenizer, call)
    if think is None:
        return prompt, None
    if model.reasoning == "native":
        opened = think.open_id is not None and think.open_id in prompt.tokens[-4:].tolist()
        if not opened and think.budget is not None:
            opening = [think.open_id, *model.tokenizer.encode("\n")]
            return _longer(prompt, opening), replace(think, opened=True)
        return prompt, replace(think, opened=opened)
    return _longer(prompt, model.tokenizer.encode(THINK_OPEN)), think


def _longer(prompt: Prompt, ids: Sequence[int | None]) -> Prompt:
    return replace(prompt, tokens=np.append(prompt.tokens, np.array(ids, np.int32)))


def never_read(request: SampledRequest, model: ServedModel) -> list[str]:
    """What a request has for the chat template, `documents` say, that the template has no word of.

    enable_thinking is heeded whatever the template knows, and chat_template chooses another one.
    """
    given = request.chat_template_kwargs if isinstance(request, TemplatedRequest) else None
    source = model.tokenizer.chat_template or ""
    if not given or "chat_template" in given:
        return []
    unknown = [name for name in given if name not in source and name != "enable_thinking"]
    return [f"chat_template_kwargs.{name}" for name in unknown]
