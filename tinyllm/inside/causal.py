"""Ablation: what each part of the model does for a token, beside what attention shows.

An attention pattern says where a head looked, not whether what it found mattered. So each part is
taken out in turn: its output at the newest position is set to zero, the rest of the forward runs
on, and the log-probability of the token that was chosen falls, or rises. Only the newest position
is touched: what earlier positions left in the cache stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinyllm.inside.display import causal_html
from tinyllm.inside.replay import check_index
from tinyllm.model import Tap
from tinyllm.runner import Array
from tinyllm.sampler import log_normalizer

if TYPE_CHECKING:
    from tinyllm.inside.rerun import Rerun


@dataclass(frozen=True)
class CausalMap:
    """Nats of a token's log-probability that are lost when one part is zeroed.

    Positive: the part made the token likelier. Negative: less likely. Effects needn't add up, since
    parts act on one another.

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
        return causal_html(self)


Part = Literal["attn", "mlp", "head"]


class Effect(NamedTuple):
    """What one part of the model does for a token, in nats of its log-probability."""

    part: Part
    layer: int
    head: int  # -1 unless the part is a head
    nats: float


def effects_of_zeroing(
    rerun: Rerun,
    token: int,
    parts: Iterable[tuple[Part, int, int]],
    go_on: Callable[[], None] = lambda: None,
) -> Iterator[Effect]:
    """What zeroing each part takes from a token's log-probability: one forward of one token a part.

    Nobody else may use the cache behind `rerun` before the last one is taken.

    Args:
        rerun: the forward that the token was chosen after.
        token: the one asked about.
        parts: (part, layer, head) each; the head counts for heads alone.
        go_on: called before each; may raise to give up.

    Raises:
        ValueError: a layer or head that the model doesn't have.
    """
    config = rerun.model.config
    with rerun.forwards() as run:

        def logprob(change: Tap) -> float:
            logits = run(change)
            return float(logits[token]) - log_normalizer(logits)

        base = logprob(lambda name, array: array)
        for part, layer, head in parts:
            check_index("layer", layer, config.n_layers)
            layer %= config.n_layers
            if part == "head":
                check_index("head", head, config.n_heads)
                change = _without(f"blocks.{layer}.attn.hook_z", head)
            else:
                head, change = -1, _without(f"blocks.{layer}.hook_{part}_out")
            go_on()
            yield Effect(part, layer, head, base - logprob(change))


def causal_map(rerun: Rerun, token: int, layer: int | None = None) -> CausalMap:
    """What each layer's attention and MLP, and each head of one layer, do for a token.

    Args:
        rerun: the forward that the token was chosen after.
        token: the one asked about.
        layer: whose heads to take apart; default: the one whose attention matters most.

    Returns:
        The effects, from 2 · n_layers + n_heads + 2 one-token forwards on the readable path: 70 of
        30 to 50 ms each for SmolLM2-135M.
    """
    replay, tokenizer = rerun.replay, rerun.tokenizer
    config = replay.model.config
    if layer is not None:
        check_index("layer", layer, config.n_layers)
        layer %= config.n_layers
    nats: dict[Part, list[float]] = {"attn": [], "mlp": [], "head": []}

    def heads_layer() -> int:
        return int(np.abs(nats["attn"]).argmax()) if layer is None else layer

    def parts() -> Iterator[tuple[Part, int, int]]:
        yield from (("attn", i, -1) for i in range(config.n_layers))
        yield from (("mlp", i, -1) for i in range(config.n_layers))
        # By now every attention's effect is in `nats`: a part is asked for after the one before it.
        yield from (("head", heads_layer(), head) for head in range(config.n_heads))

    for effect in effects_of_zeroing(rerun, token, parts()):
        nats[effect.part].append(effect.nats)
    return CausalMap(
        token=token,
        text=tokenizer.token_text(token, tokenizer.unfinished(rerun.tokens)),
        logprob=float(replay.logits[token]) - log_normalizer(replay.logits),
        attn=np.array(nats["attn"]),
        mlp=np.array(nats["mlp"]),
        layer=heads_layer(),
        heads=np.array(nats["head"]),
        pattern=replay.activations["pattern", heads_layer()][:, 0],
        tokens=rerun.texts,
    )


def _without(target: str, head: int | None = None) -> Tap:
    """A tap that zeroes what one hook point gives, or one head of it."""

    def change(name: str, array: Array) -> Array:
        if name != target:
            return array
        if head is None:
            return np.zeros_like(array)
        changed = array.copy()
        changed[:, head] = 0
        return changed

    return change
