"""What one share takes leaves some for another."""

from __future__ import annotations

from tinyllm.api.house.budget import Budget


def test_one_share_gets_half_and_a_newcomer_half_of_the_rest() -> None:
    budget = Budget(100)
    taken = {share: sum(budget.take(share, 1) for _ in range(200)) for share in "abc"}
    assert taken == {"a": 50, "b": 25, "c": 12}


def test_what_comes_back_can_be_taken_again() -> None:
    budget = Budget(100)
    assert budget.take("a", 40) and not budget.take("a", 40)
    budget.give_back("a", 40)
    assert budget.take("a", 40) and budget.free == 60
    budget.give_back("a", 40)
    assert budget.free == 100


def test_a_question_takes_nothing() -> None:
    budget = Budget(10)
    assert budget.has("a", 5) and not budget.has("a", 6)
    assert budget.free == 10
