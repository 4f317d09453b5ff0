"""Decoding, one token at a time: a Session that can be stepped, forced, rewound and forked.

`generate` is the fold of the same steps, so what a notebook sees is what a server sends. Nothing
is computed for looking until somebody looks: a step keeps its token and its logits; filters'
stages are worked out again on demand, and what went on inside the model by replay (`trace.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from tinyllm.distribution import Distribution, Stages, Standing
from tinyllm.errors import HookError, TraceError
from tinyllm.inside.hooks import READABLE_ONLY, Hook, HookSet, NamesFilter, make_tap, match_names
from tinyllm.inside.replay import (
    ActivationCache,
    LogitLens,
    Replay,
    Timing,
    check_index,
    clipped_cache,
    replay_token,
)
from tinyllm.kv_cache import Cache, KVCache
from tinyllm.model import Model
from tinyllm.runner import Array, Runner, Segment
from tinyllm.sampler import ChosenBy, Logits, Sampler, SamplingParams, uniform
from tinyllm.tokenizer import StreamDecoder, Tokenizer

if TYPE_CHECKING:
    from tinyllm.inside.causal import CausalMap
    from tinyllm.inside.trace_file import TraceRecord

KEPT_LOGITS = 128  # newest steps whose logits a session keeps: 25 MB; older ones are recomputed


@dataclass(frozen=True)
class Candidate:
    """A token that could have come next: its text, and the fields of `distribution.Standing`."""

    token: int
    text: str
    logit: float
    p_raw: float
    p: float
    rank: int
    cut_by: str | None

    @property
    def kept(self) -> bool:
        """Whether it could be drawn."""
        return self.cut_by is None


class Candidates(list[Candidate]):
    """Candidates, likeliest first; `chosen` is the token that was taken, if one was."""

    def __init__(self, items: Sequence[Candidate], chosen: int | None = None) -> None:
        super().__init__(items)
        self.chosen = chosen

    def __repr__(self) -> str:
        shown = ", ".join(f"{c.text!r} {c.p_raw:.1%}" for c in self[:5])
        return f"Candidates({shown}{', …' if len(self) > 5 else ''})"

    def _repr_html_(self) -> str:
        from tinyllm.inside.display import candidates_html

        return candidates_html(self)


@dataclass(frozen=True, eq=False)
class Choice(Distribution):
    """The distribution that a token is chosen from, with the tokens' texts."""

    tokenizer: Tokenizer = field(repr=False)
    chosen: int | None = None  # the token that was taken, once one is

    def candidates(self, k: int = 10) -> Candidates:
        """The k likeliest tokens by raw logit, ties by id, with what became of each."""
        return Candidates([self._candidate(s) for s in self.best(k)], self.chosen)

    def candidate(self, token: int) -> Candidate:
        """One token's candidate, wherever it ranks."""
        check_index("token", token, len(self.logits))
        return self._candidate(self.standing(token))

    def _candidate(self, standing: Standing) -> Candidate:
        return Candidate(text=self.tokenizer.token_text(standing.token), **standing._asdict())

    def __repr__(self) -> str:
        best = self.candidates(3)
        shown = ", ".join(f"{c.text!r} {c.p_raw:.1%}" for c in best)
        return f"Choice({shown}, …; entropy {self.entropy:.2f} nats)"

    def _repr_html_(self) -> str:
        return self.candidates()._repr_html_()


class CacheView:
    """A read-only view of the KV cache as a step saw it: the tokens before the chosen one.

    Attributes:
        n_tokens: tokens held.
        nbytes: bytes that these tokens take.
    """

    def __init__(self, step: Step) -> None:
        self._step = step
        self.n_tokens = step.position
        cache = step.session.cache
        self.nbytes = cache.nbytes * self.n_tokens // max(1, cache.length)

    def k(self, layer: int) -> Array:
        """A copy of one layer's keys, rotated: (n_tokens, n_kv_heads, head_dim)."""
        check_index("layer", layer, self._step.session.runner.config.n_layers)
        return self._step.session._cached(self._step, "keys", layer)

    def v(self, layer: int) -> Array:
        """A copy of one layer's values: (n_tokens, n_kv_heads, head_dim)."""
        check_index("layer", layer, self._step.session.runner.config.n_layers)
        return self._step.session._cached(self._step, "values", layer)

    def __repr__(self) -> str:
        return f"CacheView({self.n_tokens} tokens, {self.nbytes / 1e6:.2f} MB)"

    def _repr_html_(self) -> str:
        from tinyllm.inside.display import cache_html

        return cache_html(self, self._step.session.runner.config)


