"""Chats and tools in every form that a client sends them in, for templates to render."""

from __future__ import annotations

import copy
import json
from typing import Any

Chat = list[dict[str, Any]]

TOOLS: Chat = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": 'The weather <now> & "here"',
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "Name of a city"},
                    "days": {"type": "integer", "enum": [1, 2]},
                },
                "required": ["city"],
            },
        },
    }
]


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def text(content: str) -> Chat:
    return [{"type": "text", "text": content}]


CALL = {
    "id": "call00001",
    "type": "function",
    "function": {"name": "get_weather", "arguments": {"city": "Łódź", "days": 1}},
}
RESULT = {"role": "tool", "tool_call_id": "call00001", "name": "get_weather", "content": "sunny"}

CHATS: dict[str, Chat] = {
    "question": [user("Hi, a  b")],
    "system": [
        {"role": "system", "content": "Be brief."},
        user("Hi"),
        assistant("Hello."),
        user("And?"),
    ],
    "thought": [user("Hi"), assistant("<think>\nwell\n</think>\n\nHello."), user("And?")],
    "reasoning": [user("Hi"), assistant("Hello.", reasoning_content="well"), user("And?")],
    "parts": [
        {"role": "system", "content": text("Be brief.")},
        user(text("Hi")),
        assistant(text("Hello.")),
        user(text("And?")),
    ],
    "call": [
        user("Weather?"),
        assistant("", tool_calls=[CALL]),
        RESULT,
        assistant("Sunny."),
        user("Thanks"),
    ],
    "call, no content": [user("Weather?"), assistant(None, tool_calls=[CALL]), RESULT],
}


def with_argument_strings(chat: Chat) -> Chat:
    """As OpenAI's clients send calls: their arguments as JSON in a string."""
    chat = copy.deepcopy(chat)
    for message in chat:
        for call in message.get("tool_calls") or []:
            arguments = json.dumps(call["function"]["arguments"], ensure_ascii=False)
            call["function"]["arguments"] = arguments
    return chat


def with_parts(chat: Chat) -> Chat:
    """Each content as a list of one part."""
    return [
        {**message, "content": text(message["content"])}
        if isinstance(message.get("content"), str)
        else message
        for message in chat
    ]


def with_strings(chat: Chat) -> Chat:
    """Each content as a string."""
    return [
        {**message, "content": "\n".join(part["text"] for part in message["content"])}
        if isinstance(message.get("content"), list)
        else message
        for message in chat
    ]
