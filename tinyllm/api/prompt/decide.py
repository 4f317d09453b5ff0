"""`tool_choice: auto`: does the user want something that a tool does, or words?

A model of 135M parameters can't be asked that question: put to it in a prompt, with or without
examples, its yes and no are near chance (an area under the ROC curve of 0.6). What it does know is
how likely a text is. So the rule is the noisy channel (Min et al. 2022,
https://arxiv.org/abs/2108.04106), with the model's own probabilities:

    a call  ⇔  max over tools  log p(request | a request for this tool)
             − log p(request | a request for a text)  >  THRESHOLD

The request is the last user message (its end, if it is long). The wording of the alternative and
the threshold were chosen on one part of `tests/api/prompt/data/tool_decisions.json` (right on 42 of
44) and checked on the other (53 of 56). The tool with the highest score is the one that the first
call goes to, for `required` too. After a tool's result the answer is always in words.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tinyllm.api.contract.messages import TextPart, UserMessage
from tinyllm.api.contract.tools import Tool
from tinyllm.api.limits import (
    MAX_REQUEST_LETTERS,
    MAX_REQUEST_TAIL,
    MAX_TOOL_FORMS,
    MAX_TOOL_NAMES,
    MAX_TOOL_WORDS,
)
from tinyllm.api.prompt.chat import Conversation
from tinyllm.api.prompt.served import ServedModel
from tinyllm.engine.types import Prompt

THRESHOLD = 0.6
TALK = ("write", "Write poems, stories, jokes and other texts")
FORM = "Tool: {name}: {description}.\nExample of a user's request for this tool:"


# Asks the engine for the log-probabilities of a prompt's own tokens, from a position on.
Score = Callable[[ServedModel, Prompt, int], Awaitable[Sequence[float]]]


@dataclass(frozen=True)
class Decision:
    """What the model finds likelier: `margin` is by how many nats a call, `tools` the likeliest."""

    margin: float
    tools: tuple[Tool, ...]

    @property
    def call(self) -> bool:
        return self.margin > THRESHOLD


async def decide(conversation: Conversation, tools: Sequence[Tool], score: Score) -> Decision:
    """Whether the last user message asks for a tool, and for which. Raises what `score` does."""
    model = conversation.model
    request = last_request(conversation)
    if not request:
        return Decision(-math.inf, tuple(tools))
    ids = model.tokenizer.encode(" " + request[-MAX_REQUEST_LETTERS:])[-MAX_REQUEST_TAIL:]
    groups = _groups(tools)
    forms = [_form(*TALK), *(_form(*_described(group)) for group in groups)]
    talk, *scores = await asyncio.gather(
        *(_log_likelihood(model, form, ids, score) for form in forms)
    )
    best = max(range(len(groups)), key=scores.__getitem__)
    return Decision(scores[best] - talk, groups[best])


def last_request(conversation: Conversation) -> str:
    """The text of the last user message, "" if there is none."""
    for message in reversed(conversation.messages):
        if isinstance(message, UserMessage):
            if isinstance(message.content, str):
                return message.content.strip()
            texts = [part.text for part in message.content if isinstance(part, TextPart)]
            return "\n".join(texts).strip()
    return ""


def _groups(tools: Sequence[Tool]) -> list[tuple[Tool, ...]]:
    """One tool each; very many are put together: there are never more than MAX_TOOL_FORMS."""
    n = min(len(tools), MAX_TOOL_FORMS)
    return [tuple(tools[i::n]) for i in range(n)]


def _described(tools: Sequence[Tool]) -> tuple[str, str]:
    """Their names and descriptions."""
    functions = [tool.function for tool in tools]
    described = [(f.description or f.name.replace("_", " ")).strip() for f in functions]
    if len(tools) == 1:
        return functions[0].name, described[0]
    names = " or ".join(f.name for f in functions)
    return names[:MAX_TOOL_NAMES], "; ".join(described)[:MAX_TOOL_WORDS]


def _form(name: str, description: str) -> str:
    return FORM.format(name=name, description=description.rstrip(".")[:500])


async def _log_likelihood(model: ServedModel, form: str, ids: Sequence[int], score: Score) -> float:
    """log p(ids | form), in one prefill."""
    before = model.tokenizer.encode(form)
    prompt = Prompt(np.array([*before, *ids], np.int32))
    return sum(await score(model, prompt, len(before)))
