"""The request for a text completion: prompts without a template, as text or as token ids."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag, model_validator

from tinyllm.api.contract.errors import Loc
from tinyllm.api.contract.fields import WHOLE, Natural, Positive, fail
from tinyllm.api.contract.messages import ImageURLs
from tinyllm.api.contract.structured import StructuredRequest
from tinyllm.api.limits import MAX_PROMPT_LIST, MAX_TOP_LOGPROBS

DEFAULT_MAX_TOKENS = 16  # OpenAI's

Ids = Annotated[list[Natural], Field(min_length=1)]


def _prompt_tag(value: Any) -> str | None:
    if isinstance(value, str):
        return "~string"
    if not isinstance(value, list) or not value:
        return None
    first = value[0]
    return "~strings" if isinstance(first, str) else "~lists" if isinstance(first, list) else "~ids"


Prompts = Annotated[
    Annotated[str, Tag("~string")]
    | Annotated[list[str], Field(max_length=MAX_PROMPT_LIST), Tag("~strings")]
    | Annotated[Ids, Tag("~ids")]
    | Annotated[list[Ids], Field(max_length=MAX_PROMPT_LIST), Tag("~lists")],
    Discriminator(
        _prompt_tag,
        custom_error_type="prompt",
        custom_error_message=(
            "prompt must be a string, a list of strings, a list of token ids, or a list of those"
        ),
    ),
]


class CompletionRequest(StructuredRequest):
    """Go on with a text."""

    prompt: Prompts = Field(description="Text, or token ids; a list makes answers to each")
    max_tokens: Natural | None = Field(
        None, description=f"Most new tokens; {DEFAULT_MAX_TOKENS} if not given"
    )
    echo: bool | None = Field(None, description="Begin each answer with its prompt")
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS), WHOLE] | None = Field(
        None,
        description="So many of the likeliest tokens at each place; with echo in the prompt too",
    )
    images: ImageURLs | None = Field(
        None,
        description="https://… or data:image/…;base64,… of each image whose tokens stand in a "
        "prompt of token ids, in their order; /tokenize gives the ids of a conversation",
    )
    suffix: str | None = Field(None, description="Refused: the model can't fill gaps")
    best_of: Positive | None = Field(None, description="Refused, unless it equals n")

    @model_validator(mode="after")
    def _rules(self) -> CompletionRequest:
        if self.suffix:
            raise fail("The model can't fill a gap before a suffix", "suffix")
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise fail("best_of must equal n: every answer is returned", "best_of")
        if self.images and not (isinstance(self.prompt, list) and isinstance(self.prompt[0], int)):
            raise fail("images stand in one prompt of token ids; give it as such", "images")
        return self

    @property
    def limit(self) -> int:
        """Most new tokens, before the context has its say."""
        return DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens

    def prompts(self) -> list[tuple[Loc, str | list[int]]]:
        """Each prompt, behind its place in the request."""
        given: Any = self.prompt
        if isinstance(given, str) or isinstance(given[0], int):
            return [(("prompt",), given)]
        return [(("prompt", i), one) for i, one in enumerate(given)]
