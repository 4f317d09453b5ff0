"""The thinking machine, token by token."""

from __future__ import annotations

import pytest

from tinyllm.api.constraints.thinking import Thinking, ThinkSpec, budget_for

OPEN, CLOSE, MORE, WORD = 1, 2, 3, 9


def run(spec: ThinkSpec | None, wanted: list[int]) -> tuple[list[int], list[str], Thinking]:
    """What comes out when the model wants `wanted` and obeys what is forced."""
    thinking, tokens, parts = Thinking(spec), [], []
    for want in wanted:
        forced = thinking.forced()
        tokens.append(forced[0] if forced else want)
        parts.append(thinking.push(tokens[-1]))
    return tokens, parts, thinking


@pytest.mark.parametrize("budget", [1, 2, 5])
def test_the_end_is_forced_when_the_budget_is_spent(budget: int) -> None:
    spec = ThinkSpec(budget, (CLOSE, MORE), frozenset({CLOSE}))
    tokens, parts, thinking = run(spec, [WORD] * 10)
    assert tokens == [WORD] * budget + [CLOSE, MORE] + [WORD] * (8 - budget)
    assert parts == ["thought"] * budget + ["marker"] * 2 + ["answer"] * (8 - budget)
    assert thinking.n_thought == budget and thinking.answering


def test_the_model_may_end_it_and_the_rest_is_forced() -> None:
    spec = ThinkSpec(5, (CLOSE, MORE), frozenset({CLOSE, 7}))
    tokens, parts, thinking = run(spec, [WORD, 7, WORD, WORD])
    assert tokens == [WORD, 7, MORE, WORD]
    assert parts == ["thought", "marker", "marker", "answer"]
    assert thinking.n_thought == 1


def test_a_native_block_may_be_opened_by_the_model_or_not() -> None:
    spec = ThinkSpec(None, (CLOSE,), frozenset({CLOSE}), opened=False, open_id=OPEN)
    assert run(spec, [OPEN, WORD, CLOSE, WORD])[1] == ["marker", "thought", "marker", "answer"]
    assert run(spec, [WORD, OPEN, WORD])[1] == ["answer"] * 3


def test_no_thinking_is_all_answer() -> None:
    assert run(None, [WORD] * 3)[1] == ["answer"] * 3


def test_fitted_leaves_room_for_an_answer() -> None:
    spec = ThinkSpec(95, (CLOSE, MORE), frozenset())
    assert spec.fitted(100).budget == 95
    assert spec.fitted(96).budget == 93
    assert spec.fitted(2).budget == 1


def test_budgets() -> None:
    efforts = ("xhigh", "high", "medium", "low", "minimal", "none")
    assert [budget_for(effort, 100) for effort in efforts] == [95, 80, 50, 20, 10, 0]
    assert [budget_for("minimal", n) for n in (0, 1, 2, 5)] == [0, 0, 1, 1]
    assert budget_for("xhigh", 2) == 1
