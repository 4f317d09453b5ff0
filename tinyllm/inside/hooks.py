"""Hook points: the named places in a forward pass where an array can be looked at or replaced.

The names are TransformerLens's (https://github.com/TransformerLensOrg/TransformerLens); the
weights are raw, so the numbers are the reference implementation's. `model.py` calls its `tap` at
each of these places; this file says what is there, and turns a user's functions into a tap.
"""

from __future__ import annotations

import difflib
import inspect
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from tinyllm import model as model_module
from tinyllm.config import ModelConfig
from tinyllm.errors import HookError
from tinyllm.kv_cache import Cache
from tinyllm.model import Tap
from tinyllm.runner import Array

NamesFilter = str | Iterable[str] | Callable[[str], bool] | None
Positions = Literal["all", "prompt", "generated"] | Sequence[int]


@dataclass(frozen=True)
class Site:
    """One kind of hook point, the same in every layer."""

    suffix: str  # of the name, behind "blocks.{i}."
    axes: tuple[str, ...]  # T computed now, S visible, or a field of ModelConfig
    meaning: str
    tensor: str = ""  # the checkpoint's tensor that it was just computed with, if any


SITES = (
    Site("hook_resid_pre", ("T", "dim"), "residual stream entering the layer"),
    Site("ln1.hook_normalized", ("T", "dim"), "what attention reads: normed and weighted",
         "input_layernorm.weight"),
    Site("attn.hook_q", ("T", "n_heads", "head_dim"), "queries, before rotary",
         "self_attn.q_proj.weight"),
    Site("attn.hook_k", ("T", "n_kv_heads", "head_dim"), "keys, before rotary",
         "self_attn.k_proj.weight"),
    Site("attn.hook_v", ("T", "n_kv_heads", "head_dim"), "values", "self_attn.v_proj.weight"),
    Site("attn.hook_rot_q", ("T", "n_heads", "head_dim"), "queries turned to their position"),
    Site("attn.hook_rot_k", ("T", "n_kv_heads", "head_dim"),
         "keys turned to their position, as the cache keeps them"),
    Site("attn.hook_attn_scores", ("n_heads", "T", "S"),
         "q·k / sqrt(head_dim), -inf where the mask hides"),
    Site("attn.hook_pattern", ("n_heads", "T", "S"), "softmax of the scores: rows sum to 1"),
    Site("attn.hook_z", ("T", "n_heads", "head_dim"), "values mixed by the pattern"),
    Site("hook_attn_out", ("T", "dim"), "what attention adds", "self_attn.o_proj.weight"),
    Site("hook_resid_mid", ("T", "dim"), "residual stream between attention and MLP"),
    Site("ln2.hook_normalized", ("T", "dim"), "what the MLP reads: normed and weighted",
         "post_attention_layernorm.weight"),
    Site("mlp.hook_pre", ("T", "hidden_dim"), "gate, before its SiLU", "mlp.gate_proj.weight"),
    Site("mlp.hook_pre_linear", ("T", "hidden_dim"), "up projection", "mlp.up_proj.weight"),
    Site("mlp.hook_post", ("T", "hidden_dim"), "silu(gate) · up"),
    Site("hook_mlp_out", ("T", "dim"), "what the MLP adds", "mlp.down_proj.weight"),
    Site("hook_resid_post", ("T", "dim"), "residual stream leaving the layer"),
)  # fmt: skip
EMBED = Site("hook_embed", ("T", "dim"), "rows of the embedding table (image rows in their place)",
             "model.embed_tokens.weight")  # fmt: skip
FINAL = Site("ln_final.hook_normalized", ("T", "dim"), "what the unembedding reads",
             "model.norm.weight")  # fmt: skip


@dataclass(frozen=True)
class HookPoint:
    """A named place in the forward pass."""

    name: str
    axes: tuple[str, ...]
    meaning: str
    tensor: str  # full checkpoint name, "" where no tensor is applied
    source: str  # "model.py:123", where the tap is
    layer: int | None

    def shape(self, config: ModelConfig, n_tokens: int, n_visible: int) -> tuple[int, ...]:
        """The array's shape when T tokens are computed and S positions are visible."""
        sizes = {"T": n_tokens, "S": n_visible}
        return tuple(sizes[a] if a in sizes else int(getattr(config, a)) for a in self.axes)

    @property
    def position_axis(self) -> int:
        """The axis that counts the tokens being computed."""
        return self.axes.index("T")


@lru_cache(maxsize=8)
def hook_points(config: ModelConfig) -> tuple[HookPoint, ...]:
    """Every hook point of a model, in the order in which a forward pass meets them."""
    lines = _tap_lines()

    def point(site: Site, layer: int | None) -> HookPoint:
        name, tensor = site.suffix, site.tensor
        if layer is not None:
            name = f"blocks.{layer}.{name}"
            tensor = tensor and f"model.layers.{layer}.{tensor}"
        source = lines.get(site.suffix.removeprefix("attn.").removeprefix("mlp."), "model.py")
        return HookPoint(name, site.axes, site.meaning, tensor, source, layer)

    in_layers = [point(site, i) for i in range(config.n_layers) for site in SITES]
    return (point(EMBED, None), *in_layers, point(FINAL, None))


