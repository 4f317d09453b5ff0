"""Calls: what is written is read back, however it is cut, in the form of every family."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyllm.api.constraints.call_forms import FORMS, CallForm
from tinyllm.api.constraints.call_reader import (
    CallArguments,
    CallReader,
    CallSpec,
    CallStart,
    Found,
    Words,
)

FORM = pytest.mark.parametrize("form", FORMS, ids=[form.name for form in FORMS])
SCALARS = st.none() | st.booleans() | st.integers()
# Letters that a tag or a quote could be made of, and others.
TEXT = st.text('ab \n"\\{}[]<>/=,:é', max_size=12)
VALUES = st.recursive(
    SCALARS | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
CALLS = st.lists(
    st.tuples(
        st.text("abc_-9", min_size=1),
        st.dictionaries(st.text("xyz_", min_size=1), VALUES, max_size=3),
    ),
    min_size=1,
    max_size=3,
)


def read(reader: CallReader, text: str, cuts: list[int]) -> list[Found]:
    found: list[Found] = []
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        found += reader.push(text[start:end])
    return found + reader.finish()


def calls_in(found: list[Found]) -> list[tuple[str, Any]]:
    starts = [f for f in found if isinstance(f, CallStart)]
    assert [start.index for start in starts] == list(range(len(starts)))
    texts = [
        "".join(f.text for f in found if isinstance(f, CallArguments) and f.index == i)
        for i in range(len(starts))
    ]
    return [(s.name, json.loads(text)) for s, text in zip(starts, texts, strict=True)]


def written(form: CallForm, calls: list[tuple[str, Any]]) -> str:
    return form.first + form.between.join(form.write(*call) for call in calls) + form.last


@FORM
@settings(max_examples=40)
@given(calls=CALLS, data=st.data())
def test_calls_are_read_back(
    form: CallForm, calls: list[tuple[str, Any]], data: st.DataObject
) -> None:
    calls = calls if form.several else calls[:1]
    text = written(form, calls)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    texts = {name: frozenset(k for k, v in a.items() if isinstance(v, str)) for name, a in calls}
    if len(texts) < len(calls):  # two calls of one tool, whose values may differ in kind
        return
    assert calls_in(read(CallReader(CallSpec(form, texts)), text, cuts)) == calls


@FORM
@settings(max_examples=40)
@given(calls=CALLS, before=st.text('ab .<[{"t', max_size=9), data=st.data())
def test_words_around_calls(
    form: CallForm, calls: list[tuple[str, Any]], before: str, data: st.DataObject
) -> None:
    """Words come out whole and in their place; a half-begun call in them is words too."""
    if form.marker is None:
        return
    calls = [(name, {"n": 1}) for name, _ in (calls if form.several else calls[:1])]
    text = before + " " + written(form, calls) + "\nafter"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    found = read(CallReader(CallSpec(form, words=True)), text, cuts)
    assert calls_in(found) == calls
    said = "".join(f.text for f in found if isinstance(f, Words))
    assert said.split() == (before + " after").split()


def test_space_is_the_models_own() -> None:
    text = '<tool_call>{"name":  "f", "arguments": {"a": 1}}</tool_call>'
    assert calls_in(read(CallReader(), text, [])) == [("f", {"a": 1})]
