"""Hooks: a user's functions at hook points, and the `tap` that runs them in a forward.

`model.py` calls its tap with a name and an array at each hook point (`points.py` lists them) and
goes on with what the tap returns: first what a broken part makes of it, then what the hooks do.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from tinyllm.config import ModelConfig
from tinyllm.errors import HookError
from tinyllm.inside.breakage import Breakage, Scene
from tinyllm.inside.points import EMBED, HookPoint, NamesFilter, match_names, points_by_name
from tinyllm.kv_cache import Cache
from tinyllm.model import Model, Tap
from tinyllm.runner import Array

Positions = Literal["all", "prompt", "generated"] | Sequence[int]


@dataclass(frozen=True)
class HookContext:
    """What a hook function is told besides the array: where it is."""

    name: str
    layer: int | None
    positions: NDArray[np.int64]  # absolute, of the rows handed over, cached or not
    point: HookPoint


class HookFn(Protocol):
    """A user's hook: returns None to leave the array as it is, or what to go on with."""

    def __call__(self, act: Array, *, hook: HookContext) -> Array | None: ...


@dataclass(eq=False)
class Hook:
    """One function at some hook points, for some positions.

    Args:
        names: hook points, resolved.
        fn: called as fn(act, hook=HookContext); the array is read-only.
        positions: "all", "prompt", "generated", or absolute positions. The function is given the
            rows of these positions alone, and is not called when a forward computes none.
    """

    names: frozenset[str]
    fn: HookFn
    positions: Positions = "all"
    n_calls: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if not callable(self.fn):
            raise HookError(f"a hook must be a function fn(act, *, hook), not {self.fn!r}")
        _check_parameters(self.fn)
        if isinstance(self.positions, str):
            if self.positions not in ("all", "prompt", "generated"):
                raise HookError(
                    f'positions must be "all", "prompt", "generated" or numbers, '
                    f"not {self.positions!r}"
                )
            return
        if not isinstance(self.positions, Iterable):
            raise HookError(f"positions are a list, as in [{self.positions!r}]")
        wanted = np.asarray(list(self.positions))
        if wanted.ndim != 1 or not wanted.size or wanted.dtype.kind not in "iu" or wanted.min() < 0:
            raise HookError(
                "positions are absolute, counted from 0: give at least one integer that is not "
                f"negative, not {self.positions!r}"
            )
        self.positions = tuple(int(p) for p in wanted)

    def chosen(self, positions: NDArray[np.int64], n_prompt: int) -> NDArray[np.bool_]:
        """Which of these absolute positions the hook is for, as a mask."""
        if self.positions == "all":
            return np.ones(len(positions), bool)
        if self.positions == "prompt":
            return positions < n_prompt
        if self.positions == "generated":
            return positions >= n_prompt
        return np.isin(positions, self.positions)

    def run(self, point: HookPoint, act: Array, positions: NDArray[np.int64], n: int) -> Array:
        """Call the function on its rows of `act`; return the array to go on with."""
        mask = self.chosen(positions, n)
        if not mask.any():
            return act
        axis, everything = point.position_axis, bool(mask.all())
        rows = act.view() if everything else np.compress(mask, act, axis=axis)
        # A change in place would be neither "unchanged" nor a replacement: let numpy refuse it.
        rows.flags.writeable = False
        self.n_calls += 1
        context = HookContext(point.name, point.layer, positions[mask], point)
        try:
            new = self.fn(rows, hook=context)
        except ValueError as error:
            if "read-only" not in str(error):
                raise
            raise HookError(
                f"a hook at {point.name} tried to change its array in place; change a copy and "
                "return that: out = act.copy(); out[…] = …; return out"
            ) from error
        if new is None:
            return act
        _check_replacement(point.name, rows, new)
        if everything:
            return new
        out = act.copy()
        index: list[Any] = [slice(None)] * act.ndim
        index[axis] = mask
        out[tuple(index)] = new
        return out


def _check_parameters(fn: HookFn) -> None:
    """Raise HookError where a function can't be called as hooks are."""
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):  # a builtin's isn't known
        return
    try:
        signature.bind(None, hook=None)
    except TypeError as error:
        name = getattr(fn, "__name__", "it")
        raise HookError(
            f"a hook is called as fn(act, hook=…), which {name}{signature} can't be ({error}): "
            "write def fn(act, *, hook)"
        ) from None


