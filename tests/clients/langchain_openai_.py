"""langchain-openai: chat completions and responses, tools, three methods of structured output."""

from __future__ import annotations

from checks import MODEL, QUESTION, check, client, done
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel

client("langchain-openai")


class City(BaseModel):
    """A city."""

    name: str
    population: int


@tool
def get_weather(city: str) -> str:
    """The weather in a city."""
    return "Sunny."


for responses in (False, True):
    way = "responses" if responses else "chat"
    llm = ChatOpenAI(model=MODEL, temperature=0, max_tokens=120, use_responses_api=responses)

    @check(f"{way}: invoke and stream")
    def _(llm: ChatOpenAI = llm) -> None:
        assert "Paris" in llm.invoke(QUESTION).text
        assert "Paris" in "".join(part.text for part in llm.stream(QUESTION))

    @check(f"{way}: a bound tool")
    def _(llm: ChatOpenAI = llm) -> None:
        bound = llm.bind_tools([get_weather], tool_choice="get_weather")
        (call,) = bound.invoke("What is the weather in Boston?").tool_calls
        assert call["name"] == "get_weather"

    for method in ("json_schema", "function_calling", "json_mode"):

        @check(f"{way}: structured output by {method}")
        def _(llm: ChatOpenAI = llm, method: str = method) -> None:
            asked = llm.with_structured_output(City, method=method, include_raw=True)
            said = asked.invoke("Describe Rome as JSON with a name and a population.")
            if method == "json_mode":  # any object will do for the server, and this model's is any
                assert said["parsing_error"] is None or "validation" in str(said["parsing_error"])
            else:
                assert isinstance(said["parsed"], City)


@check("completions")
def _() -> None:
    llm = OpenAI(model=MODEL, temperature=0, max_tokens=4)
    assert "Paris" in llm.invoke("The capital of France is")


done()
