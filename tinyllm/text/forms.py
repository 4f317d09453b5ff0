"""In which forms a chat template takes a message's content and a call's arguments.

A message's content is a string or a list of parts, a call's arguments a JSON string or an object,
and each published template was written for one of the two, or for both. Which, its syntax tree
says: is there a loop over the content, a test of whether it is a string? Letters don't: Qwen3's
template has `'</think>' in message.content`, and walks through nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from jinja2 import nodes

ContentForm = Literal["string", "parts", "either"]
ArgumentsForm = Literal["string", "object"]

# Filters that give (some of) the elements that they were given, and tests that ask for the form.
PASSING = {"default", "d", "list", "select", "reject", "selectattr", "rejectattr", "reverse"}
ASKING = {"string", "iterable", "sequence", "mapping"}
READING_OBJECTS = {"tojson", "items", "dictsort"}


@dataclass(frozen=True)
class Forms:
    """What a template takes: of a message's content, and of a call's arguments."""

    content: ContentForm
    arguments: ArgumentsForm


def forms_of(template: nodes.Template) -> Forms:
    """Read both off a parsed template (`jinja2.Environment.parse`)."""
    return Forms(_content_form(template), _arguments_form(template))


def _content_form(template: nodes.Template) -> ContentForm:
    is_content = _follow(template, "content")
    loops = any(is_content(loop.iter) for loop in template.find_all(nodes.For))
    # content[0]['text']: an element of a list of parts. (content[0] alone may be a letter.)
    picks = any(
        isinstance(inner, nodes.Getitem)
        and isinstance(inner.arg, nodes.Const)
        and isinstance(inner.arg.value, int)
        and is_content(inner.node)
        for inner in _looked_into(template)
    )
    if not loops and not picks:
        return "string"
    asks = any(t.name in ASKING and is_content(t.node) for t in template.find_all(nodes.Test))
    return "either" if asks else "parts"


def _arguments_form(template: nodes.Template) -> ArgumentsForm:
    is_arguments = _follow(template, "arguments")
    if not any(map(is_arguments, template.find_all((nodes.Getattr, nodes.Getitem, nodes.Call)))):
        return "object"  # never looked at, or handed on whole with the call
    reads_objects = (
        any(
            f.name in READING_OBJECTS and f.node is not None and is_arguments(f.node)
            for f in template.find_all(nodes.Filter)
        )
        or any(t.name in ASKING and is_arguments(t.node) for t in template.find_all(nodes.Test))
        or any(is_arguments(loop.iter) for loop in template.find_all(nodes.For))
        or any(map(is_arguments, _looked_into(template)))
    )
    return "object" if reads_objects else "string"


def _looked_into(template: nodes.Template) -> Iterator[nodes.Node]:
    """Every expression of which an attribute or an element is asked for."""
    yield from (node.node for node in template.find_all(nodes.Getattr))
    yield from (node.node for node in template.find_all(nodes.Getitem))


def _follow(template: nodes.Template, key: str) -> Callable[[nodes.Node | None], bool]:
    """A function that says whether an expression is what stands under `key` in something.

    That is `x.content`, `x['content']`, `x.get('content')`, a variable that one of these was
    assigned to, a macro's parameter that one was passed for; behind filters that pass elements on,
    slices, and in either arm of a choice.
    """
    names: set[str] = set()

    def is_it(node: nodes.Node | None) -> bool:
        if isinstance(node, nodes.Name):
            return node.name in names
        if isinstance(node, nodes.Getattr):
            return node.attr == key
        if isinstance(node, nodes.Getitem):
            if isinstance(node.arg, nodes.Slice):
                return is_it(node.node)
            return isinstance(node.arg, nodes.Const) and node.arg.value == key
        if isinstance(node, nodes.Filter):
            return node.name in PASSING and is_it(node.node)
        if isinstance(node, nodes.CondExpr):
            return is_it(node.expr1) or is_it(node.expr2)
        if isinstance(node, (nodes.Or, nodes.And)):
            return is_it(node.left) or is_it(node.right)
        return (
            isinstance(node, nodes.Call)
            and isinstance(node.node, nodes.Getattr)
            and node.node.attr == "get"
            and bool(node.args)
            and isinstance(node.args[0], nodes.Const)
            and node.args[0].value == key
        )

    macros = {macro.name: macro for macro in template.find_all(nodes.Macro)}
    before = -1
    while len(names) > before:  # until no variable is found to stand for it any more
        before = len(names)
        for assign in template.find_all(nodes.Assign):
            if isinstance(assign.target, nodes.Name) and is_it(assign.node):
                names.add(assign.target.name)
        for call in template.find_all(nodes.Call):
            names |= {name for name, value in _passed(call, macros) if is_it(value)}
    return is_it


def _passed(
    call: nodes.Call, macros: Mapping[str, nodes.Macro]
) -> Iterator[tuple[str, nodes.Expr]]:
    """A macro's parameters with what is passed for them; nothing for any other call."""
    macro = macros.get(call.node.name) if isinstance(call.node, nodes.Name) else None
    if macro is not None:
        yield from zip((parameter.name for parameter in macro.args), call.args, strict=False)
        yield from ((keyword.key, keyword.value) for keyword in call.kwargs)
