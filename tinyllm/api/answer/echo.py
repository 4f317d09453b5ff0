"""A prompt as the beginning of an answer, with how likely the model found each of its tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from tinyllm.api.contract.answers import TextLogprobs
from tinyllm.engine.types import Prompt, Started
from tinyllm.tokenizer import Tokenizer

SLICE = 256  # tokens, 20 alternatives each, that are read between two turns of the event loop
LEAST = -9999.0  # a log-probability that JSON can hold, for -inf


@dataclass(frozen=True)
class Echo:
    """A prompt, shown as the beginning of an answer; its tokens only if they were scored."""

    text: str
    columns: TextLogprobs | None = None

    def own_columns(self) -> TextLogprobs | None:
        """The columns for one choice, which goes on with them: its lists are its own."""
        found = self.columns
        if found is None:
            return None
        return {
            "tokens": [*found["tokens"]],
            "token_logprobs": [*found["token_logprobs"]],
            "top_logprobs": [*found["top_logprobs"]],
            "text_offset": [*found["text_offset"]],
        }


async def echo(prompt: Prompt, tokenizer: Tokenizer, scored: Started | None) -> Echo:
    """A prompt as an answer's beginning, with its tokens' log-probabilities if it was `scored`.

    In slices: eight thousand tokens with twenty alternatives each would hold the event loop up.
    """
    ids = prompt.tokens.tolist()
    text = tokenizer.decode(ids)
    if scored is None:
        return Echo(text)
    texts = _Texts(tokenizer)
    first = texts[ids[0]]  # nothing comes before it that could make it likely
    columns: TextLogprobs = {
        "tokens": [first], "token_logprobs": [None], "top_logprobs": [None], "text_offset": [0],
    }  # fmt: skip
    offset = len(first)
    entries = list(zip(ids[1:], scored.prompt_logprobs, strict=True))
    tops: Sequence[Sequence[tuple[int, float]]] = scored.prompt_top or [()] * len(entries)
    for start in range(0, len(entries), SLICE):
        end = start + SLICE
        for own, others in zip(entries[start:end], tops[start:end], strict=True):
            top: dict[str, float] = {}
            for id, logprob in (*others, own):  # two tokens of one text share an entry
                name = texts[id]
                top[name] = max(logprob, LEAST, top.get(name, LEAST))
            columns["tokens"].append(texts[own[0]])
            columns["token_logprobs"].append(max(own[1], LEAST))
            columns["top_logprobs"].append(top)
            columns["text_offset"].append(offset)
            offset += len(texts[own[0]])
        await asyncio.sleep(0)
    return Echo(text, columns)


class _Texts(dict[int, str]):
    """Tokens as text, each decoded once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self._tokenizer = tokenizer

    def __missing__(self, id: int) -> str:
        text = self._tokenizer.token_bytes(id).decode("utf-8", errors="replace")
        self[id] = text
        return text
