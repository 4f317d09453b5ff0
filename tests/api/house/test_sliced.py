"""Large answers in pieces: the same bytes, none of them long."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic_core import to_json

from tests.api.support import Live, O
from tinyllm.api.house.sliced import json_pieces


def entry(i: int, n: int = 0) -> dict[str, Any]:
    return {"token": f'"é{i}', "logprob": -i / 3, "top_logprobs": [entry(j) for j in range(n)]}


CHOICE = {
    "index": 0,
    "message": {"content": "x", "tool_calls": []},
    "logprobs": {"content": [entry(i, 20) for i in range(2000)], "refusal": None},
}
VALUES = {
    "a chat": {"id": "x", "choices": [CHOICE] * 3, "usage": {"n": 1}},
    "a text": {"choices": [{"logprobs": {"tokens": ["a"] * 5000, "top": [{"a": -1.0}] * 5000}}]},
    "a response": {"output": [{"content": [{"text": "x", "logprobs": [entry(1, 20)] * 2000}]}]},
    "empty": {},
    "of all kinds": {"a": [], "b": {}, "c": [[], {}, None], "d": 1.5, "e": True, "é\n": "é😀"},
    "17 of a list": {"a": {"b": {"c": [*range(17)]}}},
}  # fmt: skip


@pytest.mark.parametrize("name", VALUES)
def test_the_pieces_are_the_whole(name: str) -> None:
    value = VALUES[name]
    pieces = list(json_pieces(value))
    assert b"".join(pieces) == to_json(value)
    assert max(map(len, pieces)) < 40_000


@pytest.mark.parametrize("more", [{"logprobs": True, "top_logprobs": 3}, {"trace": {}}])
def test_an_answer_that_may_be_large_comes_whole(scripted: Live, more: dict[str, Any]) -> None:
    response = scripted.chat(O, {"max_tokens": 4, **more})
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert response.json()["usage"]["completion_tokens"] > 0
