"""litellm: chat, streams, text completion, and its own error for a context that is too long."""

from __future__ import annotations

import litellm
from checks import MODEL, QUESTION, URL, check, client, done

client("litellm")
litellm.telemetry = False
where = {"api_base": URL, "api_key": "unused", "temperature": 0}
messages = [{"role": "user", "content": QUESTION}]


@check("completion, whole and streamed")
def _() -> None:
    answer = litellm.completion(f"openai/{MODEL}", messages=messages, **where)
    assert "Paris" in answer.choices[0].message.content
    parts = litellm.completion(f"openai/{MODEL}", messages=messages, stream=True, **where)
    assert "Paris" in "".join(part.choices[0].delta.content or "" for part in parts)


@check("text_completion")
def _() -> None:
    ask = [{"role": "user", "content": "The capital of France is"}]
    answer = litellm.completion(
        f"text-completion-openai/{MODEL}", messages=ask, max_tokens=4, **where
    )
    assert answer.choices[0].message.content


@check("responses")
def _() -> None:
    answer = litellm.responses(
        model=f"openai/{MODEL}", input=QUESTION, max_output_tokens=20, **where
    )
    assert answer.output[0].content[0].text


@check("ContextWindowExceededError")
def _() -> None:
    long = [{"role": "user", "content": "word " * 20_000}]
    try:
        litellm.completion(f"openai/{MODEL}", messages=long, **where)
    except litellm.ContextWindowExceededError:
        return
    raise AssertionError("no error")


done()