class Conditions(NamedTuple):
    """What was set while logits were computed: whatever else, they can't be used again under."""

    hooks: tuple[Hook, ...]
    broken: tuple[str, ...]  # by tinyllm.inside.lab


class Step:
    """One decoded token, and all that led to it.

    Attributes:
        session: the one that decoded it.
        index: of the completion, from 0.
        position: of the token in the sequence.
        token: its id.
        text_delta: whole code points; may be empty while an emoji is under way.
        logprob: under the softmax of the raw logits, natural log.
        chosen_by: "argmax", "sample" or "forced".
    """

    def __init__(
        self,
        session: Session,
        index: int,
        token: int,
        text_delta: str,
        logprob: float,
        chosen_by: ChosenBy,
        logits: Logits,
        history: list[int],
        under: Conditions,
    ) -> None:
        self.session = session
        self.index, self.token = index, token
        self.text_delta, self.logprob, self.chosen_by = text_delta, logprob, chosen_by
        self.position = len(session.prompt) + index
        self._logits: Logits | None = logits
        self._history = history  # append-only, shared: [:position] is what came before
        self._under = under

    @property
    def tokens_before(self) -> list[int]:
        """Prompt and completion up to this step, its own token not included."""
        return self._history[: self.position]

    # The distribution ---------------------------------------------------------------------------

    @property
    def logits(self) -> Logits:
        """Raw, (vocab_size,) float32: before any filter."""
        return self.session._logits_of(self) if self._logits is None else self._logits

    @property
    def choice(self) -> Choice:
        """The distribution that the token was chosen from."""
        return self.session._choice_of(self)

    @property
    def stages(self) -> Stages:
        """The logits after each filter, in order."""
        return self.choice.stages

    @property
    def entropy(self) -> float:
        """Of the raw distribution, in nats."""
        return self.choice.entropy

    @property
    def uniform(self) -> float:
        """The number in [0, 1) that a draw here uses: it hangs on seed, stream and index alone."""
        sampler = self.session.sampler
        return uniform(sampler.seed, sampler.stream, self.index)

    def candidates(self, k: int = 10) -> Candidates:
        """The k likeliest tokens by raw logit, with what became of each."""
        return self.choice.candidates(k)

    # Inside the model ---------------------------------------------------------------------------

    @property
    def cache(self) -> CacheView:
        """The KV cache as this step saw it."""
        return CacheView(self)

    @property
    def replay(self) -> Replay:
        """The forward that led here, run again on the readable path with everything recorded."""
        return self.session._replay_of(self)

    @property
    def replay_error(self) -> float:
        """The largest gap between the replayed and the recorded logits.

        Rounding alone, 1e-4 or less, when the session computes in f32. The readable path's weights
        are the checkpoint's, so with bf16, q8 or q4 this is what the lower precision costs.
        """
        return float(np.abs(self.replay.logits - self.logits).max())

    def attention(self, layer: int, head: int) -> NDArray[np.float32]:
        """How the newest token before the choice attends: (position,), summing to 1."""
        return self.replay.attention(layer, head)

    def hidden_states(self) -> Array:
        """The residual stream at every depth, (n_layers + 1, dim) float32."""
        return self.replay.hidden_states

    def logit_lens(self, k: int = 5) -> LogitLens:
        """What each depth would say: its own stream through the final norm and the unembedding."""
        return self.replay.logit_lens(k, self.token, self.session.tokenizer)

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

    def causal_map(self, layer: int | None = None) -> CausalMap:
        """What the token's log-probability owes to each layer's attention and MLP.

        See `tinyllm.inside.causal`; `layer` is the one whose heads are taken apart, by default
        the one whose attention matters most.
        """
        from tinyllm.inside.causal import causal_map

        return causal_map(self, layer)

    def to_dict(self, **parts: Any) -> dict[str, Any]:
        """This step alone as a versioned trace, plain data for JSON.

        Args:
            parts: what to put in: candidates=10, stages=True, lens=0 (k), attention=(layer, heads);
                see `trace_file.record_step`.
        """
        from tinyllm.inside.trace_file import record

        return record(self.session, [self], **parts).to_dict()

    def __repr__(self) -> str:
        text = self.session.tokenizer.token_text(self.token)
        return (
            f"Step({self.index}: {text!r}, p {np.exp(self.logprob):.1%}, {self.chosen_by}, "
            f"position {self.position})"
        )

    def _repr_html_(self) -> str:
        from tinyllm.inside.display import step_html

        return step_html(self)


