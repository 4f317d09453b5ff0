"""Gemma 3 270M as others run the same file: llama.cpp's greedy text, transformers' next logits."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

PATH = Path(__file__).with_name("gemma3.json")
N_GREEDY = 24  # tokens that llama.cpp went on with
N_LOGITS = 16  # of the next token: the largest, each with its id

PROMPTS = (
    "The capital of France is",
    "Water boils at a temperature of",
    "Once upon a time, in a small village by the sea,",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "The opposite of hot is cold. The opposite of up is",
    "1, 2, 4, 8, 16,",
    "La tour Eiffel se trouve à",
    "Monday, Tuesday, Wednesday,",
    "The chemical symbol of gold is",
    "Q: Who wrote Hamlet?\nA:",
)


@dataclass(frozen=True)
class Golden:
    """One prompt's.

    tokens: the prompt's ids, BOS first.
    continued: what llama.cpp wrote after it, the likeliest token each time.
    logits: transformers' of the next token, id → value, the largest ones.
    """

    prompt: str
    tokens: list[int]
    continued: str
    logits: dict[int, float]


def load_goldens() -> list[Golden]:
    """In the order of PROMPTS."""
    entries = json.loads(PATH.read_text(encoding="utf-8"))
    return [
        Golden(e["prompt"], e["tokens"], e["continued"], {int(k): v for k, v in e["logits"]})
        for e in entries
    ]
