"""Requests about tokens alone: text to ids, and back."""

from __future__ import annotations

from pydantic import Field, model_validator

from tinyllm.api.contract.fields import Natural, Open, fail
from tinyllm.api.contract.messages import Message


class TokenizeRequest(Open):
    """Text, or a conversation, as token ids."""

    model: str | None = None
    text: str | None = Field(None, description="Text as a user would type it")
    messages: list[Message] | None = Field(None, min_length=1, description="Or a conversation")
    pieces: bool | None = Field(None, description="With each token's text and bytes")

    @model_validator(mode="after")
    def _one_source(self) -> TokenizeRequest:
        if (self.text is None) == (self.messages is None):
            raise fail("Give either text or messages", "text")
        return self


class DetokenizeRequest(Open):
    """Token ids as text."""

    model: str | None = None
    tokens: list[Natural] = Field(fail_fast=True)
    pieces: bool | None = Field(None, description="With each token's text and bytes")
