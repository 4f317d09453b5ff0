"""openai-python: chat, completions and responses, whole, streamed and parsed."""

from __future__ import annotations

import openai
from checks import MODEL, QUESTION, check, client, done
from pydantic import BaseModel, Field

client("openai")
api = openai.OpenAI()
messages = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": QUESTION},
]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}


class City(BaseModel):
    """What structured answers are asked for here."""

    name: str = Field(max_length=40)
    population: int


@check("chat")
def _() -> None:
    answer = api.chat.completions.create(model=MODEL, messages=messages, temperature=0)
    assert "Paris" in answer.choices[0].message.content


@check("chat `.stream()`")
def _() -> None:
    with api.chat.completions.stream(model=MODEL, messages=messages, temperature=0) as stream:
        text = "".join(event.delta for event in stream if event.type == "content.delta")
        assert text == stream.get_final_completion().choices[0].message.content


@check("chat `.parse()`")
def _() -> None:
    answer = api.chat.completions.parse(
        model=MODEL, messages=messages, response_format=City, max_tokens=120
    )
    assert isinstance(answer.choices[0].message.parsed, City)


@check("tools")
def _() -> None:
    answer = api.chat.completions.create(
        model=MODEL, messages=messages, tools=[WEATHER], tool_choice="required", max_tokens=100
    )
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "get_weather"
    said = {"role": "tool", "tool_call_id": call.id, "content": "Sunny, 21 degrees."}
    again = [*messages, answer.choices[0].message, said]
    assert api.chat.completions.create(model=MODEL, messages=again, tools=[WEATHER], max_tokens=20)


@check("completions")
def _() -> None:
    answer = api.completions.create(
        model=MODEL, prompt="The capital of France is", max_tokens=4, temperature=0, logprobs=2
    )
    assert "Paris" in answer.choices[0].text
    parts = api.completions.create(model=MODEL, prompt="One, two,", max_tokens=4, stream=True)
    assert "".join(part.choices[0].text for part in parts if part.choices)


@check("responses")
def _() -> None:
    first = api.responses.create(model=MODEL, input=QUESTION, temperature=0, max_output_tokens=40)
    assert first.output_text
    second = api.responses.create(
        model=MODEL, input="And of Italy?", previous_response_id=first.id, max_output_tokens=20
    )
    assert api.responses.retrieve(second.id).output_text == second.output_text
    api.responses.delete(first.id)


@check("responses `.stream()`")
def _() -> None:
    with api.responses.stream(model=MODEL, input=QUESTION, temperature=0) as stream:
        kinds = [event.type for event in stream]
        assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")
        assert stream.get_final_response().output_text


@check("responses `.parse()`")
def _() -> None:
    answer = api.responses.parse(
        model=MODEL, input="Describe Rome.", text_format=City, max_output_tokens=120
    )
    assert isinstance(answer.output_parsed, City)


@check("an error is the class that it should be")
def _() -> None:
    for kind, body in (
        (openai.NotFoundError, {"model": "no-such-model"}),
        (openai.BadRequestError, {"model": MODEL, "max_tokens": -1}),
    ):
        try:
            api.chat.completions.create(messages=messages, **body)
        except kind:
            continue
        raise AssertionError(kind)


done()
