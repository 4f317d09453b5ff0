"""Stop strings, against a search in the whole text."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tinyllm.api.constraints.stops import StopStrings

LETTERS = st.text("ab", max_size=12)


@given(st.lists(LETTERS, max_size=6), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_what_is_shown_is_the_text_before_the_first_stop(
    pieces: list[str], stops: list[str]
) -> None:
    finder = StopStrings(stops)
    shown, seen = "", ""
    for piece in pieces:
        if finder.hit:
            break
        shown += finder.push(piece)
        seen += piece
        assert seen.startswith(shown)
        assert not any(stop in shown for stop in stops)
    found = [(at + len(stop), at) for stop in stops if (at := seen.find(stop)) >= 0]
    assert finder.hit == bool(found)
    if finder.hit:  # the first to be complete, the longest of several
        assert shown == seen[: min(found)[1]]
    else:
        assert shown + finder.flush() == seen


def test_nothing_is_held_that_cannot_become_a_stop() -> None:
    finder = StopStrings(["xyz"])
    assert finder.push("ab") == "ab"
    assert finder.push("cx") == "c"
    assert finder.push("y") == ""
    assert finder.push("!") == "xy!"
    assert finder.push("xyz") == "" and finder.hit
    assert finder.push("more") == "" and finder.flush() == ""


def test_a_letter_costs_the_same_however_long_the_stop_string() -> None:
    finder = StopStrings(["a" * 50_000 + "b"])
    shown = [finder.push("a") for _ in range(50_010)]  # a search from the start: 38 s
    assert "".join(shown) == "a" * 10
    assert finder.push("b") == "" and finder.hit
