"""Calls: what is written is read back, however it is cut."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tinyllm.api.constraints.tool_calls import CallArguments, CallReader, CallStart, write_call

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
CALLS = st.lists(
    st.tuples(st.text("abc_-9", min_size=1), st.dictionaries(st.text(), VALUES, max_size=3)),
    min_size=1,
    max_size=3,
)


@given(CALLS, st.data())
def test_calls_are_read_back(calls: list[tuple[str, Any]], data: st.DataObject) -> None:
    text = "\n".join(write_call(name, arguments) for name, arguments in calls)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    reader, found = CallReader(), []
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        found += reader.push(text[start:end])
    names = [(f.index, f.name) for f in found if isinstance(f, CallStart)]
    assert names == list(enumerate(name for name, _ in calls))
    for index, (_, arguments) in enumerate(calls):
        parts = [f.text for f in found if isinstance(f, CallArguments) and f.index == index]
        assert json.loads("".join(parts)) == arguments
