"""`tool_choice: auto`: does the user want something that a tool does, or words?

A model of 135M parameters can't be asked that question: put to it in a prompt, with or without
examples, its yes and no are near chance (an area under the ROC curve of 0.6). What it does know is
how likely a text is. So the rule is the noisy channel (Min et al. 2022,
https://arxiv.org/abs/2108.04106), with the model's own probabilities:

    a call  ⇔  max over tools  log p(request | a request for this tool)
             − max over kinds  log p(request | a request for talk of this kind)  >  THRESHOLD

The request is the last user message (its end, if it is long), the kinds of talk are those in
`TALK`, and the threshold was set on one half of `tests/api/data/tool_decisions.json` and is
checked on the other. After a tool's result the answer is always in words.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence

import numpy as np

from tinyllm.api.chat import Conversation
from tinyllm.api.generation import Caller, score
from tinyllm.api.mailbox import Bell
from tinyllm.api.protocol import Tool, UserMessage
from tinyllm.api.service import ServedModel
from tinyllm.engine.types import Prompt, Request
from tinyllm.sampler import SamplingParams

THRESHOLD = 0.87
MAX_REQUEST = 64  # tokens of the user's message, from its end
MAX_TOOLS = 16  # scored one by one; more are scored in so many groups
TALK = (("chat", "talk, explain and write texts"),)
FORM = "Tool: {name}: {description}.\nExample of a user's request for this tool:"


async def wants_call(
    conversation: Conversation, tools: Sequence[Tool], bell: Bell, caller: Caller, key: str
) -> bool:
    """Whether the last user message asks for a tool. Raises ApiError, ClientGone."""
    request = last_request(conversation)
    if not request:
        return False
    return await margin(conversation.model, tools, request, bell, caller, key) > THRESHOLD


def last_request(conversation: Conversation) -> str:
    """The text of the last user message, "" if there is none."""
    for message in reversed(conversation.messages):
        if isinstance(message, UserMessage):
            content = message.content
            if isinstance(content, str):
                return content.strip()
            return "\n".join(p.text for p in content if hasattr(p, "text")).strip()
    return ""


async def margin(
    model: ServedModel, tools: Sequence[Tool], request: str, bell: Bell, caller: Caller, key: str
) -> float:
    """How much likelier the request is as one for the best tool than as one for talk, in nats."""
    ids = await asyncio.to_thread(lambda: model.tokenizer.encode(" " + request)[-MAX_REQUEST:])
    forms = [_form(name, description) for name, description in TALK]
    forms += [_form(*described) for described in _described(tools)]
    scores = await asyncio.gather(
        *(_log_likelihood(model, form, ids, bell, caller, key) for form in forms)
    )
    return max(scores[len(TALK) :]) - max(scores[: len(TALK)])


def _described(tools: Sequence[Tool]) -> list[tuple[str, str]]:
    """(name, description) of each tool; very many are put together in groups."""
    pairs = [
        (t.function.name, (t.function.description or t.function.name.replace("_", " ")).strip())
        for t in tools
    ]
    if len(pairs) <= MAX_TOOLS:
        return pairs
    groups = [pairs[i::MAX_TOOLS] for i in range(MAX_TOOLS)]
    return [(" or ".join(n for n, _ in group), "; ".join(d for _, d in group)) for group in groups]


def _form(name: str, description: str) -> str:
    return FORM.format(name=name, description=description.rstrip(".")[:500])


async def _log_likelihood(
    model: ServedModel, form: str, ids: Sequence[int], bell: Bell, caller: Caller, key: str
) -> float:
    """log p(ids | form), in one prefill."""
    before = model.tokenizer.encode(form)
    prompt = Prompt(np.array([*before, *ids], np.int32))
    request = Request(
        id=f"score-{uuid.uuid4().hex}",
        prompt=prompt,
        params=SamplingParams(temperature=0),
        max_tokens=1,
        key=key,
        score_from=len(before),
    )
    return sum(await score(model.engine, request, bell, caller))
