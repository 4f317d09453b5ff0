"""Answers in channels: the analysis is the reasoning, with a budget; words and calls behind it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tokenizers

from tests.api.prompt.test_call_forms import TOOL, made_tokenizer
from tests.api.support import Live, O, ScriptRunner, live, scripted_model
from tests.downloads import llama_cpp_models, real_tokenizer
from tinyllm.api.constraints.call_forms import GPT_OSS, HERMES
from tinyllm.api.house.settings import Settings
from tinyllm.api.prompt.channels import ANALYSIS, END, FINAL, TURN, has_channels
from tinyllm.api.prompt.tool_forms import form_of
from tinyllm.tokenizer import Tokenizer

TEMPLATE = (
    "{% if tools %}{{ 'namespace functions ' + (tools | tojson) }}{% endif %}"
    "{% for m in messages %}{{ '<|start|>' + m.role + '<|message|>' + m.content }}"
    "{% for c in m.tool_calls or [] %}{{ ' to=functions.' + c.function.name }}"
    "{{ '<|channel|>commentary json<|message|>' + (c.function.arguments | tojson) }}{% endfor %}"
    "{{ '<|end|>' }}{% endfor %}"
    "{# analysis #}{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)
CARD = {"aliases": ["nugen-flash-instruct"], "reasoning": "native"}


class PlannedRunner(ScriptRunner):
    """Writes `plan` behind the turn that the template opens, whatever is in it."""

    plan = ""

    def _logits(self, ids: list[int]) -> np.ndarray:
        turn = self.tokenizer.encode("<|start|>assistant", allow_special=True)
        n = len(turn)
        begun = next(i for i in range(len(ids)) if ids[i : i + n] == turn) + n
        script = [*self.tokenizer.encode(self.plan, allow_special=True), self.eos]
        logits = np.minimum(self._ranking, 8)
        logits[script[min(len(ids) - begun, len(script) - 1)]] = 12
        return logits


@pytest.fixture(scope="module")
def served() -> Iterator[Live]:
    tokenizer = made_tokenizer(TEMPLATE)
    runner = PlannedRunner(tokenizer)
    models = [scripted_model(tokenizer, runner, card=CARD)]
    with live(Settings(), lambda: models, runner=runner) as server:
        yield server


def ask(server: Live, plan: str, **more: Any) -> dict[str, Any]:
    assert isinstance(server.runner, PlannedRunner)
    server.runner.plan = plan
    response = server.chat(O, {"max_tokens": 400, **more})
    assert response.status_code == 200, response.text
    choice: dict[str, Any] = response.json()["choices"][0]
    return choice


THOUGHT = "<|channel|>analysis<|message|>Let me see.<|end|>"


def test_the_analysis_is_the_reasoning(served: Live) -> None:
    plan = f"{THOUGHT}<|start|>assistant<|channel|>final<|message|>It is warm."
    message = ask(served, plan)["message"]
    assert (message["reasoning"], message["content"]) == ("Let me see.", "It is warm.")


def test_no_effort_goes_straight_to_the_answer(served: Live) -> None:
    message = ask(served, "<|channel|>final<|message|>Warm.", reasoning_effort="none")["message"]
    assert message["content"] == "Warm." and not message.get("reasoning")


def test_a_budget_ends_the_analysis(served: Live) -> None:
    """Four tokens of thought, then the rest of the way to the final channel is forced."""
    cut = f"{ANALYSIS}Let {END}{TURN}{FINAL}Ok."
    message = ask(served, cut, reasoning={"max_tokens": 4})["message"]
    assert (message["reasoning"].strip(), message["content"]) == ("Let", "Ok.")


def test_a_call_on_its_channel_behind_the_thought(served: Live) -> None:
    plan = (
        f"{THOUGHT}<|start|>assistant to=functions.get_weather<|channel|>commentary json<|message|>"
        '{"city": "Rome", "days": 2}'
    )
    choice = ask(served, plan, tools=[TOOL], tool_choice="required")
    (call,) = choice["message"]["tool_calls"]
    assert call["function"]["name"] == "get_weather"
    assert json.loads(call["function"]["arguments"]) == {"city": "Rome", "days": 2}
    assert choice["message"]["reasoning"] == "Let me see."
    assert choice["finish_reason"] == "tool_calls"


@pytest.mark.downloads
def test_real_tokenizers() -> None:
    """gpt-oss's vocabulary and template have channels, each marker one token; Qwen3 has none."""
    template = llama_cpp_models() / "templates" / "openai-gpt-oss-120b.jinja"
    oss = Tokenizer(
        tokenizers.Tokenizer.from_file(str(real_tokenizer("gptoss") / "tokenizer.json")),
        chat_templates={"default": template.read_text(encoding="utf-8")},
        eos_ids=(200002,),
    )
    qwen = Tokenizer.from_folder(real_tokenizer("qwen3"))
    assert has_channels(oss) and not has_channels(qwen)
    assert len(oss.encode(END + TURN + FINAL, allow_special=True)) == 6
    assert (form_of(oss), form_of(qwen)) == (GPT_OSS, HERMES)
