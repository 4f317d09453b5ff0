"""Chat as each family does it: tools in the template's own section, calls in the family's form."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from tests.api.support import Live, O, ScriptRunner, live, scripted_model
from tests.downloads import llama_cpp_models
from tinyllm.api.constraints.call_forms import (
    DEEPSEEK,
    DEEPSEEK_R1,
    FORMS,
    FUNCTION_GEMMA,
    GEMMA4,
    GLM,
    GPT_OSS,
    HERMES,
    KIMI,
    LLAMA3,
    MISTRAL,
    MISTRAL_LIST,
    QWEN3_CODER,
    CallForm,
)
from tinyllm.api.house.settings import Settings
from tinyllm.api.prompt.tool_forms import form_of
from tinyllm.tokenizer import Tokenizer

CONTROL = ("<|im_start|>", "<|im_end|>", "[TOOL_CALLS]", "[ARGS]", "<|channel|>", "<|message|>",
           "<|start|>", "<|end|>", "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>",
           "<｜tool▁sep｜>", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>",
           "<|tool_calls_section_begin|>", "<|tool_call_begin|>", "<|tool_call_argument_begin|>",
           "<|tool_call_end|>", "<|tool_calls_section_end|>", "<start_function_call>",
           "<end_function_call>", "<escape>", "<|tool_call>", "<tool_call|>", '<|"|>')  # fmt: skip
TURN = "{{ '<|im_start|>' + m.role + '\\n' }}"
# Each writes an earlier call as its family does.
CALLS = {
    HERMES.name: """{{ '<tool_call>\n{"name": "' + f.name + '", "arguments": ' + arguments
        + '}\n</tool_call>' }}""",
    LLAMA3.name: """{{ '{"name": "' + f.name + '", "parameters": ' + arguments + '}' }}""",
    MISTRAL_LIST.name: """{{ '[TOOL_CALLS][{"name": "' + f.name + '", "arguments": '
        + arguments + ', "id": "' + c.id + '"}]' }}""",
    MISTRAL.name: """{{ '[TOOL_CALLS]' + f.name + '[ARGS]' + arguments }}""",
    QWEN3_CODER.name: """{{ '<tool_call>\n<function=' + f.name + '>\n' }}
        {%- for k, v in f.arguments.items() %}
            {{- '<parameter=' + k + '>\n' + (v if v is string else v | tojson) }}
            {{- '\n</parameter>\n' }}
        {%- endfor %}{{ '</function>\n</tool_call>' }}""",
    DEEPSEEK.name: """{{ ('<｜tool▁calls▁begin｜>' if loop.first else '')
        + '<｜tool▁call▁begin｜>' + f.name + '<｜tool▁sep｜>' + arguments + '<｜tool▁call▁end｜>'
        + ('<｜tool▁calls▁end｜>' if loop.last else '') }}""",
    DEEPSEEK_R1.name: """{{ ('<｜tool▁calls▁begin｜>' if loop.first else '\n')
        + '<｜tool▁call▁begin｜>' + c.type + '<｜tool▁sep｜>' + f.name + '\n```json\n' + arguments
        + '\n```<｜tool▁call▁end｜>' + ('<｜tool▁calls▁end｜>' if loop.last else '') }}""",
    GLM.name: """{{ '<tool_call>' + f.name + '\n' }}
        {%- for k, v in f.arguments.items() %}
            {{- '<arg_key>' + k + '</arg_key>\n<arg_value>' }}
            {{- (v if v is string else v | tojson) + '</arg_value>\n' }}
        {%- endfor %}{{ '</tool_call>' }}""",
    KIMI.name: """{{ ('<|tool_calls_section_begin|>' if loop.first else '')
        + '<|tool_call_begin|>functions.' + f.name + ':' + (loop.index0 | string)
        + '<|tool_call_argument_begin|>' + arguments + '<|tool_call_end|>'
        + ('<|tool_calls_section_end|>' if loop.last else '') }}""",
    FUNCTION_GEMMA.name: """{{ '<start_function_call>call:' + f.name + '{' }}
        {%- for k, v in f.arguments | dictsort %}
            {{- (',' if not loop.first else '') + k + ':' }}
            {{- ('<escape>' + v + '<escape>') if v is string else v }}
        {%- endfor %}{{ '}<end_function_call>' }}""",
    GEMMA4.name: """{{ '<|tool_call>call:' + f.name + '{' }}
        {%- for k, v in f.arguments | dictsort %}
            {{- (',' if not loop.first else '') + k + ':' }}
            {{- ('<|"|>' + v + '<|"|>') if v is string else v }}
        {%- endfor %}{{ '}<tool_call|>' }}""",
    GPT_OSS.name: """{{ ' to=functions.' + f.name + '<|channel|>commentary json<|message|>'
        + arguments }}""",
}
FORM = pytest.mark.parametrize("form", FORMS, ids=[form.name for form in FORMS])
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city", "days"],
        },
    },
}


def template(form: CallForm) -> str:
    return (
        "{% if tools %}{{ 'Tools: ' + (tools | tojson) + '\\n' }}{% endif %}"
        "{% for m in messages %}" + TURN + "{% if m.content %}{{ m.content }}{% endif %}"
        "{% for c in m.tool_calls or [] %}{% set f = c.function %}"
        "{% set arguments = f.arguments | tojson %}"
        + CALLS[form.name]
        + "{% endfor %}{{ '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )


def made_tokenizer(chat_template: str) -> Tokenizer:
    """Bytes and control tokens."""
    vocab = {t: i for i, t in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = tokenizers.Tokenizer(models.BPE(vocab, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(n, special=True, normalized=False) for n in CONTROL])
    return Tokenizer(
        backend,
        chat_templates={"default": chat_template},
        named_tokens={"eos_token": "<|im_end|>"},
        eos_ids=(backend.token_to_id("<|im_end|>"),),
    )


@pytest.fixture(params=FORMS, ids=[form.name for form in FORMS])
def served(request: pytest.FixtureRequest) -> Iterator[tuple[Live, CallForm]]:
    """A server whose model was taught one form."""
    form: CallForm = request.param
    tokenizer = made_tokenizer(template(form))
    runner = ScriptRunner(tokenizer)
    runner.like_at_most(8)  # a byte is the first of several of the texts that it likes
    with live(Settings(), lambda: [scripted_model(tokenizer, runner)], runner=runner) as server:
        yield server, form


def ask(server: Live, **more: Any) -> dict[str, Any]:
    body = {"tools": [TOOL], "max_tokens": 600, **more}
    response = server.chat(O, body)
    assert response.status_code == 200, response.text
    choice: dict[str, Any] = response.json()["choices"][0]
    return choice


def says(runner: ScriptRunner, text: str) -> None:
    """Lets the model say a text in which control tokens are meant."""
    runner.script = [*runner.tokenizer.encode(text, allow_special=True), runner.eos]


def arguments(message: dict[str, Any]) -> list[Any]:
    return [json.loads(call["function"]["arguments"]) for call in message["tool_calls"]]


def test_a_call_is_forced_into_the_familys_form(served: tuple[Live, CallForm]) -> None:
    """The model would talk; under the grammar it calls, whole and streamed alike."""
    server, form = served
    assert server.runner is not None
    if form.arguments != "json":  # where a string ends is the model's to say
        says(server.runner, form.write("get_weather", {"city": "Rome", "days": 2}))
    choice = ask(server, tool_choice="required", parallel_tool_calls=False)
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    (given,) = arguments(choice["message"])
    assert set(given) == {"city", "days"} and isinstance(given["days"], int)
    body = {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False,
            "max_tokens": 600}  # fmt: skip
    deltas = [
        call
        for chunk in server.stream(O, body)
        for choice in chunk["choices"]
        for call in choice["delta"].get("tool_calls", ())
    ]
    assert deltas[0]["function"]["name"] == "get_weather"
    assert json.loads("".join(d["function"]["arguments"] for d in deltas)) == given


@pytest.mark.parametrize("spare", [0, 1, 30])
def test_a_call_that_is_cut_is_whole(served: tuple[Live, CallForm], spare: int) -> None:
    """A string would go on for ever, without quotes as with them: it ends where the tokens do."""
    server, _ = served
    assert server.runner is not None
    says(server.runner, "q" * 999)
    wanted = {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False}
    refused = server.chat(O, {**wanted, "max_tokens": 4})
    assert refused.status_code == 400, refused.text
    shortest = int(refused.json()["error"]["message"].split("takes ")[1].split(".")[0])
    (given,) = arguments(ask(server, **wanted, max_tokens=shortest + spare)["message"])
    assert isinstance(given["city"], str) and isinstance(given["days"], int)


def test_words_and_several_calls_as_the_model_likes(served: tuple[Live, CallForm]) -> None:
    server, form = served
    assert server.runner is not None
    if not form.in_free_text:  # decided before the answer begins
        return
    runner = server.runner
    wanted = [{"city": "Rome", "days": 2}, {"city": 'a "b"\n<c>', "days": 1}]
    wanted = wanted if form.several else wanted[:1]
    said = "" if form.marker is None else "Let me look."
    calls = form.between.join(
        form.write("get_weather", each, number) for number, each in enumerate(wanted)
    )
    text = said + form.first + calls + form.last
    says(runner, text)
    choice = ask(server)
    assert (choice["message"]["content"] or "") == said
    assert arguments(choice["message"]) == wanted
    assert choice["finish_reason"] == "tool_calls"
    runner.say("No tool < is [needed] here.")
    choice = ask(server)
    assert choice["message"]["content"] == "No tool < is [needed] here."
    assert "tool_calls" not in choice["message"] and choice["finish_reason"] == "stop"


def test_earlier_calls_are_written_in_the_form(served: tuple[Live, CallForm]) -> None:
    """An id is cut to what Mistral's templates take; the answer after a result may be words."""
    server, _ = served
    assert server.runner is not None
    server.runner.say("It is warm.")
    function = {"name": "get_weather", "arguments": '{"city": "Rome", "days": 1}'}
    messages = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "call_0123456789abcdef", "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": "call_0123456789abcdef", "content": "warm"},
    ]  # fmt: skip
    choice = ask(server, messages=messages)
    assert choice["message"]["content"] == "It is warm."