class Session:
    """A conversation with the decoder: look at what comes next, take it or force another, go back.

    Args:
        runner: the model, on either path.
        tokenizer: turns ids into text, and says which ids end a turn.
        prompt: token ids, at least one.
        params: how to sample; a seed makes it reproducible.
        capacity: tokens that prompt and completion may take together (default: the context).
        readable: gives the readable model for replays; needn't be told when `runner` is that.
        hooks: those that are set while this session runs.
        image_positions, image_rows: (M,) and (M, dim): embeddings in place of the prompt's tokens
            there.
        name: the model's, for saved traces.
        said: what the model has said already: the next draw is the one that comes after these.
        cache: one that holds the first tokens of prompt and `said` already, fewer than all; the
            session goes on with it instead of a new one.

    Raises:
        ValueError: an empty prompt.
        CacheFull: the prompt doesn't fit.
    """

    def __init__(
        self,
        runner: Runner,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        params: SamplingParams | None = None,
        *,
        capacity: int | None = None,
        readable: Callable[[], Model] | None = None,
        hooks: HookSet | None = None,
        image_positions: NDArray[np.int64] | None = None,
        image_rows: NDArray[np.float32] | None = None,
        name: str = "",
        said: Sequence[int] = (),
        cache: Cache | None = None,
    ) -> None:
        if not len(prompt):
            raise ValueError("the prompt is empty; give at least one token")
        self.runner = runner
        self.tokenizer = tokenizer
        self.name = name
        self.prompt = [int(t) for t in prompt]
        self.image_positions, self.image_rows = image_positions, image_rows
        self.sampler = Sampler(params or SamplingParams(), prompt=self.prompt).at(said)
        self.steps: list[Step] = []
        self._readable = readable
        self._hooks = hooks or HookSet()
        self._tokens = [*self.prompt, *self.sampler.picked]  # append-only: steps share it
        self._choice: tuple[Step, Choice] | None = None  # what was looked at last
        self._replay: tuple[Step, Replay] | None = None
        self._decoder = self._decoder_so_far()
        limit = runner.config.max_seq_len
        self.cache: Cache = cache or runner.new_cache(
            limit if capacity is None else min(capacity, limit)
        )
        self._under = self._conditions()
        unseen = self._tokens[self.cache.length :]
        self._logits = self._run(unseen, self.cache, self._under.hooks)  # of what comes next

    @property
    def tokens(self) -> list[int]:
        """Prompt and completion."""
        return list(self._tokens)

    @property
    def text(self) -> str:
        """The completion so far."""
        return self.tokenizer.decode(self.sampler.picked)

    @property
    def finished(self) -> bool:
        """Whether the last token ends the model's turn."""
        picked = self.sampler.picked
        return bool(picked) and picked[-1] in self.tokenizer.eos_ids

    def peek(self) -> Choice:
        """The distribution that the next step would draw from; nothing moves."""
        return Choice(self._next_logits(), self.sampler.fork(), self.tokenizer)

    def step(self, token: int | str | None = None) -> Step:
        """Decode one token: the sampler's choice, or `token` (an id, or text that is one token).

        Raises:
            ValueError: the text isn't exactly one token, or the id is out of range.
            CacheFull: the context is full.
        """
        forced = self._one_token(token) if isinstance(token, str) else token
        logits = self._next_logits()
        pick = self.sampler.pick(logits, forced=forced)
        step = Step(
            self,
            index=len(self.sampler.picked) - 1,
            token=pick.token,
            text_delta=self._decoder.push(pick.token),
            logprob=pick.logprob,
            chosen_by=pick.chosen_by,
            logits=logits,
            history=self._tokens,
            under=self._under,
        )
        self._tokens.append(pick.token)
        self.steps.append(step)
        if len(self.steps) > KEPT_LOGITS + 1:
            # The first step's come from a whole prompt at once, which a replay can't give again
            # to the bit; they stay.
            self.steps[-KEPT_LOGITS - 1]._logits = None
        return step

    def rewind(self, n: int = 1) -> None:
        """Take back the last n steps: the next one has the same logits and the same draw again."""
        if not 0 <= n <= len(self.steps):
            raise ValueError(f"can't rewind {n} of {len(self.steps)} steps")
        if not n:
            return
        back_to = self.steps[-n]
        self._logits, self._under = back_to.logits, back_to._under
        self.sampler.rewind(n)
        del self.steps[-n:]
        self._tokens = self._tokens[: back_to.position]
        self._decoder = self._decoder_so_far()
        self.cache.truncate(min(self.cache.length, len(self._tokens)))

    def fork(self) -> Session:
        """An independent session in the same state; neither can touch the other."""
        twin = object.__new__(Session)
        twin.__dict__.update(self.__dict__)
        twin.prompt, twin._tokens = list(self.prompt), list(self._tokens)
        twin.sampler, twin.cache = self.sampler.fork(), self.cache.fork()
        twin._decoder = twin._decoder_so_far()
        twin._choice = twin._replay = None
        twin.steps = [twin._adopt(step) for step in self.steps]
        return twin

    def __repr__(self) -> str:
        state = ", finished" if self.finished else ""
        return (
            f"Session({len(self.prompt)} prompt tokens + {len(self.steps)} steps{state}: "
            f"{self.text[-40:]!r})"
        )

    def trace(self, **parts: Any) -> TraceRecord:
        """All steps so far as a versioned trace to save; `parts` as in `Step.to_dict`."""
        from tinyllm.inside.trace_file import record

        return record(self, self.steps, **parts)

    # Running the model --------------------------------------------------------------------------

    def _next_logits(self) -> Logits:
        """Feed what was picked but not seen by the model yet, and give the logits after it."""
        now = self._conditions()
        if now != self._under:
            # They were computed under other hooks: run the newest token (or, before the first
            # step, the whole prompt) again, for a hook must not be passed by.
            n_tokens = len(self._tokens)
            redo = n_tokens - 1 if self.steps else 0
            self.cache.truncate(min(self.cache.length, redo))
        unseen = self._tokens[self.cache.length :]
        if unseen:
            self._under = now
            self._logits = self._run(unseen, self.cache, now.hooks)
        return self._logits

    def _conditions(self) -> Conditions:
        return Conditions(self._hooks.active, tuple(READABLE_ONLY))

    def _run(self, tokens: Sequence[int], cache: Cache, hooks: Sequence[Hook]) -> Logits:
        """Logits after `tokens`, which the cache is grown by."""
        ids, start = np.asarray(tokens, np.int32), cache.length
        where = rows = None
        if self.image_positions is not None and self.image_rows is not None:
            here = (self.image_positions >= start) & (self.image_positions < start + len(ids))
            if here.any():
                where, rows = self.image_positions[here] - start, self.image_rows[here]
        readable = isinstance(self.runner, Model) and isinstance(cache, KVCache)
        if (hooks or READABLE_ONLY) and not readable:
            raise HookError(
                "this session was opened on the compiled path, where hooks and lab.break_it have "
                "no place; open it inside the `with` block, and it takes the readable path"
            )
        logits: Logits
        if not hooks:
            segment = Segment(ids, cache, image_positions=where, image_rows=rows)
            logits = self.runner.forward_batch([segment])[0][-1]
            return logits
        logits = cast(Model, self.runner).prefill(
            ids,
            cast(KVCache, cache),
            tap=make_tap(self.runner.config, cache, hooks, len(self.prompt)),
            image_positions=where,
            image_rows=rows,
        )[-1]
        return logits

    def _decoder_so_far(self) -> StreamDecoder:
        """A stream decoder that has seen the completion, bytes of a half character included."""
        decoder = StreamDecoder(self.tokenizer)
        for token in self.sampler.picked:
            decoder.push(token)
        return decoder

    def _one_token(self, text: str) -> int:
        ids = self.tokenizer.encode(text, allow_special=True)
        if len(ids) != 1:
            parts = [self.tokenizer.token_text(i) for i in ids]
            raise ValueError(f"{text!r} is {len(ids)} tokens, not one: {parts}; step through them")
        return ids[0]

    # Looking at past steps ----------------------------------------------------------------------

    def _adopt(self, step: Step) -> Step:
        """The same step as one of this session's own."""
        twin = object.__new__(Step)
        twin.__dict__.update(step.__dict__)
        twin.session, twin._history = self, self._tokens
        return twin

    def _cache_at(self, step: Step, length: int) -> Cache:
        """A cache whose first `length` positions are the step's own history.

        That is the session's cache, as long as nothing was rewound and chosen differently since;
        otherwise what differs is computed again on a fork.
        """
        same = min(_common_prefix(self._tokens, step._history, length), self.cache.length)
        if same >= length:
            return self.cache
        cache = self.cache.fork(same, capacity=length)
        for token in step._history[same:length]:  # one at a time, as they were decoded
            self._run([token], cache, step._under.hooks)
        return cache

    def _choice_of(self, step: Step) -> Choice:
        if self._choice is None or self._choice[0] is not step:
            before = self.sampler.at(step._history[len(self.prompt) : step.position])
            self._choice = step, Choice(step.logits, before, self.tokenizer, step.token)
        return self._choice[1]

    def _cached(self, step: Step, what: Literal["keys", "values"], layer: int) -> Array:
        cache = self._cache_at(step, step.position)
        held = cache.keys(layer) if what == "keys" else cache.values(layer)
        copy: Array = np.array(held[: step.position])
        copy.flags.writeable = False
        return copy

    def _logits_of(self, step: Step) -> Logits:
        """The logits of a step that no longer has them: its forward again, on the same path."""
        before = step.position - 1
        cache = self._cache_at(step, before).fork(before, capacity=step.position)
        try:
            return self._run([step._history[before]], cache, step._under.hooks)
        finally:
            cache.free()

    def _replay_of(self, step: Step) -> Replay:
        if self._replay is not None and self._replay[0] is step:
            return self._replay[1]
        model = self._readable_model()
        with self._until(step, model) as cache:
            replay = replay_token(
                model,
                step._history[step.position - 1],
                cache,
                hooks=step._under.hooks,
                n_prompt=len(self.prompt),
                image_row=self._image_row(step.position - 1),
            )
        self._replay = (step, replay)
        return replay

    def _readable_model(self) -> Model:
        if isinstance(self.runner, Model):
            return self.runner
        if self._readable is None:
            raise TraceError(
                "this session runs on the compiled path alone, which can't be looked into; "
                "open it with readable=lambda: model"
            )
        return self._readable()

    def _image_row(self, position: int) -> NDArray[np.float32] | None:
        """What stands in for the token at a position, if an image does."""
        if self.image_positions is None or self.image_rows is None:
            return None
        (found,) = np.nonzero(self.image_positions == position)
        return self.image_rows[found[0]] if len(found) else None

    @contextmanager
    def _until(self, step: Step, model: Model) -> Iterator[KVCache]:
        """A cache of what came before the step's newest token, to run that token over.

        The session's own where that has them, as it was then and only for so long; else a copy.
        """
        before = step.position - 1
        cache = self._cache_at(step, before)
        if isinstance(cache, KVCache) and cache.length > before:
            with cache.lent(before) as lent:
                yield lent
        else:
            yield clipped_cache(model, cache, before, step.position)


