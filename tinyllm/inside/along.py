"""Attention and logit lens at many positions of a session at once, each as one array."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tinyllm.errors import HookError
from tinyllm.inside.hooks import Conditions
from tinyllm.inside.replay import (
    LARGE_BYTES,
    LargeActivations,
    attention_name,
    check_index,
    depth_names,
    run_with_cache,
)
from tinyllm.runner import Array

if TYPE_CHECKING:
    from tinyllm.inside.forwards import Forwards
    from tinyllm.step import Step

Where = slice | range | Sequence[int] | None


class LooksAlong:
    """What a session offers to see at many of its T tokens, prompt and completion, at once.

    Every look is one forward of the readable model over all tokens, under the hooks and broken
    parts that they were run under.
    """

    prompt: list[int]
    steps: list[Step]
    image_positions: NDArray[np.int64] | None
    image_rows: NDArray[np.float32] | None
    _forwards: Forwards
    _under: Conditions

    @property
    def tokens(self) -> list[int]:
        """Prompt and completion."""
        raise NotImplementedError

    def attention(self, layer: int, positions: Where = None) -> Array:
        """Where a layer's heads look from some positions: (n_heads, P, T), rows summing to 1.

        What a position can't see, behind it, is 0.

        Args:
            layer: from 0; negative ones count from the end.
            positions: P of the T positions looked from, as a slice, a range or a list, negative
                ones from the end; default: all.

        Raises:
            ValueError: no such layer or position.
            HookError: the tokens were run under different hooks; ask each step by itself.
        """
        n_layers = self._forwards.runner.config.n_layers
        check_index("layer", layer, n_layers)
        name = attention_name(layer % n_layers)
        chosen = _indices("position", positions, len(self.tokens))
        return self._recorded([name])[name][:, chosen]

    def logit_lens(self, positions: Where = None, layers: Where = None) -> Array:
        """What each depth would say at some positions: logits (D, P, vocab_size) float32.

        Each depth's own residual stream goes through the final norm and the unembedding. Depth 0
        is the embedding, depth i what leaves layer i - 1; the last one, n_layers, is the model's
        own logits, unless a hook sits at the final norm.

        Args:
            positions: P of the T positions, as in `attention`.
            layers: D of the n_layers + 1 depths, in the same way; default: all.

        Raises:
            ValueError, HookError: as `attention`.

        Warns:
            LargeActivations: the array takes more than 256 MB (all depths at 43 positions do, where
                there are 30 layers and a vocabulary of 49,152).
        """
        model = self._forwards.model()
        names = depth_names(model.config)
        depths = _indices("layer", layers, len(names))
        chosen = _indices("position", positions, len(self.tokens))
        shape = (len(depths), len(chosen), model.config.vocab_size)
        if (nbytes := 4 * int(np.prod(shape))) > LARGE_BYTES:
            warnings.warn(
                f"a lens of {shape[0]} depths at {shape[1]} positions takes "
                f"{nbytes / 1e6:.0f} MB; choose fewer, as in positions=range(-8, 0)",
                LargeActivations,
                stacklevel=2,
            )
        streams = self._recorded([names[depth] for depth in depths])
        out = np.empty(shape, np.float32)
        for row, depth in enumerate(depths):
            normed = model.norm("model.norm", streams[names[depth]][chosen])
            out[row] = model.unembed(normed)
        return out

    def _recorded(self, names: list[str]) -> Mapping[str, Array]:
        """These hook points over all tokens."""
        if any(step.moment.under != self._under for step in self.steps):
            raise HookError(
                "this session's tokens were run under different hooks or broken parts, so there "
                "is no one forward over all of them; ask each step, as in session.steps[3].lens()"
            )
        return run_with_cache(
            self._forwards.model(),
            self.tokens,
            names,
            under=self._under,
            n_prompt=len(self.prompt),
            image_positions=self.image_positions,
            image_rows=self.image_rows,
        )[1]


def _indices(what: str, wanted: Where, size: int) -> list[int]:
    """Indices from 0, of a slice, a range or a list of indices; None takes all."""
    if wanted is None:
        return list(range(size))
    if isinstance(wanted, slice):
        return list(range(size))[wanted]
    if isinstance(wanted, (int, np.integer)) and not isinstance(wanted, bool):
        wanted = [int(wanted)]  # a dimension of 1, so that the result always has three
    for index in wanted:
        check_index(what, index, size)
    return [int(index) % size for index in wanted]
