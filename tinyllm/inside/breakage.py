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
from tinyllm.inside.formulas_attention import cut, stages
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

    def heads(self, letter: str, point: str | None = None) -> Array:
        """Queries ("q") or keys ("k") as the next part has them, (T, heads, head_dim).

        What a point of their way is made of, or, without one, what scores are made of.
        """
        assert self.layer is not None
        order = stages(self.config, self.layer, letter)
        source = order[-1 if point is None else order.index(point) - 1]
        return cut(self.config, source, self.seen[source])

    def keys(self) -> Array:
        """All keys that these tokens may see, their own too: (S, n_kv_heads, head_dim)."""
        assert self.layer is not None
        return np.concatenate([self.cache.keys(self.layer), self.heads("k")])

    def values(self) -> Array:
        """All values, (S, n_kv_heads, head_dim)."""
        assert self.layer is not None
        own, clip = self.seen["attn.hook_v"], self.config.qkv_clip
        if clip is not None:
            own = np.clip(own, -clip, clip)
        return np.concatenate([self.cache.values(self.layer), own])


@dataclass(frozen=True, eq=False)
class Breakage:
    """A mistake: what goes wrong, and where.

    Attributes:
        name: as in `lab.BREAKAGES`.
        what: the mistake in a sentence.
        wrong: hook point, without "blocks.{i}." → what gives its array in the wrong form.
        lacking: of a model's shape: why nothing could go wrong so in this family; "" where it can.
    """

    name: str
    what: str
    wrong: Mapping[str, Callable[[Scene], Array]] = field(repr=False)
    lacking: Callable[[ModelConfig], str] = field(default=lambda config: "", repr=False)

    def __repr__(self) -> str:
        return f"break_it({self.name!r}): {self.what}"

    def __enter__(self) -> Breakage:
        """Make it the default of `broken=` for what this thread asks of an LM inside the block."""
        _entered.set((*_entered.get(), self))
        return self

    def __exit__(self, *error: object) -> None:
        _entered.set(_entered.get()[:-1])


_entered: ContextVar[tuple[Breakage, ...]] = ContextVar("broken", default=())


def broken_here() -> tuple[Breakage, ...]:
    """The breakages of the `with` blocks that this thread is in."""
    return _entered.get()
