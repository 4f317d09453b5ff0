"""Bounds on what a chat template may do: it comes with the checkpoint, from whoever made that.

Jinja's sandbox keeps a template from the machine, but not from running for ever. So every `for`
counts what it goes through, against a sum for all loops of one rendering, and neither texts nor
numbers grow without end by multiplying.
"""

from __future__ import annotations

from typing import Any

import jinja2
import jinja2.runtime
import jinja2.sandbox
from jinja2 import nodes

MAX_ITERATIONS = 2_000_000  # of all the loops of a rendering together
MAX_REPEATED = 1 << 24  # letters or items that come of a few by multiplying
MAX_POWER = 1024  # base and exponent
COUNTER = "_iterations_left"  # a variable of the rendering, and the filter that reads it


class BoundedEnvironment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The sandbox with bounds. For trees of `with_counted_loops`, with `bounds()` among
    the variables."""

    intercepted_binops = frozenset(("*", "**"))

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.filters[COUNTER] = _counted

    def call_binop(
        self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any
    ) -> Any:
        for many, times in ((left, right), (right, left)):
            is_repetition = isinstance(times, int) and isinstance(many, (str, bytes, list, tuple))
            if is_repetition and len(many) * times > MAX_REPEATED:
                raise jinja2.TemplateRuntimeError("it repeats something too often")
        if operator == "**" and max(abs(left), abs(right)) > MAX_POWER:
            raise jinja2.TemplateRuntimeError("it raises a number to a power that is too high")
        return super().call_binop(context, operator, left, right)


def with_counted_loops(template: nodes.Template) -> nodes.Template:
    """A syntax tree in which what every loop goes through is counted; the tree is changed."""
    for loop in list(template.find_all(nodes.For)):
        loop.iter = nodes.Filter(loop.iter, COUNTER, [], [], None, None, lineno=loop.lineno)
    return template


def bounds() -> dict[str, Any]:
    """The variables of one rendering that its bounds need."""
    return {COUNTER: [MAX_ITERATIONS]}


@jinja2.pass_context
def _counted(context: jinja2.runtime.Context, items: Any) -> Any:
    """What a loop goes through, taken off what all of them together may."""
    if not hasattr(items, "__len__"):
        items = list(items)
    left = context[COUNTER]
    left[0] -= len(items)
    if left[0] < 0:
        raise jinja2.TemplateRuntimeError(f"its loops go round more than {MAX_ITERATIONS:,} times")
    return items
