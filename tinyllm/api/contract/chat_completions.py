"""The request for a chat completion, and what its fields mean once defaults are settled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from tinyllm.api.contract.dialect import Dialect
from tinyllm.api.contract.errors import invalid, quoted
from tinyllm.api.contract.fields import WHOLE, Natural, Open, Positive, fail, read
from tinyllm.api.contract.messages import AssistantMessage, Message, ToolMessage
from tinyllm.api.contract.sampling import DEFAULT_MAX_TOKENS
from tinyllm.api.contract.strict_json import parse_inner
from tinyllm.api.contract.templated import TemplatedRequest
from tinyllm.api.contract.tools import AllowedTools, NamedFunction, NamedTool, Tool, ToolChoice
from tinyllm.api.limits import MAX_TOOLS, MAX_TOP_LOGPROBS

Effort = Literal["max", "xhigh", "high", "medium", "low", "minimal", "none"]


class Reasoning(Open):
    effort: Effort | None = None
    max_tokens: Positive | None = None
    exclude: bool | None = None
    enabled: bool | None = None

    @model_validator(mode="after")
    def _one_measure(self) -> Reasoning:
        if self.effort is not None and self.max_tokens is not None:
            raise fail("Give either effort or max_tokens, not both", "effort")
        return self


class ChatRequest(TemplatedRequest):
    """Generate an answer to a conversation."""

    messages: list[Message] = Field(min_length=1, description="The whole conversation so far")
    max_tokens: Natural | None = Field(
        None, description=f"Most tokens of the completion; {DEFAULT_MAX_TOKENS} if not given"
    )
    max_completion_tokens: Natural | None = Field(None, description="The same as max_tokens")
    prompt_truncate_len: Positive | None = Field(
        None, description="Tokens to which long conversations are cut, oldest turns first"
    )
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS), WHOLE] | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    reasoning_effort: Effort | None = None

    @model_validator(mode="after")
    def _rules(self) -> ChatRequest:
        both = (self.max_tokens, self.max_completion_tokens)
        if None not in both and both[0] != both[1]:
            raise fail("max_completion_tokens and max_tokens differ", "max_completion_tokens")
        if self.top_logprobs and not self.logprobs:
            raise fail("top_logprobs needs logprobs: true", "top_logprobs")
        self._check_tools()
        self._check_reasoning()
        self._check_conversation()
        for name in _OUR_KWARGS & (self.chat_template_kwargs or {}).keys():
            raise fail(f"{name} has a parameter of its own", "chat_template_kwargs", name)
        if self.continue_final_message:
            self._check_continuation()
        return self

    def _check_tools(self) -> None:
        names = [tool.function.name for tool in self.tools or ()]
        for i, name in enumerate(names):
            if name in names[:i]:
                raise fail(f"Two tools are named {name!r}", "tools", i, "function", "name")
        choice = self.tool_choice
        if choice is None or choice in ("auto", "none"):
            return
        if choice == "required":
            if not names:
                raise fail("'required' needs tools", "tool_choice")
            return
        if isinstance(choice, AllowedTools):
            wanted = [tool.function.name for tool in choice.allowed_tools.tools]
        else:
            wanted = [choice if isinstance(choice, str) else choice.function.name]
        for name in wanted:
            if name not in names:
                raise fail(f"There is no tool named {name!r}", "tool_choice")

    def _check_reasoning(self) -> None:
        if self.reasoning is None:
            return
        if self.reasoning_effort is not None:
            if self.reasoning.max_tokens is not None:
                raise fail(
                    "Give either reasoning_effort or reasoning.max_tokens, not both",
                    "reasoning_effort",
                )
            if self.reasoning.effort not in (None, self.reasoning_effort):
                raise fail("reasoning_effort and reasoning.effort differ", "reasoning_effort")
        if self.reasoning.max_tokens is not None and self.reasoning.max_tokens >= self.limit:
            raise fail(
                f"reasoning.max_tokens must be less than {self.limit_name} ({self.limit})",
                "reasoning",
                "max_tokens",
            )

    def _check_conversation(self) -> None:
        called: set[str] = set()
        for i, message in enumerate(self.messages):
            if isinstance(message, AssistantMessage):
                if message.content is None and not message.tool_calls:
                    raise fail("Only a message with tool_calls may go without content",
                                "messages", i, "content")  # fmt: skip
                for j, call in enumerate(message.tool_calls or ()):
                    place = ("messages", i, "tool_calls", j, "function", "arguments")
                    try:
                        parse_inner(call.function.arguments)
                    except ValueError:
                        raise fail("arguments must be JSON text", *place) from None
                    called.add(call.id)
            elif isinstance(message, ToolMessage) and message.tool_call_id not in called:
                raise fail(f"No earlier tool call has the id {quoted(message.tool_call_id)}",
                            "messages", i, "tool_call_id")  # fmt: skip

    def _check_continuation(self) -> None:
        last, place = self.messages[-1], len(self.messages) - 1
        if not isinstance(last, AssistantMessage) or not last.content or last.tool_calls:
            raise fail("Only an assistant message with text and no tool_calls can be gone on with",
                       "messages", place)  # fmt: skip
        if self.add_generation_prompt:
            raise fail("It contradicts continue_final_message", "add_generation_prompt")
        if self.response_format is not None and self.response_format.type != "text":
            raise fail("A text that was begun freely can't be held to a format",
                       *self.schema_place[:1])  # fmt: skip
        if self.effective_tool_choice() not in ("auto", "none"):
            raise fail("A text that was begun can't become a call", "tool_choice")

    # What the fields mean once defaults and aliases are settled.

    @property
    def limit(self) -> int:
        """Most tokens of the completion, before the context has its say."""
        for given in (self.max_tokens, self.max_completion_tokens):
            if given is not None:
                return given
        return DEFAULT_MAX_TOKENS

    @property
    def limit_name(self) -> str:
        """The name by which the limit was sent."""
        sent = self.max_tokens is None and self.max_completion_tokens is not None
        return "max_completion_tokens" if sent else "max_tokens"

    def truncate_len(self, dialect: Dialect) -> int | None:
        """null turns truncation off, absence means the dialect's default."""
        if "prompt_truncate_len" in self.model_fields_set:
            return self.prompt_truncate_len
        return dialect.truncate_len

    def effective_tool_choice(self) -> str | NamedTool:
        """auto, none, required or the tool; a bare function name becomes the tool, and a list of
        tools that are allowed its mode."""
        if not self.tools:
            return "none"
        if self.tool_choice is None:
            return "auto"
        if isinstance(self.tool_choice, AllowedTools):
            return self.tool_choice.allowed_tools.mode
        if isinstance(self.tool_choice, str) and self.tool_choice not in _CHOICES:
            named = NamedFunction(name=self.tool_choice)
            return NamedTool(type="function", function=named)
        return self.tool_choice

    def callable_tools(self) -> tuple[Tool, ...]:
        """The tools that may be called: all, those that are allowed, or the one that is named.

        The model is shown no others.
        """
        choice = self.tool_choice
        if isinstance(choice, AllowedTools):
            names = {tool.function.name for tool in choice.allowed_tools.tools}
        elif isinstance(wanted := self.effective_tool_choice(), NamedTool):
            names = {wanted.function.name}
        else:
            return tuple(self.tools or ())
        return tuple(tool for tool in self.tools or () if tool.function.name in names)


# What the server itself tells the template.
_OUR_KWARGS = {"messages", "tools", "add_generation_prompt", "continue_final_message",
               "image_token", "chat_template"}  # fmt: skip
_CHOICES = ("auto", "none", "required")


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
