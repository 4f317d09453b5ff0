"""The thinking block of an answer: which token belongs to it, and what ends it.

The same small machine runs twice: in the guide, on the engine's thread, to force the end when the
budget is spent (s1, Muennighoff et al. 2025, https://arxiv.org/abs/2501.19393), and in the
reader, to tell thought from answer. Both see the same tokens, so both agree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["thought", "marker", "answer"]  # what a token is

SHARES = {"max": 0.95, "xhigh": 0.95, "high": 0.8, "medium": 0.5, "low": 0.2, "minimal": 0.1}


def budget_for(effort: str, max_tokens: int) -> int:
    """Thinking tokens that an effort stands for; 0 where there is no room to think."""
    if effort == "none" or max_tokens < 2:
        return 0
    return min(max(int(max_tokens * SHARES[effort]), 1), max_tokens - 1)


@dataclass(frozen=True)
class ThinkSpec:
    """How one request thinks.

    budget: most tokens of thought; None leaves the end to the model.
    close: the tokens that end the block; the rest is forced once the first is there.
    ends: tokens with which the model ends the block by itself, in place of close[0].
    opened: the prompt has opened the block; else the model may, with the token `open_id`.
    """

    budget: int | None
    close: tuple[int, ...]
    ends: frozenset[int]
    opened: bool = True
    open_id: int | None = None

    def fitted(self, max_tokens: int) -> ThinkSpec:
        """Itself, with a budget that leaves room for the end and one token of the answer."""
        if self.budget is None:
            return self
        room = max_tokens - len(self.close) - 1
        budget = max(1, min(self.budget, room))
        return ThinkSpec(budget, self.close, self.ends, self.opened, self.open_id)


class Thinking:
    """Where in its answer a choice is. `push` every token; `n_thought` counts the thought."""

    def __init__(self, spec: ThinkSpec | None) -> None:
        self._spec = spec
        self._closing = 0  # how many tokens of `close` are out
        self._state: Literal["start", "thought", "closing", "answer"] = "answer"
        self.n_thought = 0
        if spec is not None:
            self._state = "thought" if spec.opened else "start"

    @property
    def answering(self) -> bool:
        """Whether the next token belongs to the answer."""
        return self._state == "answer"

    def forced(self) -> tuple[int, ...]:
        """The tokens that must come next, if any must."""
        spec = self._spec
        if spec is None:
            return ()
        if self._state == "closing":
            return spec.close[self._closing :]
        spent = spec.budget is not None and self.n_thought >= spec.budget
        return spec.close if self._state == "thought" and spent else ()

    def push(self, token: int) -> Kind:
        """Take note of a token, and say what it is."""
        spec = self._spec
        if spec is None or self._state == "answer":
            return "answer"
        if self._state == "start":
            opens = token == spec.open_id
            self._state = "thought" if opens else "answer"
            return "marker" if opens else "answer"
        if self._state == "thought":
            if not self.forced() and token not in spec.ends:
                self.n_thought += 1
                return "thought"
            self._closing = 0
        self._closing += 1
        self._state = "closing" if self._closing < len(spec.close) else "answer"
        return "marker"
