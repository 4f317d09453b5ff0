"""A broken part: a wrong formula at a hook point, given to a forward as an argument.

Nothing of the model is changed. A forward that is told of a breakage goes on with what the wrong
formula gives there, made of the same inputs; one that isn't, at the same time or in another thread,
computes what is right. The wrong formulas themselves are in `lab`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tinyllm.config import ModelConfig
from tinyllm.kv_cache import Cache
from tinyllm.runner import Array


@dataclass(frozen=True)
class Scene:
    """A forward at one hook point: what a wrong formula may make its array of.

    Attributes:
        config, weights: the model's.
        layer: None at a point outside of layers.
        positions: (T,) absolute, of the tokens being computed.
        right: the array as the model has computed it.
        seen: the arrays before it, of this layer (and the last layer's, behind all of them), by the
            hook points' names without "blocks.{i}.".
        cache: what came before these tokens.
        tensor: the checkpoint's tensor at this point, or "".
    """

    config: ModelConfig
    weights: Mapping[str, Array]
    layer: int | None
    positions: NDArray[np.int64]
    right: Array
    seen: Mapping[str, Array]
    cache: Cache
    tensor: str

    def keys(self) -> Array:
        """All keys that these tokens may see, their own too: (S, n_kv_heads, head_dim)."""
        assert self.layer is not None
        return np.concatenate([self.cache.keys(self.layer), self.seen["attn.hook_rot_k"]])

    def values(self) -> Array:
        """All values, (S, n_kv_heads, head_dim)."""
        assert self.layer is not None
        return np.concatenate([self.cache.values(self.layer), self.seen["attn.hook_v"]])


@dataclass(frozen=True, eq=False)
class Breakage:
    """A mistake: what goes wrong, and where.

    Attributes:
        name: as in `lab.BREAKAGES`.
        what: the mistake in a sentence.
        wrong: hook point, without "blocks.{i}." → what gives its array in the wrong form.
    """

    name: str
    what: str
    wrong: Mapping[str, Callable[[Scene], Array]] = field(repr=False)

    def __repr__(self) -> str:
        return f"break_it({self.name!r}): {self.what}"

    def __enter__(self) -> Breakage:
        """Make it the default of `broken=` for what this thread runs inside the `with` block."""
        _entered.set((*_entered.get(), self))
        return self

    def __exit__(self, *error: object) -> None:
        _entered.set(_entered.get()[:-1])


_entered: ContextVar[tuple[Breakage, ...]] = ContextVar("broken", default=())


def broken_here() -> tuple[Breakage, ...]:
    """The breakages of the `with` blocks that this thread is in."""
    return _entered.get()
