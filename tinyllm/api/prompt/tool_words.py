"""Tools put into words, for templates that know roles and text alone.

The wording and the examples are what the default model, small as it is, was found to follow: with
two or three worked examples it takes arguments out of the request and stops after one call, and
tells what a tool said in a sentence; without them it does neither.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tinyllm.api.constraints.call_forms import HERMES
from tinyllm.api.contract.tools import Tool

Chat = list[dict[str, Any]]

_INSTRUCTION = "You answer every request by calling a tool with arguments taken from the request.\n"
_CALLS = (
    ("Set an alarm for 7:30 tomorrow.", "set_alarm", {"time": "7:30", "day": "tomorrow"}),
    ("Look up pizza places in Naples", "find_places", {"query": "pizza places", "city": "Naples"}),
    ("Translate good morning to French", "translate",
     {"text": "good morning", "language": "French"}),
)  # fmt: skip
_RESULTS = (
    ("When does the train to Pisa leave?", "train_times", '{"departure": "14:05", "platform": 3}',
     "The train to Pisa leaves at 14:05 from platform 3."),
    ("Set an alarm for 7:30.", "set_alarm", '{"status": "set"}', "Your alarm is set for 7:30."),
)  # fmt: skip
_IN_WORDS = "\nAnswer in words."


def calling(chat: Chat, tools: Sequence[Tool]) -> Chat:
    """The conversation, laid out for a call to one of `tools`."""
    examples: Chat = []
    for request, name, arguments in _CALLS:
        examples.append({"role": "user", "content": request})
        examples.append({"role": "assistant", "content": HERMES.write(name, arguments)})
    listed = "\n".join(signature(tool) for tool in tools)
    spelled = [_spelled_out(message) for message in chat]
    return with_system(_after_system(spelled, examples), _INSTRUCTION + listed)


def answering(chat: Chat, tools: Sequence[Tool] = ()) -> Chat:
    """The conversation, laid out for an answer in words: what tools said stands in user turns."""
    out: Chat = []
    for message in chat:
        if message["role"] == "tool":
            said = f"{message['name']} says: {message['content']}"
            if out and out[-1]["role"] == "user":
                out[-1] = {"role": "user", "content": _longer(out[-1]["content"], f"\n\n{said}")}
            else:
                out.append({"role": "user", "content": said})
        elif message.get("tool_calls"):
            if message["content"]:
                out.append({"role": message["role"], "content": message["content"]})
        else:
            out.append(dict(message))
    if not chat or chat[-1]["role"] != "tool":
        return out
    out[-1] = {"role": "user", "content": _longer(out[-1]["content"], _IN_WORDS)}
    examples: Chat = []
    for request, name, result, answer in _RESULTS:
        asked = f"{request}\n\n{name} says: {result}{_IN_WORDS}"
        examples.append({"role": "user", "content": asked})
        examples.append({"role": "assistant", "content": answer})
    return _after_system(out, examples)


def with_system(chat: Chat, note: str) -> Chat:
    """Add a note to the system message, which is put first if there is none."""
    if chat and chat[0]["role"] == "system":
        content = f"{chat[0]['content']}\n\n{note}" if chat[0]["content"] else note
        return [{**chat[0], "content": content}, *chat[1:]]
    return [{"role": "system", "content": note}, *chat]


def signature(tool: Tool) -> str:
    """`get_weather(location: string, unit: "C" | "F"): Get current weather`."""
    parameters = tool.function.parameters or {}
    properties = parameters.get("properties")
    names = properties if isinstance(properties, Mapping) else {}
    shown = ", ".join(f"{name}: {_kind(schema)}" for name, schema in list(names.items())[:24])
    description = (tool.function.description or "").strip()[:400]
    return f"{tool.function.name}({shown})" + (f": {description}" if description else "")


def _kind(schema: Any) -> str:
    """A property's type in a word or two."""
    if not isinstance(schema, Mapping):
        return "any"
    options = schema.get("enum")
    if isinstance(options, list) and options:
        return " | ".join(repr(option)[:40] for option in options[:8])
    kind = schema.get("type", "any")
    return " | ".join(map(str, kind)) if isinstance(kind, list) else str(kind)[:40]


def _spelled_out(message: Mapping[str, Any]) -> dict[str, Any]:
    """One message with its calls, or what a tool said, as text."""
    if message["role"] == "tool":
        text = f"<tool_response>\n{message['content']}\n</tool_response>"
        return {"role": "user", "content": text}
    calls = message.get("tool_calls")
    if not calls:
        return dict(message)
    written = [HERMES.write(c["function"]["name"], c["function"]["arguments"]) for c in calls]
    content = [message["content"], *written] if message["content"] else written
    return {"role": message["role"], "content": "\n".join(content)}


def _after_system(chat: Chat, examples: Chat) -> Chat:
    """`examples` between the system messages at the start and the rest."""
    start = next((i for i, m in enumerate(chat) if m["role"] != "system"), len(chat))
    return [*chat[:start], *examples, *chat[start:]]


def _longer(content: Any, text: str) -> Any:
    if isinstance(content, str):
        return content + text
    return [*content, {"type": "text", "text": text.lstrip()}]
