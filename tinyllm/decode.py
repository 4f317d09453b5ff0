"""Decoding, one token at a time: a Session that can be stepped, forced, rewound and forked.

`generate` is the fold of the same steps, so what a notebook sees is what a server sends.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tinyllm.kv_cache import Cache
from tinyllm.model import Runner, Segment
from tinyllm.sampler import (
    ChosenBy,
    Sampler,
    SamplingParams,
    probabilities,
)
from tinyllm.tokenizer import StreamDecoder, Tokenizer

Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Candidate:
    """A token that could have come next.

    `p_raw` is its probability under the raw logits; `p` the one it was drawn with, zero once a
    filter has cut it; `cut_by` names that filter. `rank` counts from 0, by raw logit.
    """

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


@dataclass(frozen=True, eq=False)
class Choice:
    """The distribution that a token is chosen from: logits, and what each filter leaves of them."""

    logits: Logits  # (vocab_size,) raw
    stages: list[tuple[str, Logits]]  # raw → mask → penalties → temperature → top_k → top_p
    tokenizer: Tokenizer = field(repr=False)

    @cached_property
    def p_raw(self) -> NDArray[np.float64]:
        """Softmax of the raw logits, (vocab_size,)."""
        return probabilities(self.logits)

    @cached_property
    def p(self) -> NDArray[np.float64]:
        """What is drawn from, (vocab_size,): zero where a filter has cut."""
        return probabilities(self.stages[-1][1])

    @cached_property
    def entropy(self) -> float:
        """Of the raw distribution, in nats."""
        p = self.p_raw[self.p_raw > 0]
        return float(-(p * np.log(p)).sum())

    def candidates(self, k: int = 10) -> list[Candidate]:
        """The k likeliest tokens by raw logit, ties by id, with what became of each."""
        k = min(k, len(self.logits))
        ids = np.sort(np.argpartition(-self.logits, k - 1)[:k]) if k else np.zeros(0, np.int64)
        ids = ids[np.argsort(-self.logits[ids], kind="stable")]
        return [self.candidate(int(token), rank) for rank, token in enumerate(ids)]

    def candidate(self, token: int, rank: int | None = None) -> Candidate:
        """One token's candidate, wherever it ranks."""
        if rank is None:
            logit = self.logits[token]
            before = np.count_nonzero(self.logits > logit)
            rank = int(before + np.count_nonzero(self.logits[:token] == logit))
        return Candidate(
            token=token,
            text=self.tokenizer.token_text(token),
            logit=float(self.logits[token]),
            p_raw=float(self.p_raw[token]),
            p=float(self.p[token]),
            rank=rank,
            cut_by=next((name for name, x in self.stages if np.isneginf(x[token])), None),
        )


@dataclass(frozen=True, eq=False)
class Step:
    """One decoded token, and all that led to it."""

    index: int  # of the completion, from 0
    position: int  # of the token in the sequence
    token: int
    text_delta: str  # whole code points; may be empty while an emoji is under way
    logprob: float  # under the softmax of the raw logits, natural log
    chosen_by: ChosenBy
    choice: Choice = field(repr=False)

    @property
    def logits(self) -> Logits:
        """Raw, (vocab_size,): before any filter."""
        return self.choice.logits

    @property
    def stages(self) -> list[tuple[str, Logits]]:
        """The logits after each filter, by name, in order."""
        return self.choice.stages

    @property
    def entropy(self) -> float:
        """Of the raw distribution, in nats."""
        return self.choice.entropy

    def candidates(self, k: int = 10) -> list[Candidate]:
        """The k likeliest tokens by raw logit, with what became of each."""
        return self.choice.candidates(k)


class Session:
    """A conversation with the decoder: look at what comes next, take it or force another, go back.

    Args:
        runner: the model, on either path.
        tokenizer: turns ids into text, and says which ids end a turn.
        prompt: token ids, at least one.
        params: how to sample; a seed makes it reproducible.
        capacity: tokens that prompt and completion may take together (default: the context).

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
    ) -> None:
        if not len(prompt):
            raise ValueError("the prompt is empty; give at least one token")
        self.runner = runner
        self.tokenizer = tokenizer
        self.prompt = [int(t) for t in prompt]
        self.sampler = Sampler(params or SamplingParams())
        self.steps: list[Step] = []
        limit = runner.config.max_seq_len
        self.cache: Cache = runner.new_cache(limit if capacity is None else min(capacity, limit))
        self._logits = self._run(self.prompt)  # of the token that comes next
        self._decoder = StreamDecoder(tokenizer)

    @property
    def tokens(self) -> list[int]:
        """Prompt and completion."""
        return self.prompt + self.sampler.picked

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
        return Choice(self._next_logits(), self.sampler.stages(self._next_logits()), self.tokenizer)

    def step(self, token: int | str | None = None) -> Step:
        """Decode one token: the sampler's choice, or `token` (an id, or text that is one token).

        Raises:
            ValueError: the text isn't exactly one token, or the id is out of range.
            CacheFull: the context is full.
        """
        forced = self._one_token(token) if isinstance(token, str) else token
        choice = self.peek()  # before the pick: penalties count what came earlier
        pick = self.sampler.pick(choice.logits, forced=forced)
        position = len(self.prompt) + len(self.steps)
        step = Step(
            index=len(self.steps),
            position=position,
            token=pick.token,
            text_delta=self._decoder.push(pick.token),
            logprob=pick.logprob,
            chosen_by=pick.chosen_by,
            choice=choice,
        )
        self.steps.append(step)
        return step

    def rewind(self, n: int = 1) -> None:
        """Take back the last n steps: the next one has the same logits and the same draw again."""
        if not 0 <= n <= len(self.steps):
            raise ValueError(f"can't rewind {n} of {len(self.steps)} steps")
        if not n:
            return
        self._logits = self.steps[-n].logits
        self.sampler.rewind(n)
        del self.steps[-n:]
        self._decoder = self._decoder_so_far()
        self.cache.truncate(min(self.cache.length, len(self.prompt) + len(self.steps)))

    def fork(self) -> Session:
        """An independent session in the same state; neither can touch the other."""
        twin = object.__new__(Session)
        twin.runner, twin.tokenizer = self.runner, self.tokenizer
        twin.prompt, twin.steps = list(self.prompt), list(self.steps)
        twin.sampler, twin.cache = self.sampler.fork(), self.cache.fork()
        twin._logits, twin._decoder = self._logits, twin._decoder_so_far()
        return twin

    def _next_logits(self) -> Logits:
        """Feed what was picked but not seen by the model yet, and give the logits after it."""
        unseen = self.tokens[self.cache.length :]
        if unseen:
            self._logits = self._run(unseen)
        return self._logits

    def _run(self, tokens: Sequence[int]) -> Logits:
        segment = Segment(np.asarray(tokens, np.int32), self.cache)
        return self.runner.forward_batch([segment])[0][-1]

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