@lru_cache(maxsize=8)
def points_by_name(config: ModelConfig) -> dict[str, HookPoint]:
    """The hook points by name."""
    return {p.name: p for p in hook_points(config)}


@lru_cache(maxsize=1)
def _tap_lines() -> dict[str, str]:
    """Hook name as written in model.py → "model.py:LINE"."""
    path = Path(inspect.getsourcefile(model_module) or "model.py")
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:  # a frozen or zipped install has no source to point to
        return {}
    return {
        name: f"{path.name}:{number}"
        for number, line in enumerate(text.splitlines(), 1)
        for name in re.findall(r'tap\(\s*f?"(?:\{hook\}\.)?([\w.]+)"', line)
    }


def match_names(config: ModelConfig, names: NamesFilter) -> list[str]:
    """The hook points that a filter selects, in forward order.

    Args:
        names: a name or glob ("blocks.*.attn.hook_pattern"; * crosses dots), several of them, a
            function of the name, or None for all.

    Raises:
        HookError: a name or glob that fits no hook point; the message has the nearest ones.
    """
    known = [p.name for p in hook_points(config)]
    if names is None:
        return known
    if callable(names):
        chosen = {name for name in known if names(name)}
        if not chosen:
            raise HookError("the names filter selects no hook point; lm.hook_points() lists them")
    else:
        chosen = set()
        for pattern in [names] if isinstance(names, str) else list(names):
            found = [name for name in known if fnmatchcase(name, pattern)]
            if not found:
                raise HookError(_unknown(pattern, known, config))
            chosen.update(found)
    return [name for name in known if name in chosen]


def _unknown(pattern: str, known: list[str], config: ModelConfig) -> str:
    message = f"there is no hook point {pattern!r}"
    if (block := re.match(r"blocks\.(\d+)\.", pattern)) and int(block[1]) >= config.n_layers:
        return f"{message}: the model's layers are 0 to {config.n_layers - 1}"
    near = difflib.get_close_matches(pattern, known, n=3, cutoff=0.5)
    # "hook_z" alone is nearer to "blocks.0.attn.hook_z" than letter counting thinks.
    tail = pattern.rsplit(".", 1)[-1].strip("*")
    near = ([k for k in known if tail and k.endswith(tail)][:2] + near)[:3]
    nearest = f"; the nearest are {', '.join(dict.fromkeys(near))}" if near else ""
    return f"{message}{nearest} (lm.hook_points() lists all)"


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
        if isinstance(self.positions, str):
            if self.positions not in ("all", "prompt", "generated"):
                raise HookError(
                    f'positions must be "all", "prompt", "generated" or numbers, '
                    f"not {self.positions!r}"
                )
            return
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
        new = self.fn(rows, hook=HookContext(point.name, point.layer, positions[mask], point))
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
    return [Hook(frozenset(match_names(config, names)), fn, positions) for names, fn in hooks]


class HookTap:
    """A `tap` for Model.forward that runs hooks, then hands the array to a recorder.

    It counts positions from the cache's length at each forward's first hook point, so they are
    absolute however a sequence is cut into forwards.

    Args:
        config: the model's.
        cache: the one that the forward appends to.
        hooks: run in order at each point.
        n_prompt: tokens of the prompt, for positions="prompt" and "generated".
        record: called as record(name, array) with what the forward goes on with.
    """

    def __init__(
        self,
        config: ModelConfig,
        cache: Cache,
        hooks: Sequence[Hook],
        n_prompt: int,
        record: Callable[[str, Array], None] | None = None,
    ) -> None:
        self._points = points_by_name(config)
        self._cache, self._hooks, self._n_prompt, self._record = cache, hooks, n_prompt, record
        self._positions = np.zeros(0, np.int64)

    def __call__(self, name: str, array: Array) -> Array:
        if name == EMBED.suffix:
            self._positions = np.arange(self._cache.length, self._cache.length + len(array))
        for hook in self._hooks:
            if name in hook.names:
                point = self._points[name]
                here = self._positions[-array.shape[point.position_axis] :]  # the last row alone,
                array = hook.run(point, array, here, self._n_prompt)  # at ln_final, may be wanted
        if self._record is not None:
            self._record(name, array)
        return array


def make_tap(config: ModelConfig, cache: Cache, hooks: Sequence[Hook], n_prompt: int) -> Tap | None:
    """The tap that runs `hooks`, or None when there are none."""
    return HookTap(config, cache, hooks, n_prompt) if hooks else None


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


# Changes that inside.lab has made to the readable path's operations, by name. While there are any,
# the compiled path would quietly compute something else: sessions refuse it.
READABLE_ONLY: list[str] = []


def needs_readable_path(hooks: HookSet) -> bool:
    """Whether what is set now exists on the readable path alone."""
    return bool(hooks.active or READABLE_ONLY)


class HookPoints(tuple[HookPoint, ...]):
    """A table of hook points."""

    def __repr__(self) -> str:
        from tinyllm.inside.display import hook_points_text

        return hook_points_text(self)

    def _repr_html_(self) -> str:
        from tinyllm.inside.display import hook_points_html

        return hook_points_html(self)
