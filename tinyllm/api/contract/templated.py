"""Fields for what a conversation's template is told."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from tinyllm.api.contract.structured import StructuredRequest


class TemplatedRequest(StructuredRequest):
    """A request whose prompt a chat template makes."""

    continue_final_message: bool | None = Field(
        None, description="Go on with the last message, the assistant's, instead of answering it"
    )
    add_generation_prompt: bool | None = Field(
        None, description="Accepted as the opposite of continue_final_message"
    )
    chat_template_kwargs: dict[str, Any] | None = Field(
        None, description="Handed to the chat template; enable_thinking as reasoning.enabled"
    )
