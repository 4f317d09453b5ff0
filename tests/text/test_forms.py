"""In which forms a template takes content and arguments, read off its syntax tree."""

from __future__ import annotations

import jinja2
import pytest

from tinyllm.text.forms import forms_of


def parse(source: str) -> jinja2.nodes.Template:
    return jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(source)


@pytest.mark.parametrize(
    ("template", "form"),
    [
        ("{{ message['role'] + message['content'] }}", "string"),
        ("{% if m.content is not string %}{{ raise_exception('x') }}{% endif %}", "string"),
        ("{% set content = m['content'] | trim %}{% for x in content.split('a') %}{% endfor %}",
         "string"),
        # A membership test is no loop: Qwen3, DeepSeek R1, gpt-oss.
        ("{% if '</think>' in message.content %}{{ message.content.split('</think>')[-1] }}"
         "{% endif %}", "string"),
        ("{% if m.content[0] == '<' %}{{ m.content[1:] }}{% endif %}", "string"),
        ("{% for t in message.content.tools %}{% endfor %}", "string"),
        ("{% for line in message['content'] %}{{ line['text'] }}{% endfor %}", "parts"),
        ("{%- for p in message.content -%}{{ p.text }}{% endfor %}", "parts"),
        ("{% for p in message.content | selectattr('type', 'equalto', 'text') %}{% endfor %}",
         "parts"),
        ("{{ message['content'][0]['text'] }}", "parts"),
        ("{% set c = message.get('content') %}{% for p in c or [] %}{% endfor %}", "parts"),
        ("{% if m['content'] is string %}{% else %}{% for p in m['content'] %}{% endfor %}"
         "{% endif %}", "either"),
        # Through a macro, under another name: GLM, Kimi, SmolVLM.
        ("{% macro show(it) %}{% if it is string %}{{ it }}{% else %}{% for p in it %}{{ p.text }}"
         "{% endfor %}{% endif %}{% endmacro %}{{ show(m.content) }}", "either"),
        ("{% macro show(it) %}{% for p in it %}{% endfor %}{% endmacro %}{{ show(it=m.content) }}",
         "parts"),
    ],
)  # fmt: skip
def test_content(template: str, form: str) -> None:
    assert forms_of(parse(template)).content == form


@pytest.mark.parametrize(
    ("template", "form"),
    [
        ("{{ message.content }}", "object"),
        ("{{ message.tool_calls | tojson }}", "object"),
        ("{{ call.arguments | tojson }}", "object"),
        ("{% for k, v in call.arguments.items() %}{% endfor %}", "object"),
        ("{% for k, v in call.arguments | items %}{% endfor %}", "object"),
        ("{% if call.arguments is string %}{{ call.arguments }}{% else %}{% endif %}", "object"),
        ("{% set a = call['arguments'] %}{{ a | tojson }}", "object"),
        # DeepSeek R1's: glued to other text
        ("{{ '```json' + '\n' + tool['function']['arguments'] + '\n' }}", "string"),
        ("{% set a = call.arguments %}{{ a }}", "string"),
    ],
)
def test_arguments(template: str, form: str) -> None:
    assert forms_of(parse(template)).arguments == form
