"""Models that answer in channels (gpt-oss's harmony format): thought, words and calls by name.

    <|channel|>analysis<|message|>THOUGHT<|end|>
    <|start|>assistant<|channel|>final<|message|>ANSWER<|return|>
    <|start|>assistant to=functions.NAME<|channel|>commentary json<|message|>{…}<|call|>

The template opens a turn with `<|start|>assistant` and leaves the channel to the model. What is
asked for is known before, so the prompt opens it here: the analysis, where the model shall think,
or else the final channel. A call's own opening is in its form (`call_forms.GPT_OSS`).
Source: https://cookbook.openai.com/articles/openai-harmony
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tinyllm.api.constraints.thinking import ThinkSpec
from tinyllm.engine.types import Prompt
from tinyllm.tokenizer import Tokenizer

ANALYSIS = "<|channel|>analysis<|message|>"
FINAL = "<|channel|>final<|message|>"
END, TURN = "<|end|>", "<|start|>assistant"
MARKERS = ("<|channel|>", "<|message|>", END, "<|start|>")


def has_channels(tokenizer: Tokenizer) -> bool:
    """Whether the vocabulary has the tokens, and the template speaks of the analysis."""
    known = all(marker in tokenizer.special_tokens for marker in MARKERS)
    return known and "analysis" in (tokenizer.chat_template or "")


def think_in_channel(tokenizer: Tokenizer, budget: int | None) -> ThinkSpec:
    """A thought on the analysis channel; `open_channel` says what comes behind it."""
    end = tokenizer.special_tokens[END]
    return ThinkSpec(budget, (end,), frozenset({end}))


def open_channel(
    prompt: Prompt, think: ThinkSpec | None, tokenizer: Tokenizer, call: bool
) -> tuple[Prompt, ThinkSpec | None]:
    """The prompt with its first channel opened, and what leads from the thought to the answer."""

    def ids(text: str) -> list[int]:
        return tokenizer.encode(text, allow_special=True)

    answer = "" if call else FINAL  # a call says its channel itself
    if think is not None:
        think = replace(think, close=tuple(ids(END + TURN + answer)))
    opening = ids(ANALYSIS if think is not None else answer) if think is not None or answer else []
    return replace(prompt, tokens=np.append(prompt.tokens, np.array(opening, np.int32))), think
