"""The break-it lab: a classic bug as an argument of a forward, and where it shows first.

Each breakage is a mistake that people have really made in a transformer of their own. Most don't
crash: they give fluent nonsense, or the right answer until the context grows. `first_difference`
runs the whole and the broken forward side by side and names the first hook point where they part.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tinyllm.config import ModelConfig
from tinyllm.inside.breakage import Breakage
from tinyllm.inside.hooks import WHOLE, Conditions, HookTap
from tinyllm.inside.points import points_by_name
from tinyllm.inside.wrong import BREAKAGES
from tinyllm.kv_cache import Cache
from tinyllm.model import Model
from tinyllm.prompt import Prompt
from tinyllm.runner import Array

if TYPE_CHECKING:
    from tinyllm.lm import LM, Images, PromptLike

__all__ = [
    "BREAKAGES",
    "Difference",
    "break_it",
    "breakages",
    "broken_tap",
    "first_difference",
    "possible",
]

PROMPT = "The capital of France is Paris. The capital of Italy is"


def break_it(name: str) -> Breakage:
    """A classic bug: to be given to a call as broken=, or to a thread by `with break_it(name): …`.

    Both are for what is asked of an `LM`. `Model.forward` knows of no mistakes: see `broken_tap`.

    Raises:
        ValueError: an unknown name; `lab.BREAKAGES` has all of them.
    """
    if name not in BREAKAGES:
        raise ValueError(f"there is no breakage {name!r}; there are {', '.join(BREAKAGES)}")
    return BREAKAGES[name]


def possible(config: ModelConfig) -> dict[str, Breakage]:
    """Those that can be made in a family, by name: no soft cap can be forgotten where none is."""
    return {name: one for name, one in BREAKAGES.items() if not one.lacking(config)}


Broken = str | Breakage | Iterable[str | Breakage] | None


def breakages(broken: Broken) -> tuple[Breakage, ...]:
    """What a caller's broken= names: a breakage, its name, several, or none."""
    if broken is None:
        return ()
    given = [broken] if isinstance(broken, (str, Breakage)) else broken
    if not isinstance(given, (list, tuple)) or not {type(b) for b in given} <= {str, Breakage}:
        raise TypeError(
            f"broken must be a breakage, its name, or a list of them, not {broken!r}; there are "
            f"{', '.join(BREAKAGES)}"
        )
    return tuple(break_it(b) if isinstance(b, str) else b for b in given)


def broken_tap(model: Model, cache: Cache, broken: Broken, n_prompt: int = 0) -> HookTap:
    """Something broken in a bare `model.forward(ids, cache, tap=broken_tap(model, cache, "…"))`.

    Args:
        model, cache: those of the forward, or forwards, that it is given to.
        broken: as in `LM.generate`.
        n_prompt: tokens of the prompt; mistakes alone don't ask for it.

    Raises:
        HookError: a mistake that can't be made in this family.
    """
    return HookTap(model, cache, Conditions(broken=breakages(broken)), n_prompt)


@dataclass(frozen=True)
class Difference:
    """Where two runs part.

    Attributes:
        name: the hook point ("logits" behind the last one).
        forward: which forward of the schedule, from 0: two chunks of the prompt, then its last
            two tokens one at a time over the cache.
        positions: (T,) absolute positions that this forward computes.
        index: of the entry that differs most.
        expected, got: that entry in the whole and in the broken run.
        relative: its gap, in units of the largest magnitude of the whole run's array.
        source: the line of model.py.
    """

    name: str
    forward: int
    positions: tuple[int, ...]
    index: tuple[int, ...]
    expected: float
    got: float
    relative: float
    source: str

    def __repr__(self) -> str:
        first, last = self.positions[0], self.positions[-1]
        where = f"position {first}" if first == last else f"positions {first} to {last}"
        return (
            f"Difference(first at {self.name}, {self.source}, {where}: entry "
            f"{list(self.index)} is {self.got:.5g} instead of {self.expected:.5g})"
        )


class _Parted(Exception):
    def __init__(self, difference: Difference) -> None:
        self.difference = difference