def _check_replacement(name: str, old: Array, new: object) -> None:
    if not isinstance(new, np.ndarray):
        raise HookError(f"a hook at {name} returned {type(new).__name__}; return None or an array")
    if new.shape != old.shape or new.dtype != old.dtype:
        raise HookError(
            f"a hook at {name} returned {new.dtype} {new.shape}; the array there is "
            f"{old.dtype} {old.shape}"
        )


def make_hooks(
    config: ModelConfig,
    hooks: Sequence[tuple[NamesFilter, HookFn]],
    positions: Positions = "all",
) -> list[Hook]:
    """Resolve (names, function) pairs against a model; raises HookError for an unknown name."""
    if not isinstance(hooks, (list, tuple)) or not all(
        isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in hooks
    ):
        raise HookError('hooks are a list of pairs, as in [("blocks.5.attn.hook_z", function)]')
    return [Hook(frozenset(match_names(config, names)), fn, positions) for names, fn in hooks]


class Conditions(NamedTuple):
    """What a forward runs under: with another hook or breakage it gives other numbers."""

    hooks: tuple[Hook, ...] = ()
    broken: tuple[Breakage, ...] = ()

    def __bool__(self) -> bool:
        """Whether there is anything at all, which the readable path alone can do."""
        return bool(self.hooks or self.broken)


WHOLE = Conditions()


class HookTap:
    """A `tap` for Model.forward: breakages, then hooks, then a recorder.

    It counts positions from the cache's length at each forward's first hook point, so they are
    absolute however a sequence is cut into forwards.

    Args:
        model: the one that runs.
        cache: the one that the forward appends to.
        under: what is broken, and the hooks, which run in order at each point.
        n_prompt: tokens of the prompt, for positions="prompt" and "generated".
        record: called as record(name, array) with what the forward goes on with.
    """

    def __init__(
        self,
        model: Model,
        cache: Cache,
        under: Conditions,
        n_prompt: int,
        record: Callable[[str, Array], None] | None = None,
    ) -> None:
        self._model, self._points = model, points_by_name(model.config)
        self._cache, self._under, self._n_prompt, self._record = cache, under, n_prompt, record
        self._positions = np.zeros(0, np.int64)
        self._seen: dict[str, Array] = {}
        for breakage in under.broken:
            if why := breakage.lacking(model.config):
                raise HookError(
                    f"{breakage.name} is no mistake that can be made in this "
                    f"{model.config.family}: {why}; lab.possible(config) lists those that can"
                )

    def __call__(self, name: str, array: Array) -> Array:
        if name == EMBED:
            self._positions = np.arange(self._cache.length, self._cache.length + len(array))
        point = self._points[name]
        for breakage in self._under.broken:
            if (wrong := breakage.wrong.get(point.kind.suffix)) is not None:
                array = wrong(self._scene(point, array))
        for hook in self._under.hooks:
            if name in hook.names:
                here = self._positions[-array.shape[point.position_axis] :]  # the last row alone,
                array = hook.run(point, array, here, self._n_prompt)  # at ln_final, may be wanted
        if self._under.broken:
            self._seen[point.kind.suffix] = array
        if self._record is not None:
            self._record(name, array)
        return array

    def _scene(self, point: HookPoint, right: Array) -> Scene:
        model = self._model
        return Scene(
            config=model.config,
            weights=model.weights,
            layer=point.layer,
            positions=self._positions,
            right=right,
            seen=self._seen,
            cache=self._cache,
            tensor=point.tensor,
        )


def make_tap(model: Model, cache: Cache, under: Conditions, n_prompt: int) -> Tap | None:
    """The tap for these conditions, or None when there are none."""
    return HookTap(model, cache, under, n_prompt) if under else None


class HookNeverRan(UserWarning):
    """A hook was set and removed without having been called once."""


class HookSet:
    """The hooks of one model that are set now."""

    def __init__(self) -> None:
        self._active: tuple[Hook, ...] = ()

    @property
    def active(self) -> tuple[Hook, ...]:
        """In the order in which they were set; the same tuple until that changes."""
        return self._active

    @contextmanager
    def set(self, hooks: Sequence[Hook]) -> Iterator[None]:
        """Add hooks for the length of a `with` block; they go whatever happens in it.

        Warns:
            HookNeverRan: nothing that ran in the block came past one of them.
        """
        before = self._active
        self._active = (*before, *hooks)
        try:
            yield
        finally:
            self._active = before
        for hook in hooks:
            if not hook.n_calls:
                names = sorted(hook.names)
                shown = names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")
                warnings.warn(
                    f"the hook at {shown} (positions: {hook.positions}) never ran: nothing was "
                    "computed there while it was set",
                    HookNeverRan,
                    stacklevel=4,
                )
