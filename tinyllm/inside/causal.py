"""What a token owes to each part of the model: ablation, beside what attention shows.

An attention pattern says where a head looked, not whether what it found mattered. So each part is
taken out in turn: its output at the newest position is set to zero, the rest of the forward runs
on, and the log-probability of the token that was chosen falls, or rises. Only the newest position
is touched: what earlier positions left in the cache stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinyllm.inside.hooks import HookTap
from tinyllm.inside.replay import check_index
from tinyllm.kv_cache import KVCache
from tinyllm.model import Model
from tinyllm.runner import Array
from tinyllm.sampler import log_normalizer

if TYPE_CHECKING:
    from tinyllm.decode import Step


@dataclass(frozen=True)
class CausalMap:
    """Nats of a token's log-probability that are lost when one part is zeroed.

    Positive: the part spoke for the token. Negative: against it. Effects needn't add up: parts
    work on one another.

    Attributes:
        token, text: the token that was chosen.
        logprob: its log-probability with nothing taken out, as replayed.
        attn, mlp: (n_layers,) effects.
        layer: the layer whose heads were taken apart.
        heads: (n_heads,) effects of that layer's heads, one at a time.
        pattern: (n_heads, position) where they look.
        tokens: what stands at these positions, as text.
    """

    token: int
    text: str
    logprob: float
    attn: NDArray[np.float64]
    mlp: NDArray[np.float64]
    layer: int
    heads: NDArray[np.float64]
    pattern: NDArray[np.float32] = field(repr=False)
    tokens: list[str] = field(repr=False)

    def top(self, k: int = 5) -> list[tuple[str, float]]:
        """The k parts with the largest effect either way, as (hook point, nats)."""
        effects = [
            (f"blocks.{i}.{what}", float(effect))
            for what, column in (("hook_attn_out", self.attn), ("hook_mlp_out", self.mlp))
            for i, effect in enumerate(column)
        ]
        return sorted(effects, key=lambda item: -abs(item[1]))[:k]

    def __repr__(self) -> str:
        shown = ", ".join(f"{name} {effect:+.2f}" for name, effect in self.top(3))
        return f"CausalMap({self.text!r}, log-probability {self.logprob:.2f}: {shown})"

    def _repr_html_(self) -> str:
        from tinyllm.inside.display import causal_html

        return causal_html(self)


class Ablation:
    """A step's forward again and again, each time with something set to zero.

    Args:
        step: whose token is asked about.
        model: the readable one.
        cache: of what came before the step's newest token, with room for that.
    """

    def __init__(self, step: Step, model: Model, cache: KVCache) -> None:
        self._step, self._model, self._cache = step, model, cache
        self._before = cache.length
        row = step.session._image_row(self._before)
        self._rows = None if row is None else row[None]

    def logprob(self, ablate: Callable[[str, Array], Array] | None = None) -> float:
        """The token's log-probability, after `ablate` has had its way at every hook point."""
        step, cache = self._step, self._cache
        cache.truncate(self._before)
        n_prompt = len(step.session.prompt)
        under_hooks = HookTap(self._model.config, cache, step._under.hooks, n_prompt)

        def tap(name: str, array: Array) -> Array:
            array = under_hooks(name, array)
            return array if ablate is None else ablate(name, array)

        logits = self._model.forward(
            [step.tokens_before[-1]],
            cache,
            tap=tap,
            image_positions=None if self._rows is None else np.zeros(1, np.int64),
            image_rows=self._rows,
        )[-1]
        return float(logits[step.token]) - log_normalizer(logits)

    def part(self, target: str) -> float:
        """Without what one hook point adds."""
        return self.logprob(lambda name, a: np.zeros_like(a) if name == target else a)

    def head(self, layer: int, head: int) -> float:
        """Without one head."""
        target = f"blocks.{layer}.attn.hook_z"

        def ablate(name: str, z: Array) -> Array:
            if name != target:
                return z
            z = z.copy()
            z[:, head] = 0
            return z

        return self.logprob(ablate)


class Effect(NamedTuple):
    """What one part of the model does for a token, in nats of its log-probability."""

    part: Literal["attn", "mlp", "head"]
    layer: int
    head: int  # -1 unless the part is a head
    nats: float


def effects(step: Step, layer: int | None = None) -> Iterator[Effect]:
    """Zero each layer's attention and MLP in turn, then each head of one layer, one at a time.

    Each costs a one-token forward on the readable path. `layer` as in `causal_map`, which folds
    these; nobody else may use the step's session before the last one is taken.
    """
    model = step.replay.model
    config = model.config
    if layer is not None:
        check_index("layer", layer, config.n_layers)
        layer %= config.n_layers
    with step.session._until(step, model) as cache:
        ablated = Ablation(step, model, cache)
        base = ablated.logprob()
        attn = []
        for i in range(config.n_layers):
            attn.append(base - ablated.part(f"blocks.{i}.hook_attn_out"))
            yield Effect("attn", i, -1, attn[-1])
        for i in range(config.n_layers):
            yield Effect("mlp", i, -1, base - ablated.part(f"blocks.{i}.hook_mlp_out"))
        if layer is None:
            layer = int(np.abs(attn).argmax())
        for head in range(config.n_heads):
            yield Effect("head", layer, head, base - ablated.head(layer, head))


def owed(
    step: Step,
    parts: Sequence[tuple[Literal["attn", "mlp", "head"], int, int]],
    go_on: Callable[[], None] = lambda: None,
) -> list[Effect]:
    """The effects of some parts alone, (part, layer, head) each; `go_on` is called before each.

    Raises:
        ValueError: a layer or head that the model doesn't have.
    """
    model = step.replay.model
    out = []
    with step.session._until(step, model) as cache:
        ablated = Ablation(step, model, cache)
        base = ablated.logprob()
        for part, layer, head in parts:
            check_index("layer", layer, model.config.n_layers)
            check_index("head", head, model.config.n_heads)
            go_on()
            if part == "head":
                out.append(Effect(part, layer, head, base - ablated.head(layer, head)))
            else:
                target = f"blocks.{layer}.hook_{part}_out"
                out.append(Effect(part, layer, -1, base - ablated.part(target)))
    return out


def causal_map(step: Step, layer: int | None = None) -> CausalMap:
    """What a step's token owes to each layer's attention and MLP, and to each head of one layer.

    Args:
        step: the step whose token is asked about.
        layer: whose heads to take apart; default: the one whose attention matters most.

    Returns:
        The effects, from 2 · n_layers + n_heads + 1 one-token forwards on the readable path: 70 of
        30 to 50 ms each for SmolLM2-135M.
    """
    found = list(effects(step, layer))
    replay, tokenizer = step.replay, step.session.tokenizer
    layer = found[-1].layer
    return CausalMap(
        token=step.token,
        text=tokenizer.token_text(step.token),
        logprob=float(replay.logits[step.token]) - log_normalizer(replay.logits),
        attn=np.array([e.nats for e in found if e.part == "attn"]),
        mlp=np.array([e.nats for e in found if e.part == "mlp"]),
        layer=layer,
        heads=np.array([e.nats for e in found if e.part == "head"]),
        pattern=replay.activations["pattern", layer][:, 0],
        tokens=[tokenizer.token_text(t) for t in step.tokens_before],
    )
