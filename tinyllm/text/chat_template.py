"""A model's chat templates: messages in OpenAI's form → the text that the model was trained on.

Templates come with the checkpoint, so they run in Jinja's sandbox and within bounds (`bounds`),
with the functions and settings that published ones expect
(`transformers/utils/chat_template_utils.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from types import NoneType
from typing import Any

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.parser import Parser

from tinyllm.errors import TokenizerError
from tinyllm.text.bounds import BoundedEnvironment, bounds, with_counted_loops
from tinyllm.text.forms import ContentForm, Forms, forms_of
from tinyllm.text.stand_ins import ControlTexts, StandIns

IMAGE_PARTS = ("image", "image_url", "input_image")
ROLES = ("system", "developer", "user", "assistant", "tool")  # others where a template names them
REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")


class ChatTemplates:
    """The templates of one model by name, and the tokens that they call by name.

    Args:
        sources: Jinja by name: "default", and perhaps "tool_use" and others.
        named_tokens: `bos_token` and the like → the token's text.
        control: the control tokens: what nobody but the template may write.
    """

    def __init__(
        self, sources: Mapping[str, str], named_tokens: Mapping[str, str], control: ControlTexts
    ) -> None:
        self.sources = dict(sources)
        self._named_tokens = dict(named_tokens)
        self._control = control
        self._compiled: dict[str, tuple[jinja2.Template, Forms]] = {}

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
        image_token: str | None,
        extra: Mapping[str, Any],
    ) -> tuple[str, StandIns]:
        """The rendered chat with letters swapped, and what undoes that.

        What reads as a control token in the text, the template (or `image_token`) has written.
        `extra` goes to the template; with `chat_template` another of its names is chosen. Raises
        `TokenizerError`.
        """
        variables = dict(extra)
        name = variables.pop("chat_template", None) or (
            "tool_use" if tools and "tool_use" in self.sources else "default"
        )
        template, forms = self._template(name)
        for i, message in enumerate(messages):
            _check(f"messages[{i}]", message, self.sources[name])
        stand_ins = StandIns(self._control, [self.sources[name], messages, tools, variables])
        chat = [
            _prepare(stand_ins.protect_message(message), image_token, forms) for message in messages
        ]
        context = {
            **self._named_tokens,
            **stand_ins.protect(variables),
            "messages": chat,
            "tools": stand_ins.protect(list(tools)) if tools else None,
            "documents": stand_ins.protect(variables.get("documents")),
            "add_generation_prompt": add_generation_prompt,
            **bounds(),
        }
        try:
            return _rendered(template, context), stand_ins
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            raise TokenizerError(f"the chat template refuses these messages: {error}") from error
        except (RecursionError, OverflowError, MemoryError) as error:
            raise TokenizerError(f"the chat template cannot be run: {error!r}") from error

    def _template(self, name: object) -> tuple[jinja2.Template, Forms]:
        if not isinstance(name, str) or name not in self.sources:
            if not self.sources:
                raise TokenizerError(
                    "this model has no chat template: it completes text and was not made for chat"
                )
            raise TokenizerError(f"no chat template is called {name!r}; {sorted(self.sources)} are")
        if name not in self._compiled:
            try:
                tree = _environment().parse(self.sources[name])
                forms = forms_of(tree)
                template = _environment().from_string(with_counted_loops(tree))
                self._compiled[name] = template, forms
            except jinja2.TemplateError as error:
                raise TokenizerError(f"the chat template is not valid Jinja: {error}") from error
        return self._compiled[name]


def _check(where: str, message: Mapping[str, Any], template: str) -> None:
    """TokenizerError for what most templates would write down, or fail at, without saying why."""
    role, content = message.get("role"), message.get("content")
    named = f"'{role}'" in template or f'"{role}"' in template
    if not isinstance(role, str) or not (role in ROLES or named):
        raise TokenizerError(f"{where}: role must be one of {', '.join(ROLES)}, not {role!r}")
    if content is None and role in ("system", "developer", "user"):
        raise TokenizerError(f'{where}: content is missing: {{"role": {role!r}, "content": …}}')
    if not isinstance(content, (str, list, Mapping, NoneType)):
        raise TokenizerError(f"{where}: content must be a text or a list of parts, not {content!r}")


def _rendered(template: jinja2.Template, context: dict[str, Any]) -> str:
    """The text. A turn of calls without content has a null there if the template fails otherwise.

    DeepSeek R1's distills know such a turn by `content is none`; others write "None" for it.
    """
    try:
        return template.render(context)
    except jinja2.UndefinedError:
        chat = [{"content": None, **m} if m.get("tool_calls") else m for m in context["messages"]]
        if chat == context["messages"]:
            raise
        return template.render({**context, "messages": chat})


def _prepare(message: dict[str, Any], image_token: str | None, forms: Forms) -> dict[str, Any]:
    """A message in the template's forms, and under the names that it may look for.

    A key that holds null is left out: templates ask whether it is there, and write "None" if it is.
    """
    message = {key: value for key, value in message.items() if value is not None}
    calls = message.get("tool_calls")
    if isinstance(calls, list) and forms.arguments == "object":
        message["tool_calls"] = [_with_object(call) for call in calls]
    if "content" in message:
        message["content"] = _content(message["content"], image_token, forms.content)
    reasoning = next((message[key] for key in REASONING_KEYS if key in message), None)
    if reasoning is not None:  # gpt-oss's template reads the second of the names
        message = {"thinking": reasoning, **message, "reasoning_content": reasoning}
    return message


def _content(content: Any, image_token: str | None, form: ContentForm) -> Any:
    if isinstance(content, str) and form == "parts":
        return [{"type": "text", "text": content}]
    if not isinstance(content, list) or form != "string":
        return content
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind in IMAGE_PARTS and image_token:
            texts.append(image_token)
        else:
            raise TokenizerError(
                f"a content part of type {kind!r} cannot be put into this model's prompt"
                + (': it needs {"type": "text", "text": …}' if kind in ("text", None) else "")
            )
    return "\n".join(texts)


def _with_object(call: Any) -> Any:
    """OpenAI sends a call's arguments as a JSON string; most templates want the object."""
    function = call.get("function") if isinstance(call, dict) else None
    if isinstance(function, dict) and isinstance(function.get("arguments"), str):
        try:
            arguments = json.loads(function["arguments"])
        except (ValueError, RecursionError):
            return call
        if isinstance(arguments, dict):
            return {**call, "function": {**function, "arguments": arguments}}
    return call


# -- what published templates use ------------------------------------------------------------------


@lru_cache(maxsize=1)
def _environment() -> BoundedEnvironment:
    """The environment that published templates expect, as `transformers` sets it up."""
    environment = BoundedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _Generation]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


class _Generation(jinja2.ext.Extension):
    """`{% generation %} … {% endgeneration %}` marks the model's words; here it does nothing."""

    tags = {"generation"}  # noqa: RUF012  (Jinja's own interface)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)  # what is set inside isn't set outside


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON: Jinja's own filter escapes `<` and `&` for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)
