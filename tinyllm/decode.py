"""Decoding, one token at a time: a Session that can be stepped, forced, rewound and forked.

`generate` is the fold of the same steps, so what a notebook sees is what a server sends. Nothing
is computed for looking until somebody looks: a step keeps its token and its logits; filters'
stages are worked out again on demand, and what went on inside the model by `Session.rerun`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tinyllm.errors import TurnEnded
from tinyllm.inside.along import LooksAlong
from tinyllm.inside.breakage import Breakage, broken_here
from tinyllm.inside.forwards import Forwards
from tinyllm.inside.hooks import Conditions, HookSet
from tinyllm.inside.replay import token_id
from tinyllm.inside.rerun import Rerun
from tinyllm.inside.trace_file import TraceRecord, record
from tinyllm.kv_cache import Cache
from tinyllm.model import Model
from tinyllm.prompt import ImageSpan, texts_of
from tinyllm.runner import Array, Runner
from tinyllm.sampler import (
    ChosenBy,
    Draws,
    Logits,
    Sampler,
    SamplingParams,
    changed_params,
    check_whole,
)
from tinyllm.step import CacheView as CacheView  # these three: importable from here, too
from tinyllm.step import Candidate as Candidate
from tinyllm.step import Candidates as Candidates
from tinyllm.step import Moment, NextToken, Step
from tinyllm.tokenizer import StreamDecoder, Tokenizer

KEPT_LOGITS = 128  # newest steps whose logits a session keeps: 25 MB; older ones are recomputed
SETTINGS = [f.name for f in fields(SamplingParams)]


class Session(LooksAlong):
    """A conversation with the decoder: look at what comes next, take it or force another, go back.

    Args:
        runner: the model, on either path.
        tokenizer: turns ids into text, and says which ids end a turn.
        prompt: token ids, at least one.
        params: how to sample; a seed makes it reproducible.
        capacity: tokens that prompt and completion may take together (default: the context; with
            longrope the original one, if the prompt fits it: its angles are other ones).
        readable: gives the readable model for replays; needn't be told when `runner` is that.
        hooks: those that are set while this session runs.
        broken: parts that are wrong in every forward of this session.
        image_positions, image_rows: (M,) and (M, dim): embeddings in place of the prompt's tokens
            there.
        images: which of the prompt's tokens each image takes, for display.
        name: the model's, for saved traces.
        said: what the model has said already: the next draw is the one that comes after these.
        cache: one that holds the first tokens of prompt and `said` already, fewer than all; the
            session goes on with it instead of a new one.
        logits: (vocab_size,) of what comes next, where the cache holds all tokens already.

    A call that is refused leaves the session as it was.

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
        broken: Sequence[Breakage] = (),
        image_positions: NDArray[np.int64] | None = None,
        image_rows: NDArray[np.float32] | None = None,
        images: Sequence[ImageSpan] = (),
        name: str = "",
        said: Sequence[int] = (),
        cache: Cache | None = None,
        logits: Logits | None = None,
    ) -> None:
        if not len(prompt):
            raise ValueError("the prompt is empty; give at least one token")
        self.runner = runner
        self.tokenizer = tokenizer
        self.name = name
        self.prompt = [int(t) for t in prompt]
        self.image_positions, self.image_rows = image_positions, image_rows
        self.images = tuple(images)
        self.steps: list[Step] = []
        limit, plain = runner.config.max_seq_len, runner.config.plain_context
        if capacity is None:
            capacity = plain if len(prompt) <= plain else limit
        check_whole("capacity", capacity, 0)
        self.cache: Cache = cache or runner.new_cache(min(capacity, limit))
        self._sampler = Sampler(params or SamplingParams(), prompt=self.prompt).at(said)
        self._forwards = Forwards(
            runner, tokenizer, len(self.prompt), readable, image_positions, image_rows
        )
        self._hooks, self._broken = hooks or HookSet(), tuple(broken)
        # Append-only, for steps share it: a rewind starts another.
        self._tokens = [*self.prompt, *self._sampler.picked]
        self._choice: tuple[Step, NextToken] | None = None  # what was looked at last
        self._rerun: tuple[Moment, Rerun] | None = None
        self._decoder = self._decoder_so_far()
        self._under = self._conditions()
        if logits is None:
            unseen = self._tokens[self.cache.length :]
            logits = self._forwards.run(unseen, self.cache, self._under)
        self._logits = logits  # of what comes next

    def __setattr__(self, name: str, value: object) -> None:
        if not name.startswith("_") and "_logits" in self.__dict__:
            remedy = ""
            if name in SETTINGS:
                remedy = f": session.set({name}=…) changes it from the next step on"
            raise AttributeError(f"a session's {name} can't be assigned{remedy}")
        object.__setattr__(self, name, value)

    @property
    def sampler(self) -> Sampler:
        """What draws the tokens; `set` changes its parameters."""
        return self._sampler

    @property
    def params(self) -> SamplingParams:
        """The sampling parameters of the next step."""
        return self._sampler.params

    @property
    def draws(self) -> Draws:
        """The sampling parameters and seed of the next step."""
        return Draws.of(self._sampler)

    @property
    def tokens(self) -> list[int]:
        """Prompt and completion."""
        return list(self._tokens)

    @property
    def texts(self) -> list[str]:
        """Prompt and completion, each token for display."""
        return texts_of(self.tokenizer, self._tokens, self.image_positions)

    @property
    def text(self) -> str:
        """The completion so far."""
        return self.tokenizer.decode(self._sampler.picked)

    @property
    def finished(self) -> bool:
        """Whether a token of the completion has ended the model's turn."""
        return any(token in self.tokenizer.eos_ids for token in self._sampler.picked)

    def peek(self) -> NextToken:
        """The distribution that the next step would draw from; nothing moves."""
        logits = self._next_logits()
        return NextToken(logits, self._sampler.fork(), session=self, moment=self._moment())

    def step(self, token: int | str | None = None, *, beyond_end: bool = False) -> Step:
        """Decode one token: the sampler's choice, or `token` (an id, or text that is one token).

        Args:
            token: what to take whatever the model says.
            beyond_end: go on although the model has ended its turn.

        Raises:
            TurnEnded: it has, and `beyond_end` isn't set.
            ValueError: the text isn't exactly one token, or the id is out of range.
            TypeError: neither a text nor an id.
            CacheFull: the context is full.
        """
        n_tokens = self.runner.config.vocab_size
        forced = None if token is None else token_id(self.tokenizer, token, n_tokens)
        if self.finished and not beyond_end:
            raise TurnEnded(
                "the model has ended its turn; step(beyond_end=True) goes on all the same, and "
                "rewind(n) goes back before the end"
            )
        return self._decide(forced)

    def redo(self, token: int, draws: Draws, chosen_by: ChosenBy) -> Step:
        """Decode a token as it was decoded once: see `inside/reopen.py`."""
        self.set_draws(draws)
        return self._decide(token, chosen_by)

    def _decide(self, forced: int | None, chosen_by: ChosenBy | None = None) -> Step:
        logits = self._next_logits()
        draws = self.draws
        pick = self._sampler.pick(logits, forced=forced)
        step = Step(
            session=self,
            moment=self._moment(),
            index=len(self._sampler.picked) - 1,
            token=pick.token,
            text_delta=self._decoder.push(pick.token),
            logprob=pick.logprob,
            chosen_by=chosen_by or pick.chosen_by,
            draws=draws,
            kept_logits=[logits],
        )
        self._tokens.append(pick.token)
        self.steps.append(step)
        if len(self.steps) > KEPT_LOGITS + 1:
            # The first step's come from a whole prompt at once, which a replay can't give again
            # to the bit; they stay.
            self.steps[-KEPT_LOGITS - 1].kept_logits.clear()
        return step

    def run(
        self,
        n: int | None = None,
        *,
        until: str | Callable[[Step], bool] | None = None,
        beyond_end: bool = False,
    ) -> list[Step]:
        """Step several times; the model's end of turn ends it too.

        Args:
            n: at most so many steps; default: until something else ends it, the context's end too.
            until: a text that the steps' own text is to hold, or a function that is asked about
                each step; the step that fulfils it is the last.
            beyond_end: go on although the model has ended its turn.

        Returns:
            The new steps.

        Raises:
            ValueError: a negative or fractional `n`, or an empty text.
            TurnEnded: the turn had ended before, and `beyond_end` isn't set.
        """
        if n is not None and (isinstance(n, bool) or not isinstance(n, int) or n < 0):
            raise ValueError(f"n must be a whole number of steps, not {n!r}")
        if until is not None and not callable(until) and not (isinstance(until, str) and until):
            raise ValueError(f"until must be a text or a function of a step, not {until!r}")
        room = self.cache.capacity - len(self._tokens) + 1
        steps: list[Step] = []
        text = ""
        while len(steps) < (room if n is None else n):
            step = self.step(beyond_end=beyond_end)
            steps.append(step)
            text += step.text_delta
            if (until in text) if isinstance(until, str) else (until is not None and until(step)):
                break
            if self.finished and not beyond_end:
                break
        return steps

    def set(self, **sampling: Any) -> None:
        """Draw otherwise from the next step on; earlier steps keep what held for them.

        Args:
            sampling: fields of SamplingParams, as in set(temperature=0.7, top_k=40).

        Raises:
            ValueError: an unknown field, or a value out of its range.
        """
        params = changed_params(self.params, sampling, self.runner.config.vocab_size)
        seed = self._sampler.seed if sampling.get("seed") is None else sampling["seed"]
        self.set_draws(Draws(params, seed, self._sampler.stream))

    def set_draws(self, draws: Draws) -> None:
        """Draw the next tokens like this: `set` for all parameters, the seed and its stream."""
        self._sampler = draws.sampler(self.prompt, self._sampler.picked)

    def rewind(self, n: int = 1) -> None:
        """Take back the last n steps: the next one has the same logits and the same draw again.

        Sampling parameters are again those of the first step that is taken back.

        Raises:
            ValueError: there are fewer steps.
        """
        if isinstance(n, bool) or not isinstance(n, int) or not 0 <= n <= len(self.steps):
            raise ValueError(f"can't rewind {n} of {len(self.steps)} steps")
        if not n:
            return
        back_to = self.steps[-n]
        self._logits, self._under = back_to.logits, back_to.moment.under
        self._sampler = back_to.draws.sampler(self.prompt, self._sampler.picked[:-n])
        del self.steps[-n:]
        self._tokens = self._tokens[: back_to.position]
        self._decoder = self._decoder_so_far()
        self.cache.truncate(min(self.cache.length, len(self._tokens)))

    def fork(self) -> Session:
        """An independent session in the same state; neither can touch the other."""
        twin = object.__new__(Session)
        own: dict[str, Any] = {
            "prompt": list(self.prompt),
            "_tokens": list(self._tokens),
            "_sampler": self._sampler.fork(),
            "cache": self.cache.fork(),
            "_decoder": self._decoder_so_far(),
            "_choice": None,
            "_rerun": None,
        }
        twin.__dict__.update({**self.__dict__, **own})
        twin.__dict__["steps"] = [
            replace(
                step,
                session=twin,
                moment=step.moment._replace(history=twin._tokens),
                kept_logits=list(step.kept_logits),
            )
            for step in self.steps
        ]
        return twin

    __copy__ = fork  # two sessions with one cache would write into each other's tokens

    def __deepcopy__(self, memo: object) -> Session:
        return self.fork()

    def __reduce__(self) -> Any:
        raise TypeError(
            "a session can't be pickled, for it holds the model; session.trace().save(path) keeps "
            "it, and tinyllm.reopen(path) opens it again"
        )

    def __repr__(self) -> str:
        state = ", finished" if self.finished else ""
        return (
            f"Session({len(self.prompt)} prompt tokens + {len(self.steps)} steps{state}: "
            f"{self.text[-40:]!r})"
        )

    def trace(self, **parts: Any) -> TraceRecord:
        """All steps so far as a versioned trace to save; `parts` as in `Step.to_dict`."""
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
            self._forwards.check_path(now)
            self.cache.truncate(min(self.cache.length, redo))
        start = self.cache.length
        if unseen := self._tokens[start:]:
            try:
                self._logits = self._forwards.run(unseen, self.cache, now)
            except BaseException:  # a hook's own, or control-C: no half of a forward stays
                self.cache.truncate(min(self.cache.length, start))
                raise
            self._under = now
        return self._logits

    def _conditions(self) -> Conditions:
        return Conditions(self._hooks.active, self._broken + broken_here())

    def _decoder_so_far(self) -> StreamDecoder:
        """A stream decoder that has seen the completion, bytes of a half character included."""
        decoder = StreamDecoder(self.tokenizer)
        for token in self._sampler.picked:
            decoder.push(token)
        return decoder

    # Looking at past steps ----------------------------------------------------------------------

    def _moment(self) -> Moment:
        return Moment(self._tokens, len(self._tokens), self._under)

    def rerun(self, moment: Moment) -> Rerun:
        """The forward behind the logits at a moment of this session, ready to be run again.

        Raises:
            TraceError: there is no readable model.
        """
        kept = self._rerun
        if kept is None or kept[0] != moment or kept[0].history is not moment.history:
            kept = moment, self._forwards.rerun(moment, self._tokens, self.cache)
            self._rerun = kept
        return kept[1]

    def logits_at(self, moment: Moment) -> Logits:
        """The logits at a past moment: its forward again, on the same path."""
        return self._forwards.logits_at(moment, self._tokens, self.cache)

    def cached(self, moment: Moment, what: Literal["keys", "values"], layer: int) -> Array:
        """A copy of a layer's keys or values before a moment: (position, n_kv_heads, head_dim)."""
        return self._forwards.cached(moment, self._tokens, self.cache, what, layer)

    def choice_of(self, step: Step) -> NextToken:
        """The distribution that a step's token was drawn from."""
        if self._choice is None or self._choice[0] is not step:
            picked = step.tokens_before[len(self.prompt) :]
            choice = NextToken(
                step.logits,
                step.draws.sampler(self.prompt, picked),
                session=self,
                moment=step.moment,
                chosen=step.token,
            )
            self._choice = step, choice
        return self._choice[1]


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
