"""instructor: structured answers in three of its modes."""

from __future__ import annotations

import instructor
import openai
from checks import MODEL, check, client, done
from pydantic import BaseModel, Field

client("instructor")


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=40)
    population: int


for mode in (
    instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA, instructor.Mode.RESPONSES_TOOLS
):  # fmt: skip

    @check(mode.name)
    def _(mode: instructor.Mode = mode) -> None:
        api = instructor.from_openai(openai.OpenAI(), mode=mode)
        responses = mode is instructor.Mode.RESPONSES_TOOLS
        few = {"max_output_tokens" if responses else "max_tokens": 120}
        city = api.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "Describe Rome."}],
            response_model=City,
            max_retries=1,
            **few,
        )
        assert isinstance(city, City)


done()
