"""pydantic-ai: `openai:` speaks responses, `openai-chat:` chat completions."""

from __future__ import annotations

from checks import MODEL, QUESTION, check, client, done
from pydantic import BaseModel, Field
from pydantic_ai import Agent, ModelSettings

client("pydantic-ai-slim")
few: ModelSettings = {"max_tokens": 120, "temperature": 0}


class City(BaseModel):
    """A structured answer."""

    name: str = Field(max_length=40)
    population: int


for kind in ("openai", "openai-chat"):
    model = f"{kind}:{MODEL}"

    @check(f"`{kind}:` text")
    def _(model: str = model) -> None:
        assert "Paris" in Agent(model, model_settings=few).run_sync(QUESTION).output

    @check(f"`{kind}:` streamed")
    async def _(model: str = model) -> None:
        async with Agent(model, model_settings=few).run_stream(QUESTION) as stream:
            parts = [part async for part in stream.stream_text(delta=True, debounce_by=None)]
        assert len(parts) > 1

    @check(f"`{kind}:` output type")  # asked for as a tool that must be called
    def _(model: str = model) -> None:
        agent = Agent(model, output_type=City, model_settings=few)
        assert isinstance(agent.run_sync("Describe Rome.").output, City)


done()
