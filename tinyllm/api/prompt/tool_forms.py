"""Which form of call a model was taught: seen in how its chat template writes one."""

from __future__ import annotations

import json
from typing import Any

from tinyllm.api.constraints.call_forms import FORMS, CallForm
from tinyllm.errors import TokenizerError
from tinyllm.tokenizer import Tokenizer

# A call that no template has in its instructions. Its id is as long as Mistral's templates want it.
_NAME, _ARGUMENTS, _ID = "try_it", {"word": "abc"}, "123456789"


def form_of(tokenizer: Tokenizer) -> CallForm | None:
    """The form that the template writes an earlier turn's call in; None if it is none of `FORMS`.

    The template is given such a turn, and each form is looked for in what comes out.
    """
    function = {"name": _NAME, "arguments": json.dumps(_ARGUMENTS)}  # as clients send it
    call = {"id": _ID, "type": "function", "function": function}
    question = {"role": "user", "content": "?"}
    result = {"role": "tool", "name": _NAME, "tool_call_id": _ID, "content": "!"}
    tool = {
        "type": "function",
        "function": {
            "name": _NAME,
            "description": "",
            "parameters": {"type": "object", "properties": {"word": {"type": "string"}}},
        },
    }
    if "tool_calls" not in (tokenizer.chat_template or ""):
        return None
    for content in ({"content": ""}, {}):  # DeepSeek R1's distills know a call by having none
        turn: dict[str, Any] = {"role": "assistant", "tool_calls": [call], **content}
        try:
            chat = [question, turn, result]
            text = tokenizer.render_chat(chat, tools=[tool], add_generation_prompt=False)
        except TokenizerError:
            continue
        if found := [form for form in FORMS if _written(form) in text]:
            return found[0]
    return None


def _written(form: CallForm) -> str:
    """The call without what a template may add behind its arguments: an id, white space."""
    return (form.first + form.write(_NAME, _ARGUMENTS)).removesuffix(form.closing)


def short_id(id: str) -> str:
    """A call's id as Mistral's templates want it: nine letters and digits."""
    plain = "".join(letter for letter in id if letter.isascii() and letter.isalnum())
    return plain[-9:].rjust(9, "0")
