"""What went on inside along a request's choices, computed again by the readable model.

Imported for the first request that asks for it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from tinyllm.api.contract.sampling import Trace
from tinyllm.api.limits import MAX_INSIDE
from tinyllm.engine.types import Prompt, Token
from tinyllm.inside.replay import attention_name, lens_names, replay_token
from tinyllm.inside.trace_file import StepRecord, record_attention, record_lens
from tinyllm.kv_cache import KVCache
from tinyllm.model import PREFILL_CHUNK, Model
from tinyllm.runner import calls
from tinyllm.tokenizer import Tokenizer


class Cancelled(Exception):
    """Nobody waits for the look any more."""


class Inside:
    """Looks into the model along one request's choices. Everything but `cancel` on one thread.

    Args:
        model: gives the readable model; called at the first look.
        tokenizer: for the lens's texts.
        prompt: the request's.
        trace: what to look at.
        n: choices.
        on_close: called once, when it is over.
    """

    def __init__(
        self,
        model: Callable[[], Model],
        tokenizer: Tokenizer,
        prompt: Prompt,
        trace: Trace,
        n: int,
        on_close: Callable[[], None],
    ) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._prompt, self._trace, self._n = prompt, trace, n
        self._on_close = on_close
        self._prompt_cache: KVCache | None = None
        self._caches: dict[int, KVCache] = {}  # by choice: what came before its newest token
        self._over = threading.Event()
        self._lock = threading.Lock()

    def cancel(self) -> None:
        """It is over: free the place, and whatever runs stops soon. From any thread, twice too."""
        with self._lock:
            if self._over.is_set():
                return
            self._over.set()
        self._on_close()

    def look(self, event: Token, step: StepRecord, drawn: Sequence[int]) -> StepRecord:
        """The step of a token, with what went on inside before it was drawn.

        `drawn` is what its choice drew before. Raises Cancelled.
        """
        model, trace = self._model(), self._trace
        tokens = [*self._prompt.tokens.tolist(), *drawn]
        cache = self._cache_before(model, event.index, tokens)
        names: list[str] = []
        if trace.lens:
            names += lens_names(model.config)
        if trace.attention is not None:
            names.append(attention_name(trace.attention.layer))
        _, image_rows = self._prompt.images_between(cache.length, cache.length + 1)
        image_row = None if image_rows is None else image_rows[0]
        replay = replay_token(model, tokens[-1], cache, names=names, image_row=image_row)
        assert event.look is not None and event.look.logits is not None
        lens = attention = None
        if trace.lens:
            begun = self._tokenizer.unfinished(tokens)
            lens = record_lens(replay.logit_lens(trace.lens, event.token, self._tokenizer, begun))
        if trace.attention is not None:
            attention = record_attention(replay, trace.attention.layer, trace.attention.heads)
        error = float(np.abs(replay.logits - event.look.logits).max())
        return replace(step, lens=lens, attention=attention, replay_error=error)

    def _cache_before(self, model: Model, index: int, tokens: list[int]) -> KVCache:
        """A choice's cache with everything in it but the newest token."""
        if self._over.is_set():
            raise Cancelled
        if index not in self._caches:
            prompt = self._prefill(model)
            room = min(prompt.length + MAX_INSIDE, model.config.max_seq_len)
            self._caches[index] = prompt.fork(capacity=room)
            if len(self._caches) == self._n:
                self._prompt_cache = None
        cache, before = self._caches[index], len(tokens) - 1
        if cache.length > before:  # the first step: the prompt's last token is in it already
            return cache.fork(before, capacity=before + 1)
        if unseen := tokens[cache.length : before]:  # steps that nobody wanted to look at
            model.forward(unseen, cache, logits="none")
        return cache

    def _prefill(self, model: Model) -> KVCache:
        """The prompt's cache."""
        if self._prompt_cache is None:
            prompt = self._prompt
            n = len(prompt.tokens)
            cache = model.new_cache(n)
            for start, stop in calls(model.config, prompt.image_positions, n, PREFILL_CHUNK):
                if self._over.is_set():
                    raise Cancelled
                where, rows = prompt.images_between(start, stop)
                model.forward(
                    prompt.tokens[start:stop],
                    cache,
                    logits="none",
                    image_positions=where,
                    image_rows=rows,
                )
            self._prompt_cache = cache
        return self._prompt_cache
