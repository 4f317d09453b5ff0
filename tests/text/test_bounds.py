"""A chat template that would run for ever, or fill the memory, is an error of the model's."""

from __future__ import annotations

import pytest

from tinyllm.errors import TokenizerError
from tinyllm.text.chat_template import ChatTemplates
from tinyllm.text.stand_ins import ControlTexts


def render(source: str) -> str:
    templates = ChatTemplates({"default": source}, {}, ControlTexts([]))
    return templates.render([{"role": "user", "content": "hi"}], None, True, None, {})[0]


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ 'a' * 10 ** 9 }}",
        "{{ 10 ** 9 * [1] }}",
        "{{ 9 ** 9 ** 9 }}",
        "{% for i in range(10 ** 9) %}{% endfor %}",
    ],
)
def test_no_end_is_an_error(source: str) -> None:
    with pytest.raises(TokenizerError, match="chat template"):
        render(source)


def test_what_loops_see_is_unchanged() -> None:
    source = (
        "{% for m in messages %}{{ loop.index }}{{ loop.last }}{{ loop.length }}{{ m.content }}"
        "{% endfor %}{% for k, v in messages[0].items() %}{{ k }}{% endfor %}"
        "{% for x in nothing %}{% else %}none{% endfor %}"
        "{% for m in messages if m.role == 'user' %}{{ m.role }}{% endfor %}"
        "{% for c in messages | map(attribute='content') %}{{ c * 2 }}{% endfor %}"
    )
    assert render(source) == "1True1hirolecontentnoneuserhihi"