@FORM
def test_the_form_is_seen_in_the_template(form: CallForm) -> None:
    assert form_of(made_tokenizer(template(form))) is form
    assert form_of(made_tokenizer("{{ messages[0].content }}")) is None


REAL = {
    "Qwen-Qwen3-0.6B": HERMES, "Qwen-Qwen2.5-7B-Instruct": HERMES, "Qwen-QwQ-32B": HERMES,
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": HERMES, "Qwen3-Coder": QWEN3_CODER,
    "Qwen3.5-4B": QWEN3_CODER, "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": QWEN3_CODER,
    "meta-llama-Llama-3.1-8B-Instruct": LLAMA3, "meta-llama-Llama-3.2-3B-Instruct": LLAMA3,
    "meta-llama-Llama-3.3-70B-Instruct": LLAMA3, "unsloth-mistral-Devstral-Small-2507": MISTRAL,
    "mistralai-Ministral-3-14B-Reasoning-2512": MISTRAL,
    "mistralai-Mistral-Nemo-Instruct-2407": MISTRAL_LIST, "openai-gpt-oss-120b": GPT_OSS,
    "deepseek-ai-DeepSeek-V3.1": DEEPSEEK,
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": DEEPSEEK_R1,
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B": DEEPSEEK_R1,
    "moonshotai-Kimi-K2": KIMI, "google-gemma-4-31B-it": GEMMA4,
    "GLM-4.6": GLM,
    "google-gemma-2-2b-it": None, "microsoft-Phi-3.5-mini-instruct": None,
}  # fmt: skip


@pytest.mark.downloads
def test_the_form_is_seen_in_real_templates() -> None:
    folder = llama_cpp_models() / "templates"
    found = {
        name: form_of(made_tokenizer((folder / f"{name}.jinja").read_text(encoding="utf-8")))
        for name in REAL
    }
    assert found == REAL