def _common_prefix(a: list[int], b: list[int], length: int) -> int:
    """How many of the first `length` tokens two histories share."""
    if a is b:
        return length
    pairs = zip(a, b[:length], strict=False)
    return next((i for i, (x, y) in enumerate(pairs) if x != y), min(length, len(a), len(b)))


@dataclass(frozen=True)
class Generation:
    """A finished completion."""

    text: str
    tokens: list[int]
    logprobs: list[float]
    finish_reason: Literal["stop", "length"]
    n_prompt_tokens: int


def decode_steps(session: Session, max_tokens: int) -> Iterator[Step]:
    """Step until the model ends its turn or `max_tokens` are out; the end token is a step too."""
    for _ in range(max_tokens):
        yield session.step()
        if session.finished:
            return


def generate(session: Session, max_tokens: int) -> Generation:
    """The fold of `decode_steps`: the end token is left out of text and tokens."""
    for _ in decode_steps(session, max_tokens):
        pass
    ended = session.finished
    steps = session.steps[:-1] if ended else session.steps
    tokens = [s.token for s in steps]
    return Generation(
        text=session.tokenizer.decode(tokens),
        tokens=tokens,
        logprobs=[s.logprob for s in steps],
        finish_reason="stop" if ended else "length",
        n_prompt_tokens=len(session.prompt),
    )
