"""DSPy: a signature, over chat and over text completion."""

from __future__ import annotations

import contextlib

import dspy
from checks import MODEL, QUESTION, URL, check, client, done
from dspy.utils.exceptions import AdapterParseError

client("dspy")


@check("chat, and a signature")
def _() -> None:
    lm = dspy.LM(f"openai/{MODEL}", api_base=URL, api_key="unused", max_tokens=200, cache=False)
    assert lm(QUESTION)
    with dspy.context(lm=lm), contextlib.suppress(AdapterParseError):
        # Whether a model of 135 M finds the fields' form is its own affair, and it often doesn't.
        assert isinstance(dspy.Predict("question -> answer: str")(question=QUESTION).answer, str)


@check("text mode")
def _() -> None:
    lm = dspy.LM(
        f"text-completion-openai/{MODEL}", model_type="text", api_base=URL, api_key="unused",
        max_tokens=20, cache=False,
    )  # fmt: skip
    (said,) = lm(prompt=QUESTION)
    assert isinstance(said if isinstance(said, str) else said["text"], str)


done()
