"""Leaving out the oldest turns: as few as will do, and few renderings to find out how many."""

from __future__ import annotations

import math
import random
from types import SimpleNamespace
from typing import Any

import pytest

from tinyllm.api.contract.chat_completions import ChatRequest
from tinyllm.api.contract.fields import read
from tinyllm.api.prompt.chat import Conversation, Layout
from tinyllm.tokenizer import Tokenizer

LENGTHS = {
    "all of one letter": lambda rng: 1,
    "all alike": lambda rng: 40,
    "short, then long": lambda rng: 2 if rng.random() < 0.9 else 900,
    "of other alphabets": lambda rng: -60,
}


@pytest.mark.parametrize("name", LENGTHS)
def test_no_more_is_left_out_than_has_to_be(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    rng = random.Random(name)
    said: list[dict[str, Any]] = []
    for i in range(400):
        n = LENGTHS[name](rng)
        content = "x y"[: max(n, 0)] + "word " * (n // 5) if n > 0 else "ж語é" * (-n // 3)
        said.append({"role": ("user", "assistant")[i % 2], "content": content})
    said.append({"role": "user", "content": "And?"})
    request = read(ChatRequest, {"model": "m", "messages": said})
    model: Any = SimpleNamespace(tokenizer=tokenizer, id="m", vision=None)
    conversation = Conversation(model, request.messages)
    renders = []
    render = Conversation.render

    def counted(self: Conversation, *args: Any) -> Any:
        renders.append(1)
        return render(self, *args)

    monkeypatch.setattr(Conversation, "render", counted)
    fitted = conversation.fit(Layout(), 1000, 8192)
    assert fitted.truncation is not None and len(fitted.prompt.tokens) <= 1000
    n_dropped = fitted.truncation["dropped_messages"]
    assert len(renders) <= 2 * math.log2(400) + 2
    one_more = render(conversation, Layout(), range(n_dropped - 1, 401))
    assert len(one_more.tokens) > 1000
    exactly = render(conversation, Layout(), range(n_dropped, 401))
    assert exactly.tokens.tolist() == fitted.prompt.tokens.tolist()
    whole = render(conversation, Layout())
    assert fitted.truncation["dropped_tokens"] == len(whole.tokens) - len(exactly.tokens)


def test_where_everything_has_to_go(tokenizer: Tokenizer) -> None:
    said = [{"role": "user", "content": "word " * 50}] * 3
    request = read(ChatRequest, {"model": "m", "messages": said})
    model: Any = SimpleNamespace(tokenizer=tokenizer, id="m", vision=None)
    fitted = Conversation(model, request.messages).fit(Layout(), 10, 8192)
    assert fitted.truncation is not None
    assert fitted.truncation["dropped_messages"] == 2 and len(fitted.prompt.tokens) > 10
