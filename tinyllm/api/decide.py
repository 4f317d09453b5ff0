"""`tool_choice: auto`: does the model want to call a tool?"""

from __future__ import annotations

from collections.abc import Sequence

from tinyllm.api.chat import Conversation
from tinyllm.api.generation import Caller
from tinyllm.api.mailbox import Bell
from tinyllm.api.protocol import Tool


async def wants_call(
    conversation: Conversation, tools: Sequence[Tool], bell: Bell, caller: Caller, key: str
) -> bool:
    return True
