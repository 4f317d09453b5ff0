"""A token's forward, to be run again: the one way from a step to what went on inside.

The KV cache is append-only, so whatever is asked about a past step is one forward of one token over
the cache clipped to that step. A `Rerun` is that forward with all it needs; `LooksInside` is what
steps, and the choice before a step, offer to look at with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from tinyllm.distribution import Distribution
from tinyllm.inside.causal import CausalMap, causal_map
from tinyllm.inside.explain import Explanation, explain
from tinyllm.inside.explain_choice import CHOICE_NAMES, explain_choice
from tinyllm.inside.hooks import WHOLE, Conditions, HookTap
from tinyllm.inside.points import NamesFilter, match_names
from tinyllm.inside.replay import (
    ActivationCache,
    LogitLens,
    Replay,
    Timing,
    replay_token,
    token_id,
)
from tinyllm.kv_cache import KVCache
from tinyllm.model import Model, Tap
from tinyllm.prompt import texts_of
from tinyllm.runner import Array
from tinyllm.sampler import Logits
from tinyllm.tokenizer import Tokenizer


class Rerun:
    """The forward of the newest token before a choice, ready to be run again and again.

    Args:
        model: the readable one.
        tokenizer: for texts.
        tokens: all before the choice; the last one is run.
        lend: gives, for a `with` block, a cache of all tokens but that one, with room for it.
        under: the hooks and breakages that the tokens were run under.
        n_prompt: how many of the tokens are the prompt's.
        image_row: (dim,), if an image stands at the last token's position.
        image_positions: (M,) where images stand, for display.
        dtype: the weights' format on the path that decoded; its kernels are asked as well.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        tokens: Sequence[int],
        lend: Callable[[], AbstractContextManager[KVCache]],
        *,
        under: Conditions = WHOLE,
        n_prompt: int = 0,
        image_row: NDArray[np.float32] | None = None,
        image_positions: NDArray[np.int64] | None = None,
        dtype: str | None = None,
    ) -> None:
        self.model, self.tokenizer, self.tokens = model, tokenizer, list(tokens)
        self.under, self.n_prompt, self.dtype = under, n_prompt, dtype
        self._lend, self._image_row, self._image_positions = lend, image_row, image_positions

    @cached_property
    def texts(self) -> list[str]:
        """The tokens, each for display."""
        return texts_of(self.tokenizer, self.tokens, self._image_positions)

    @cached_property
    def replay(self) -> Replay:
        """The forward with everything recorded."""
        with self._lend() as cache:
            return replay_token(
                self.model,
                self.tokens[-1],
                cache,
                under=self.under,
                n_prompt=self.n_prompt,
                image_row=self._image_row,
            )

    @contextmanager
    def forwards(self) -> Iterator[Callable[[Tap], Logits]]:
        """For many forwards, each with a change of its own: a function from a tap to logits.

        The tap comes after the hooks that the step had; logits are (vocab_size,).
        """
        row = self._image_row
        with self._lend() as cache:
            before = cache.length

            def run(change: Tap) -> Logits:
                cache.truncate(before)
                earlier = HookTap(self.model, cache, self.under, self.n_prompt)
                logits: Logits = self.model.forward(
                    self.tokens[-1:],
                    cache,
                    tap=lambda name, array: change(name, earlier(name, array)),
                    image_positions=None if row is None else np.zeros(1, np.int64),
                    image_rows=None if row is None else row[None],
                )[-1]
                return logits

            yield run

    @cached_property
    def context(self) -> int:
        """How many tokens the sequence may come to: longrope chooses its angles by it."""
        with self._lend() as cache:
            return cache.context

    @cached_property
    def place(self) -> int:
        """The newest token's rotary position: its own, unless images stand before it."""
        with self._lend() as cache:
            return cache.next_place if self.model.config.axes is not None else cache.length

    def keys(self, layer: int) -> Array:
        """A layer's keys up to the newest token's, rotated: (S, n_kv_heads, head_dim)."""
        own = self.replay.key[layer][None]
        with self._lend() as cache:
            return np.concatenate([cache.keys(layer), own])

    def values(self, layer: int) -> Array:
        """A layer's values up to the newest token's: (S, n_kv_heads, head_dim)."""
        own = self.replay.value[layer][None]
        with self._lend() as cache:
            return np.concatenate([cache.values(layer), own])