@dataclass(frozen=True)
class _Check:
    """A recorder that raises _Parted at the first array that is not the whole run's."""

    config: ModelConfig
    whole: Mapping[str, Array]
    forward: int
    positions: tuple[int, ...]
    tolerance: float

    def __call__(self, name: str, got: Array) -> None:
        found = _largest_gap(self.whole[name], got, self.tolerance)
        if found is not None:
            point = points_by_name(self.config).get(name)
            source = point.source if point else "model.py"
            raise _Parted(Difference(name, self.forward, self.positions, *found, source))


def first_difference(
    lm: LM | Model,
    broken: Breakage | str | LM | Model,
    prompt: PromptLike | Prompt = PROMPT,
    *,
    images: Images = (),
    tolerance: float = 1e-4,
) -> Difference | None:
    """The first hook point, in the order of the forward pass, where two models part.

    The prompt runs as two chunks and two single tokens over one cache, so that what is wrong with
    a cache alone shows as well.

    Args:
        lm: the one to trust.
        broken: a breakage (or its name), or another model of the same shape.
        prompt, images: as `LM.generate` takes them (of a bare Model: ids, or a Prompt), at least 5
            tokens; everything of one forward is held in memory.
        tolerance: the largest gap to let pass, as a share of the array's largest magnitude.

    Returns:
        The first difference, or None when there is none.
    """
    model = getattr(lm, "model", lm)
    if not isinstance(model, Model):
        raise TypeError(f"the first must be a loaded model, not {type(lm).__name__}")
    if isinstance(tolerance, bool) or not isinstance(tolerance, (int, float)) or tolerance < 0:
        raise ValueError(f"tolerance must be a number from 0, not {tolerance!r}")
    if isinstance(broken, (str, Breakage)):
        other: Any = model
        under = Conditions(broken=breakages(broken))
    else:
        other, under = getattr(broken, "model", broken), WHOLE
    if not isinstance(other, Model) or other.config != model.config:
        raise ValueError("the second must be a breakage, or a model of the same shape as the first")
    if isinstance(prompt, Prompt):
        asked = prompt
    elif not isinstance(lm, Model):
        asked = lm.prompt(prompt, images)
    elif isinstance(prompt, str) or not all(isinstance(t, (int, np.integer)) for t in prompt):
        raise ValueError("a bare Model has no tokenizer; give the prompt as token ids")
    else:
        asked = Prompt(np.array(prompt, np.int32))
    ids = asked.tokens.tolist()
    if len(ids) < 5:
        raise ValueError(f"the prompt needs at least 5 tokens to be cut up, not {len(ids)}")

    half = (len(ids) - 2) // 2
    chunks = [(0, half), (half, len(ids) - 2), (len(ids) - 2, len(ids) - 1),
              (len(ids) - 1, len(ids))]  # fmt: skip
    right_cache, wrong_cache = model.new_cache(len(ids)), model.new_cache(len(ids))
    for forward, (start, end) in enumerate(chunks):
        arrays: dict[str, Array] = {}
        where, rows = asked.images_between(start, end)
        given: Any = {"image_positions": where, "image_rows": rows}
        tap = HookTap(model, right_cache, WHOLE, len(ids), arrays.__setitem__)
        arrays["logits"] = model.forward(ids[start:end], right_cache, tap=tap, **given)

        check = _Check(model.config, arrays, forward, tuple(range(start, end)), tolerance)
        wrong = HookTap(other, wrong_cache, under, len(ids), check)
        try:
            check("logits", other.forward(ids[start:end], wrong_cache, tap=wrong, **given))
        except _Parted as parted:
            return parted.difference
    return None


def _largest_gap(
    expected: Array, got: Array, tolerance: float
) -> tuple[tuple[int, ...], float, float, float] | None:
    """(index, expected, got, relative gap) of the worst entry, if it is beyond the tolerance."""
    with np.errstate(invalid="ignore"):
        gap = np.where(expected == got, 0.0, np.abs(expected.astype(np.float64) - got))
    gap[np.isnan(gap)] = np.inf
    finite = np.abs(expected[np.isfinite(expected)])
    scale = float(finite.max()) if finite.size else 1.0
    worst = np.unravel_index(int(np.argmax(gap)), gap.shape)
    relative = float(gap[worst]) / (scale or 1.0)
    if relative <= tolerance:
        return None
    index = tuple(int(i) for i in worst)
    return index, float(expected[worst]), float(got[worst]), relative
