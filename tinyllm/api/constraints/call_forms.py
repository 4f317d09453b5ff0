"""The forms in which families of models write a call of a tool; one record each.

A model was taught one of them, and its chat template writes the calls of earlier turns in it. So a
template is asked by way of an example: the form is the one that its rendering of a call shows
(`api/prompt/tool_forms.py`). Where no template has a word about tools, ours is Hermes's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tinyllm.api.constraints import quoted_values


@dataclass(frozen=True)
class CallForm:
    """How a call is written: `first`, then calls with `between` in between, then `last`.

    A call is `opening NAME middle ARGUMENTS closing`. Arguments are a JSON object; or, as
    "parameters", one `pair_opening KEY pair_middle VALUE pair_closing` each, where a value that the
    schema has as a string stands as it is and any other as JSON; or "quoted" (`quoted_values`).

    counted: behind the name stands a colon and the call's number.
    quote: what stands on both sides of a "quoted" string.
    marker: what tells a call from words; free text may come before it. None: a call is all.
    several: whether one answer may hold more than one call.
    """

    name: str
    opening: str
    middle: str
    closing: str
    between: str = ""
    first: str = ""
    last: str = ""
    marker: str | None = None
    several: bool = True
    arguments: Literal["json", "parameters", "quoted"] = "json"
    pair_opening: str = ""
    pair_middle: str = ""
    pair_closing: str = ""
    counted: bool = False
    quote: str = ""

    @property
    def in_free_text(self) -> bool:
        """Whether a call can be told from words that the model writes instead."""
        return self.marker is not None or self.opening.startswith("{")

    @property
    def string_end(self) -> str:
        """What ends a string that stands as it is; nothing where strings are JSON's."""
        return {"parameters": self.pair_closing, "quoted": self.quote, "json": ""}[self.arguments]

    def write(self, name: str, arguments: Any, number: int = 0) -> str:
        """One call, without what stands around several."""
        named = f"{name}:{number}" if self.counted else name
        return f"{self.opening}{named}{self.middle}{self._written(arguments)}{self.closing}"

    def _written(self, arguments: Any) -> str:
        if self.arguments == "json" or not isinstance(arguments, Mapping):
            return json.dumps(arguments, ensure_ascii=False)
        if self.arguments == "quoted":
            return quoted_values.write_pairs(arguments, self.quote)
        return "".join(
            f"{self.pair_opening}{key}{self.pair_middle}{self._value(value)}{self.pair_closing}"
            for key, value in arguments.items()
        )

    @staticmethod
    def _value(value: Any) -> str:
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


# Hermes 2 and 3, Qwen 2.5 and 3 and many that followed.
HERMES = CallForm(
    name="hermes",
    opening='<tool_call>\n{"name": "',
    middle='", "arguments": ',
    closing="}\n</tool_call>",
    between="\n",
    marker="<tool_call>",
)
# Llama 3.1 to 3.3: the call is the whole answer, and there is one.
LLAMA3 = CallForm(
    name="llama3",
    opening='{"name": "',
    middle='", "parameters": ',
    closing="}",
    several=False,
)
# Mistral up to Nemo and Large: a list behind one token. The template adds an id to each call of an
# earlier turn; the model isn't asked for one.
MISTRAL_LIST = CallForm(
    name="mistral list",
    first="[TOOL_CALLS][",
    opening='{"name": "',
    middle='", "arguments": ',
    closing="}",
    between=", ",
    last="]",
    marker="[TOOL_CALLS]",
)
# Mistral Small 3.2, Devstral, Ministral 3: a token before the name, another before the arguments.
MISTRAL = CallForm(
    name="mistral",
    opening="[TOOL_CALLS]",
    middle="[ARGS]",
    closing="",
    marker="[TOOL_CALLS]",
)
# Qwen3-Coder, Qwen3.5: each parameter between tags, strings as they are.
QWEN3_CODER = CallForm(
    name="qwen3 coder",
    opening="<tool_call>\n<function=",
    middle=">\n",
    closing="</function>\n</tool_call>",
    between="\n",
    marker="<tool_call>",
    arguments="parameters",
    pair_opening="<parameter=",
    pair_middle=">\n",
    pair_closing="\n</parameter>\n",
)
# gpt-oss's harmony: a message to the function on the commentary channel. What ends it, <|call|>,
# is among the tokens that end an answer.
GPT_OSS = CallForm(
    name="gpt-oss",
    opening=" to=functions.",
    middle="<|channel|>commentary json<|message|>",
    closing="",
    several=False,
)
# DeepSeek V3.1: tokens around all calls, around each, and between a name and its arguments.
DEEPSEEK = CallForm(
    name="deepseek",
    first="<｜tool▁calls▁begin｜>",
    opening="<｜tool▁call▁begin｜>",
    middle="<｜tool▁sep｜>",
    closing="<｜tool▁call▁end｜>",
    last="<｜tool▁calls▁end｜>",
    marker="<｜tool▁calls▁begin｜>",
)
# DeepSeek V3 and R1, and what was distilled from it: the arguments in a fence.
DEEPSEEK_R1 = CallForm(
    name="deepseek r1",
    first="<｜tool▁calls▁begin｜>",
    opening="<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
    middle="\n```json\n",
    closing="\n```<｜tool▁call▁end｜>",
    between="\n",
    last="<｜tool▁calls▁end｜>",
    marker="<｜tool▁calls▁begin｜>",
)
# GLM-4.5 and 4.6: keys and values between tags, strings as they are.
GLM = CallForm(
    name="glm",
    opening="<tool_call>",
    middle="\n",
    closing="</tool_call>",
    between="\n",
    marker="<tool_call>",
    arguments="parameters",
    pair_opening="<arg_key>",
    pair_middle="</arg_key>\n<arg_value>",
    pair_closing="</arg_value>\n",
)
# Kimi K2: a call is named by its function and its number, which later results refer to.
KIMI = CallForm(
    name="kimi",
    first="<|tool_calls_section_begin|>",
    opening="<|tool_call_begin|>functions.",
    counted=True,
    middle="<|tool_call_argument_begin|>",
    closing="<|tool_call_end|>",
    last="<|tool_calls_section_end|>",
    marker="<|tool_calls_section_begin|>",
)
# FunctionGemma, which is Gemma 3 270M taught to call.
FUNCTION_GEMMA = CallForm(
    name="functiongemma",
    opening="<start_function_call>call:",
    middle="{",
    closing="}<end_function_call>",
    marker="<start_function_call>",
    arguments="quoted",
    quote="<escape>",
)
# Gemma 4: the same with other tokens.
GEMMA4 = CallForm(
    name="gemma 4",
    opening="<|tool_call>call:",
    middle="{",
    closing="}<tool_call|>",
    marker="<|tool_call>",
    arguments="quoted",
    quote='<|"|>',
)

FORMS = (QWEN3_CODER, GLM, HERMES, MISTRAL, MISTRAL_LIST, DEEPSEEK, DEEPSEEK_R1, GPT_OSS, KIMI,
         FUNCTION_GEMMA, GEMMA4, LLAMA3)  # fmt: skip