class LooksInside:
    """What can be seen of the forward that a token is, or was, chosen from.

    Every look is a replay on the readable path, made at the first look and kept for the next ones.
    """

    @property
    def rerun(self) -> Rerun:
        """The forward, ready to be run again."""
        raise NotImplementedError

    @property
    def _asked_token(self) -> int:
        """The token that lens and causal map are about, where no other is named."""
        raise NotImplementedError

    @property
    def _distribution(self) -> Distribution:
        """What the token is, or was, drawn from."""
        raise NotImplementedError

    @property
    def replay(self) -> Replay:
        """The forward that led here, run again with everything recorded."""
        return self.rerun.replay

    @property
    def replay_error(self) -> float:
        """The largest gap between the replayed and the recorded logits.

        Rounding alone, 1e-4 or less, when the session computes in f32. The readable path's weights
        are the checkpoint's, so with bf16, q8 or q4 this is what the lower precision costs.
        """
        return float(np.abs(self.replay.logits - self._distribution.logits).max())

    def attention(self, layer: int, head: int) -> NDArray[np.float32]:
        """How the newest token before the choice attends: (position,), summing to 1."""
        return self.replay.attention(layer, head)

    def hidden_states(self) -> Array:
        """The residual stream at every depth, (n_layers + 1, dim) float32."""
        return self.replay.hidden_states

    def logit_lens(self, k: int = 5, token: int | str | None = None) -> LogitLens:
        """What each depth would say: its own stream through the final norm and the unembedding.

        Args:
            k: likeliest tokens to name at each depth.
            token: whose probability and rank each row has, an id or a text; default: the one that
                was chosen, or, before the choice, the likeliest.
        """
        token = self._token(token)
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
            raise ValueError(f"k must be at least 1, not {k!r}")
        tokenizer = self.rerun.tokenizer
        begun = tokenizer.unfinished(self.rerun.tokens)
        return self.replay.logit_lens(k, token, tokenizer, begun)

    lens = logit_lens

    def activations(self, names: NamesFilter = None) -> ActivationCache:
        """Activations at the newest position (T = 1), by name or glob; None gives all.

        Raises:
            HookError: an unknown name; the message has the nearest ones.
        """
        replay = self.replay
        config = replay.model.config
        return ActivationCache(
            config, {name: replay.activations[name] for name in match_names(config, names)}
        )

    def timing(self) -> Timing:
        """Seconds an operation takes, on the readable path."""
        return self.replay.timing

    def causal_map(self, layer: int | None = None, token: int | str | None = None) -> CausalMap:
        """What a token's log-probability owes to each layer's attention and MLP.

        See `tinyllm.inside.causal`; `layer` is the one whose heads are taken apart, by default
        the one whose attention matters most; `token` as in `logit_lens`.
        """
        token = self._token(token)
        return causal_map(self.rerun, token, layer)

    def _token(self, token: int | str | None) -> int:
        """The token that is asked about."""
        asked = self._asked_token if token is None else token
        return token_id(self.rerun.tokenizer, asked, len(self._distribution.logits))

    def explain(
        self, name: str, *, head: int | None = None, key: int | None = None, dim: int | None = None
    ) -> Explanation:
        """One number of this forward, or of what was drawn from it, as its formula with its values.

        Args:
            name: a hook point, as in "blocks.3.attn.hook_pattern"; or "logits", "p_raw", a filter
                ("penalties", "temperature", "top_k", "top_p") or "p", about one token.
            head: for arrays with a head axis, or, within experts, which of the token's chosen;
                default 0.
            key: for scores and patterns: the position looked at; default: the one that gets most.
            dim: the last index of other arrays, default 0; the token's id for logits and what is
                drawn from them, by default the one that was chosen.
        """
        if name in CHOICE_NAMES:
            for what, given in (("head", head), ("key", key)):
                if given is not None:
                    raise ValueError(f"{name} has no {what} axis; dim is the token")
            token = self._asked_token if dim is None else dim
            return explain_choice(self.rerun, self._distribution, name, token)
        return explain(self.rerun, name, head=head, key=key, dim=dim)
