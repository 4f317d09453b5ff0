"""A session's forwards: run under hooks and broken parts, and run again for a past step.

A session's cache holds what its tokens need. Where tokens were taken back and chosen differently
since, the cache of an earlier step is made again, token by token, on a fork.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

import numpy as np
from numpy.typing import NDArray

from tinyllm.errors import HookError, TraceError
from tinyllm.inside.hooks import Conditions, make_tap
from tinyllm.inside.replay import check_index, clipped_cache
from tinyllm.inside.rerun import Rerun
from tinyllm.kv_cache import Cache, KVCache
from tinyllm.model import Model
from tinyllm.runner import Array, Runner, Segment, images_between
from tinyllm.sampler import Logits
from tinyllm.tokenizer import Tokenizer

if TYPE_CHECKING:
    from tinyllm.step import Moment


@dataclass(frozen=True)
class Forwards:
    """What runs a session's tokens.

    Attributes:
        runner: the model, on either path.
        tokenizer: for texts.
        n_prompt: tokens of the prompt.
        readable: gives the readable model for replays, where `runner` isn't that.
        image_positions, image_rows: (M,) and (M, dim): embeddings in place of tokens.
    """

    runner: Runner
    tokenizer: Tokenizer
    n_prompt: int
    readable: Callable[[], Model] | None
    image_positions: NDArray[np.int64] | None
    image_rows: NDArray[np.float32] | None

    def check_path(self, under: Conditions) -> None:
        """Raise HookError for conditions that the compiled path can't do."""
        if under and not isinstance(self.runner, Model):
            raise HookError(
                "this session was opened on the compiled path, where hooks and broken parts have "
                "no place; open it inside the `with` block (or with broken=), and it takes the "
                "readable path"
            )

    def run(self, tokens: Sequence[int], cache: Cache, under: Conditions) -> Logits:
        """Logits after `tokens`, (vocab_size,); the cache grows by them."""
        self.check_path(under)
        ids, start = np.asarray(tokens, np.int32), cache.length
        where, rows = self._images(start, start + len(ids))
        logits: Logits
        if not under:
            segment = Segment(ids, cache, image_positions=where, image_rows=rows)
            logits = self.runner.forward_batch([segment])[0][-1]
            logits.flags.writeable = False  # what a step has recorded stays what it was
            return logits
        model, own_cache = cast(Model, self.runner), cast(KVCache, cache)
        logits = model.prefill(
            ids,
            own_cache,
            tap=make_tap(model, own_cache, under, self.n_prompt),
            image_positions=where,
            image_rows=rows,
        )[-1]
        return logits

    def _images(
        self, start: int, stop: int
    ) -> tuple[NDArray[np.int64] | None, NDArray[np.float32] | None]:
        return images_between(self.image_positions, self.image_rows, start, stop)

    def model(self) -> Model:
        """The readable model.

        Raises:
            TraceError: there is none.
        """
        if isinstance(self.runner, Model):
            return self.runner
        if self.readable is None:
            raise TraceError(
                "this session runs on the compiled path alone, which can't be looked into; "
                "open it with readable=lambda: model"
            )
        return self.readable()

    # Again. `tokens` and `cache` are the session's, as they are now.

    def logits_at(self, moment: Moment, tokens: list[int], cache: Cache) -> Logits:
        """The logits at a past moment: its forward again, on the same path."""
        before = moment.position - 1
        held = self._cache_at(moment, before, tokens, cache)
        again = held.fork(before, capacity=moment.position)
        try:
            return self.run([moment.history[before]], again, moment.under)
        finally:
            again.free()

    def cached(
        self, moment: Moment, tokens: list[int], cache: Cache, what: Literal["keys", "values"],
        layer: int,
    ) -> Array:  # fmt: skip
        """A copy of a layer's keys or values before a moment: (position, n_kv_heads, head_dim)."""
        check_index("layer", layer, self.runner.config.n_layers)
        held = self._cache_at(moment, moment.position, tokens, cache)
        rows = held.keys(layer) if what == "keys" else held.values(layer)
        copy: Array = np.array(rows[: moment.position])
        copy.flags.writeable = False
        return copy

    def rerun(self, moment: Moment, tokens: list[int], cache: Cache) -> Rerun:
        """The forward behind the logits at a moment, ready to be run again.

        Raises:
            TraceError: there is no readable model.
        """
        model, newest = self.model(), moment.position - 1
        _, rows = self._images(newest, newest + 1)
        return Rerun(
            model,
            self.tokenizer,
            moment.before,
            lambda: self._lend(moment, tokens, cache, model),
            under=moment.under,
            n_prompt=self.n_prompt,
            image_row=None if rows is None else rows[0],
            image_positions=self.image_positions,
            dtype=self.runner.dtype,
        )

    def _cache_at(self, moment: Moment, length: int, tokens: list[int], cache: Cache) -> Cache:
        """A cache whose first `length` positions are the moment's own history.

        That is the session's cache, as long as nothing was rewound and chosen differently since;
        otherwise what differs is computed again on a fork.
        """
        same = min(_common_prefix(tokens, moment.history, length), cache.length)
        if same >= length:
            return cache
        fork = cache.fork(same, capacity=length)
        for token in moment.history[same:length]:  # one at a time, as they were decoded
            self.run([token], fork, moment.under)
        return fork

    @contextmanager
    def _lend(
        self, moment: Moment, tokens: list[int], cache: Cache, model: Model
    ) -> Iterator[KVCache]:
        """A cache of what came before a moment's newest token, to run that token over.

        The session's own where that has them, as it was then and only for so long; else a copy.
        """
        before = moment.position - 1
        held = self._cache_at(moment, before, tokens, cache)
        if isinstance(held, KVCache) and held.length > before:
            with held.lent(before) as lent:
                yield lent
        else:
            yield clipped_cache(model, held, before, moment.position)


def _common_prefix(a: list[int], b: list[int], length: int) -> int:
    """How many of the first `length` tokens two histories share."""
    if a is b:
        return length
    pairs = zip(a, b[:length], strict=False)
    return next((i for i, (x, y) in enumerate(pairs) if x != y), min(length, len(a), len(b)))
