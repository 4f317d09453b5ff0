"""smolagents: its OpenAI model, alone and with a tool."""

from __future__ import annotations

from checks import MODEL, QUESTION, URL, check, client, done
from smolagents import OpenAIModel, Tool

client("smolagents")


class Weather(Tool):  # type: ignore[misc]
    """The weather in a city."""

    name = "get_weather"
    description = "The weather in a city."
    inputs = {"city": {"type": "string", "description": "The city."}}  # noqa: RUF012
    output_type = "string"

    def forward(self, city: str) -> str:
        """Always the same."""
        return "Sunny."


model = OpenAIModel(model_id=MODEL, api_base=URL, api_key="unused", temperature=0, max_tokens=60)
ask = [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}]


@check("generate")
def _() -> None:
    assert "Paris" in model.generate(ask).content


@check("generate_stream")
def _() -> None:
    assert "Paris" in "".join(part.content or "" for part in model.generate_stream(ask))


@check("a tool")  # smolagents requires a call whenever it hands tools over
def _() -> None:
    (call,) = model.generate(ask, tools_to_call_from=[Weather()]).tool_calls
    assert call.function.name == "get_weather"


done()
