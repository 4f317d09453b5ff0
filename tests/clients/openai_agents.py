"""openai-agents as it comes: responses, streamed; only its tracing to OpenAI is off."""

from __future__ import annotations

import agents
from agents import Agent, ModelSettings, Runner, function_tool
from checks import MODEL, QUESTION, check, client, done
from pydantic import BaseModel, ConfigDict

client("openai-agents")
agents.set_tracing_disabled(True)
few = ModelSettings(max_tokens=120, temperature=0)
called: list[str] = []


class City(BaseModel):
    """A structured answer."""

    model_config = ConfigDict(extra="forbid")
    name: str
    population: int


@function_tool
def get_weather(city: str) -> str:
    """The weather in a city."""
    called.append(city)
    return "Sunny, 21 degrees."


@check("run")
def _() -> None:
    agent = Agent(name="Helper", model=MODEL, model_settings=few)
    assert "Paris" in Runner.run_sync(agent, QUESTION).final_output


@check("run, streamed")
async def _() -> None:
    agent = Agent(name="Helper", model=MODEL, model_settings=few)
    stream = Runner.run_streamed(agent, QUESTION)
    kinds = [
        event.data.type async for event in stream.stream_events() if event.type.startswith("raw")
    ]
    assert "response.output_text.delta" in kinds
    assert kinds[-1] == "response.completed"


@check("a tool that is called, and an answer after it")
def _() -> None:
    must = ModelSettings(max_tokens=120, temperature=0, tool_choice="get_weather")
    agent = Agent(name="Helper", model=MODEL, model_settings=must, tools=[get_weather])
    assert Runner.run_sync(agent, "What is the weather in Boston?").final_output
    assert called


@check("output type")
def _() -> None:
    agent = Agent(name="Helper", model=MODEL, model_settings=few, output_type=City)
    assert isinstance(Runner.run_sync(agent, "Describe Rome.").final_output, City)


done()
