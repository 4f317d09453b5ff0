"""What is asked: prompts of mixed lengths that share nothing, so that no cache helps unasked."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

WORDS = (  # noqa: SIM905
    "river stone window garden engine bright copper winter table market silver cloud paper "
    "mountain harbour simple orange letter music forest yellow travel quiet bridge morning "
    "science kitchen distant number island camera pencil village thunder circle planet"
).split()


@dataclass(frozen=True)
class Mix:
    """Prompt lengths in words, each as likely as it is often listed, and answer lengths."""

    prompt_words: tuple[int, ...]
    max_tokens: tuple[int, ...]


MIXES = {
    # short questions, middling ones, and now and then a document
    "chat": Mix((20, 20, 20, 60, 60, 150, 150, 600), (32, 64, 128)),
    # nearly all decoding: to be held against the engine's own batch figure
    "decode": Mix((10, 20, 30), (256,)),
}


def chat_body(mix: Mix, rng: random.Random, eos_id: int) -> dict[str, Any]:
    """A request whose answer has exactly the length asked for."""
    words = " ".join(rng.choice(WORDS) for _ in range(rng.choice(mix.prompt_words)))
    return {
        "model": "smollm2-135m-instruct",
        "messages": [{"role": "user", "content": f"Tell a long story about this: {words}"}],
        "max_tokens": rng.choice(mix.max_tokens),
        "temperature": 0,
        # Both servers know this; without it their answers would end at different lengths.
        "logit_bias": {str(eos_id): -100},
    }
