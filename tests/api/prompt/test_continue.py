"""continue_final_message: the last assistant message is gone on with, not answered."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.support import PREFIXES, Live
from tinyllm.errors import TokenizerError
from tinyllm.tokenizer import Tokenizer

ASKED = {"role": "user", "content": "What is the capital of France?"}
BEGUN = {"role": "assistant", "content": "The capital of France"}


def test_the_prompt_ends_where_the_text_does(tokenizer: Tokenizer) -> None:
    ids = tokenizer.apply_chat_template([ASKED, BEGUN], continue_final_message=True)
    whole = tokenizer.render_chat([ASKED, BEGUN], add_generation_prompt=False)
    assert tokenizer.decode(ids) + "<|im_end|>\n" == whole
    trailing = tokenizer.apply_chat_template(
        [ASKED, {**BEGUN, "content": "It is <|im_end|> "}], continue_final_message=True
    )
    assert tokenizer.decode(trailing).endswith("It is <|im_end|> ")
    assert trailing.count(tokenizer.eos_ids[0]) == ids.count(tokenizer.eos_ids[0])


def test_a_template_that_hides_the_text_is_told(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tokenizer._templates.sources, "short", "{{ messages|length }}")
    with pytest.raises(TokenizerError, match="last message's text"):
        tokenizer.apply_chat_template(
            [ASKED, BEGUN], continue_final_message=True, chat_template="short"
        )


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_the_answer_goes_on(scripted: Live, prefix: str, stream: bool) -> None:
    body = {"messages": [ASKED, BEGUN], "continue_final_message": True}
    both = {**body, "add_generation_prompt": False}
    if stream:
        chunks = scripted.stream(prefix, both)
        deltas = [c["choices"][0]["delta"] for c in chunks if c["choices"]]
        text = "".join(delta.get("content") or "" for delta in deltas)
    else:
        text = scripted.chat(prefix, both).json()["choices"][0]["message"]["content"]
    assert text == " is Paris."
    again = scripted.chat(prefix, {"messages": [ASKED, BEGUN]}).json()
    assert again["choices"][0]["message"]["content"] == "The capital of France is Paris."


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": [ASKED]}, "messages[0]"),
        ({"messages": [ASKED, {"role": "assistant", "content": ""}]}, "messages[1]"),
        ({"messages": [ASKED, BEGUN], "add_generation_prompt": True}, "add_generation_prompt"),
        (
            {"messages": [ASKED, BEGUN], "response_format": {"type": "json_object"}},
            "response_format",
        ),
        (
            {
                "messages": [ASKED, BEGUN],
                "tools": [{"type": "function", "function": {"name": "f"}}],
                "tool_choice": "required",
            },
            "tool_choice",
        ),
    ],
)
def test_what_cannot_be_gone_on_with_is_refused(
    scripted: Live, body: dict[str, Any], param: str
) -> None:
    response = scripted.chat("/v1", {**body, "continue_final_message": True})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
