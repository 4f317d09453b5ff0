"""LlamaIndex: its OpenAI class as it comes; it takes OpenAI's model names alone, hence an alias."""

from __future__ import annotations

from checks import QUESTION, URL, check, client, done
from llama_index.core.llms import ChatMessage
from llama_index.llms.openai import OpenAI

client("llama-index-llms-openai")
few = {"api_base": URL, "temperature": 0, "max_tokens": 8}
chat = OpenAI(**few)  # gpt-3.5-turbo
text = OpenAI(model="gpt-3.5-turbo-instruct", **few)  # completions


@check("chat and complete")
def _() -> None:
    assert chat.chat([ChatMessage(role="user", content=QUESTION)]).message.content
    assert chat.complete(QUESTION).text
    assert "Paris" in text.complete("The capital of France is").text


@check("stream_chat and stream_complete")
def _() -> None:
    assert [part.delta for part in chat.stream_chat([ChatMessage(content=QUESTION)])]
    assert "Paris" in "".join(p.delta for p in text.stream_complete("The capital of France is"))


done()
