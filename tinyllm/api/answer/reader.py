"""Tokens of one choice → pieces of an answer: thought, words, or calls.

The reader mirrors the choice's guide: both run the same thinking machine and the same stop
strings over the same tokens, so what the guide ended, the reader has cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tinyllm.api.answer.echo import Echo
from tinyllm.api.constraints.call_reader import (
    CallArguments,
    CallReader,
    CallSpec,
    CallStart,
    Found,
    Words,
)
from tinyllm.api.constraints.stops import StopStrings
from tinyllm.api.constraints.thinking import Thinking, ThinkSpec
from tinyllm.api.contract.answers import TokenLogprob, TopLogprob
from tinyllm.engine.types import Token
from tinyllm.inside.trace_file import StepRecord
from tinyllm.tokenizer import StreamDecoder, Tokenizer


@dataclass
class Piece:
    """What one token, or the end, added to a choice."""

    content: str = ""
    thought: str = ""
    calls: Sequence[CallStart | CallArguments] = ()
    logprobs: Sequence[TokenLogprob] = ()
    steps: Sequence[StepRecord] = ()  # of a trace
    echo: Echo | None = None  # first of all, if asked for

    def __bool__(self) -> bool:
        return bool(self.content or self.thought or self.calls)

    @property
    def told(self) -> bool:
        """Whether there is anything in it to send."""
        return bool(self.content or self.thought or self.calls or self.logprobs or self.steps)


class ChoiceReader:
    """Reads one choice.

    Args:
        tokenizer: of the model.
        think: how the choice thinks; None if it doesn't.
        calls: how the answer's calls of tools are written; None where it is words alone.
        stops: strings that end the words.
        silent: tokens without a text of their own: what ends a turn, and other control tokens.
        ends: those among them that end the answer.
        logprobs: whether pieces carry the log-probabilities of their tokens.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        think: ThinkSpec | None = None,
        calls: CallSpec | None = None,
        stops: Sequence[str] = (),
        silent: frozenset[int] = frozenset(),
        ends: frozenset[int] = frozenset(),
        logprobs: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._think = think
        self._thinking = Thinking(think)
        self._thoughts = StreamDecoder(tokenizer)
        self._words = StreamDecoder(tokenizer)
        self._stops = StopStrings(stops)
        self._calls = CallReader(calls) if calls is not None else None
        self._silent, self._ends = silent, ends
        self._want_logprobs = logprobs
        self._waiting: list[tuple[int, TokenLogprob]] = []  # with where their text starts
        self._decoded = 0  # letters of the words that came out of the decoder
        self._shown = 0  # letters of the words that went into pieces
        self._blank = think is not None  # nothing but space since the thought
        self._blank_thought = True
        self.n_tokens = 0
        self.sum_logprob = 0.0

    @property
    def n_thought(self) -> int:
        """Tokens of thought so far."""
        return self._thinking.n_thought

    def push(self, token: Token) -> Piece:
        """Take the next token."""
        self.n_tokens += 1
        self.sum_logprob += token.logprob
        kind = "answer" if self._thinking.answering else self._thinking.push(token.token)
        if kind == "thought":
            text = "" if token.token in self._silent else self._thoughts.push(token.token)
            return self._thought(text)
        if kind == "marker":
            return self._thought(self._thoughts.flush())
        if token.token in self._silent:
            if self._calls is None or token.token in self._ends:
                return Piece()
            # A form of call may be written with control tokens, which no words can hold.
            marker = self._tokenizer.token_bytes(token.token).decode("utf-8", "replace")
            return self._read_calls(self._calls.push(marker))
        start = self._decoded
        text = self._words.push(token.token)
        self._decoded += len(text)
        if self._calls is not None:
            return self._read_calls(self._calls.push(text))
        if self._want_logprobs:
            entry = scored_token(token.token, token.logprob, token.top, self._tokenizer)
            self._waiting.append((start, entry))
        return self._release(self._stops.push(text))

    def finish(self) -> Piece:
        """What was held back, once no token can follow."""
        if not self._thinking.answering:
            return self._thought(self._thoughts.flush())
        rest = self._words.flush()
        if self._calls is not None:
            piece = self._read_calls([*self._calls.push(rest), *self._calls.finish()])
            piece.content += "" if self._stops.hit else self._stops.flush()
            return piece
        if self._stops.hit:
            return Piece()
        piece = self._release(self._stops.push(rest) + self._stops.flush())
        if not self._stops.hit:
            piece.logprobs = [*piece.logprobs, *(entry for _, entry in self._waiting)]
        return piece

    def _read_calls(self, found: Sequence[Found]) -> Piece:
        """A piece of calls, and of the words around them."""
        words = "".join(part.text for part in found if isinstance(part, Words))
        calls = [part for part in found if not isinstance(part, Words)]
        words = self._stops.push(words)
        if calls:
            words += self._stops.flush()
        if self._blank:
            words = words.lstrip()
            self._blank = not words
        return Piece(content=words, calls=calls)

    def _thought(self, text: str) -> Piece:
        if self._blank_thought:
            text = text.lstrip()
            self._blank_thought = not text
        return Piece(thought=text)

    def _release(self, text: str) -> Piece:
        """A piece of words, with the log-probabilities of the tokens that it shows."""
        self._shown += len(text)
        ready: Sequence[TokenLogprob] = ()
        if self._waiting:
            ready = [entry for start, entry in self._waiting if start < self._shown]
            self._waiting = self._waiting[len(ready) :]
        if self._blank:
            text = text.lstrip()
            self._blank = not text
        return Piece(content=text, logprobs=ready)


def scored_token(
    id: int, logprob: float, top: Sequence[tuple[int, float]], tokenizer: Tokenizer
) -> TokenLogprob:
    """A token with its log-probability, and with the likeliest ones at its place."""
    others = [shown(other, value, tokenizer) for other, value in top]
    return {**shown(id, logprob, tokenizer), "top_logprobs": others}


def shown(id: int, logprob: float, tokenizer: Tokenizer) -> TopLogprob:
    """A token's text and bytes with a log-probability that JSON can hold."""
    raw = tokenizer.token_bytes(id)
    text = raw.decode("utf-8", errors="replace")
    return {"token": text, "logprob": max(logprob, -9999.0), "bytes": list(raw)}
