"""One more token of several texts in one pass over the weights.

A token's forward takes as long as it takes to read the weights once, and eight tokens' 1.2 times
as long (SmolLM2-135M). Whoever comes while a pass runs waits, and the next pass takes all who wait.
Each text's numbers have the bits that they have alone: products are by `RowByRow`, all else is done
row by row, and attention is each text's own.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np

from tinyllm.inside.many_rows import RowByRow
from tinyllm.inside.replay import Recorder, Replay
from tinyllm.kernels.blas import few_threads
from tinyllm.kv_cache import KVCache
from tinyllm.model import Model, Rotation, Tap
from tinyllm.runner import Array

MOST = 16  # texts in one pass


class Pass(RowByRow):
    """One forward of one token behind each of several texts.

    Args:
        model: the readable model.
        caches: B of them, different ones.
        taps: B; each is called with its own text's arrays, as `Model.forward` would.
    """

    def __init__(self, model: Model, caches: Sequence[KVCache], taps: Sequence[Tap]) -> None:
        super().__init__(model)
        self._caches, self._taps = caches, taps
        self._turns: list[dict[str, Rotation]] = []

    @few_threads()
    def run(self, tokens: Sequence[int]) -> Array:
        """Append a token to each cache, and give what follows it: (B,) ids → (B, vocab_size).

        No image may stand at any of the tokens.

        Raises:
            ValueError: a token id outside the vocabulary.
            CacheFull: one doesn't fit; the caches are as they were.
        """
        ids = self._check_tokens(tokens)
        for cache in self._caches:
            cache.reserve(1)
        rows = []
        for i, (cache, tap) in enumerate(zip(self._caches, self._taps, strict=True)):
            row, turn = self._begin(ids[i : i + 1], cache, None, None, tap)
            rows.append(row)
            self._turns.append(turn)
        x = np.concatenate(rows)  # (B, dim)
        for layer in range(self.config.n_layers):
            x = self._block(layer, x, Rotation(None, None), self._caches[0], self._tap)
        for cache in self._caches:
            cache.advance(1)
        x = self._tap("ln_final.hook_normalized", self.norm("model.norm", x))
        return self.unembed(x)

    def _attend(
        self, layer: int, q: Array, k: Array, v: Array, rotation: Rotation, cache: KVCache, tap: Tap
    ) -> Array:
        """Each row by itself: with its own text's rotation, cache and tap, whatever is given."""
        kind = self.config.layer(layer).rotary
        attend, rows = super()._attend, []
        for i, cache in enumerate(self._caches):
            one = slice(i, i + 1)
            turn, tap = self._turns[i][kind], self._taps[i]
            rows.append(attend(layer, q[one], k[one], v[one], turn, cache, tap))
        return np.concatenate(rows)

    def _tap(self, name: str, array: Array) -> Array:
        """Each row to its own text's tap."""
        rows = [array[i : i + 1] for i in range(len(array))]
        new = [tap(name, row) for tap, row in zip(self._taps, rows, strict=True)]
        same = all(after is before for after, before in zip(new, rows, strict=True))
        return array if same else np.concatenate(new)


@dataclass(eq=False)
class _Text:
    """A text that waits for its token's forward; then it has `replay`, or `error`."""

    token: int
    cache: KVCache
    replay: Replay | None = None
    error: BaseException | None = None


class Together:
    """Replays of one token, for several threads: those that wait at the same time share a pass.

    Args:
        model: the readable model.
        place: what a pass holds while it runs.
    """

    def __init__(self, model: Model, place: AbstractContextManager[object]) -> None:
        self._model, self._place = model, place
        self._waiting: list[_Text] = []
        self._listed = threading.Lock()  # guards the list
        self._turn = threading.Lock()  # one pass at a time

    @property
    def n_waiting(self) -> int:
        """How many wait for the next pass."""
        return len(self._waiting)

    def replay(self, token: int, cache: KVCache) -> Replay:
        """As `replay_token` by `RowByRow` to the bit, of a token that no image stands for."""
        mine = _Text(token, cache)
        with self._listed:
            self._waiting.append(mine)
        while mine.replay is None and mine.error is None:
            with self._turn:
                if mine.replay is None and mine.error is None:
                    with self._place:
                        self._pass()
        if mine.error is not None:
            raise mine.error
        assert mine.replay is not None
        return mine.replay

    def _pass(self) -> None:
        """One pass for those who have waited longest."""
        with self._listed:
            texts, self._waiting = self._waiting[:MOST], self._waiting[MOST:]
        caches = [text.cache for text in texts]
        try:
            recorders = [Recorder(self._model, cache) for cache in caches]
            taps = [recorder.tap for recorder in recorders]
            logits = Pass(self._model, caches, taps).run([text.token for text in texts])
            for text, recorder, row in zip(texts, recorders, logits, strict=True):
                text.replay = recorder.replay(row)
        except BaseException as error:
            for text in texts:
                text.error = error
