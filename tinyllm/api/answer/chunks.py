"""Updates of choices → the chunks of a stream, as each dialect has them; and back to one answer."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from typing import Any

from tinyllm.api.answer.generation import Update
from tinyllm.api.answer.reader import Piece
from tinyllm.api.answer.run import Run
from tinyllm.api.constraints.call_reader import CallStart
from tinyllm.api.contract.answers import (
    Chunk,
    ChunkChoice,
    Completion,
    Delta,
    Finish,
    MessageOut,
    ToolCallDelta,
    Usage,
)
from tinyllm.api.contract.dialect import Dialect
from tinyllm.inside.trace_file import VERSION, StepRecord


class ChunkWriter:
    """Writes one completion as chunks.

    S: a choice's last piece carries its finish_reason, so one piece is held back; the overall
    last chunk carries the usage. O: the role comes first by itself, the finish_reason last by
    itself, and the usage, if asked for, in a chunk without choices.

    With n > 1 the first chunks come in the order of the choices, one choice a chunk: clients
    file them by position.
    """

    def __init__(self, run: Run, created: float, include_usage: bool) -> None:
        plan = run.plans[0]
        self._dialect: Dialect = plan.dialect
        self._run = run
        self._truncation = plan.truncation
        self._created = plan.dialect.created(created)
        self._model = plan.named
        self._n = plan.n
        self._calls = plan.calls is not None and not plan.calls.words
        self._logprobs = plan.logprobs
        self._exclude = plan.hide_thought
        self._scores = plan.model.domain_aligned
        self._include_usage = include_usage or self._dialect.usage_always
        self._fingerprint = plan.model.fingerprint
        self._roles = [True] * self._n  # still to be sent
        self._held: list[ChunkChoice | None] = [None] * self._n
        self._late: list[list[ChunkChoice]] = [[] for _ in range(self._n)]
        self._begun = 0  # choices whose first chunk is out; always the first so many
        self._open = self._n
        self._last: ChunkChoice | None = None
        self._ready: list[Chunk] = []  # to be handed over

    def start(self) -> list[Chunk]:
        """What can be said before the first token."""
        if self._dialect.eager_role:
            for index in range(self._n):
                self._emit(self._choice(index, Piece()))
        return self._taken()

    def push(self, update: Update) -> list[Chunk]:
        """The chunks that an update makes possible."""
        piece = update.piece
        if self._exclude:
            piece.thought = ""
        for call in piece.calls[:-1]:  # one at a time: a call's name comes before its arguments
            self._write(self._choice(update.index, Piece(calls=[call])))
        piece.calls = piece.calls[-1:]
        if update.finish is not None:
            self._finish(update)
        elif piece.told:
            self._write(self._choice(update.index, piece))
        return self._taken()

    def _finish(self, update: Update) -> None:
        """A choice's last piece."""
        self._open -= 1
        if self._dialect.eager_role:
            if update.piece.told:
                self._write(self._choice(update.index, update.piece))
            last = self._choice(update.index, Piece())
        else:
            held = self._held[update.index]
            last = self._choice(update.index, update.piece)
            if held is not None and last["delta"]:
                self._emit(held)
            elif held is not None:
                last = _joined(held, last)
        last["finish_reason"] = update.finish
        if self._scores and self._n > 1 and update.confidence is not None:
            last["confidence_score"] = update.confidence
        if self._open:
            self._emit(last)
        else:
            self._last = last

    def end(self) -> list[Chunk]:
        """The overall last chunk, or two."""
        if self._last is None:
            raise RuntimeError("not every choice has finished")
        self._emit(self._last)
        chunks = self._taken()
        if self._include_usage:
            if self._dialect.eager_role:
                chunks.append(self._chunk([]))
            chunks[-1]["usage"] = self._run.usage
        confidence = self._run.confidence
        if self._scores and confidence is not None:
            chunks[-1]["confidence_score"] = confidence
        if self._truncation is not None:
            chunks[-1]["prompt_truncation"] = self._truncation
        return chunks

    def _taken(self) -> list[Chunk]:
        ready, self._ready = self._ready, []
        return ready

    def _write(self, choice: ChunkChoice) -> None:
        """Send a piece; S sends the one before instead."""
        if self._dialect.eager_role:
            self._emit(choice)
            return
        index = choice["index"]
        held = self._held[index]
        if held is not None and not choice["delta"]:  # no words, so no piece of its own
            self._held[index] = _joined(held, choice)
            return
        self._held[index] = choice
        if held is not None:
            self._emit(held)

    def _emit(self, choice: ChunkChoice) -> None:
        """Send a choice's chunk once every choice before it has begun."""
        index = choice["index"]
        if index < self._begun:
            self._ready.append(self._chunk([choice]))
            return
        self._late[index].append(choice)
        while self._begun < self._n and self._late[self._begun]:
            self._ready += [self._chunk([late]) for late in self._late[self._begun]]
            self._late[self._begun].clear()
            self._begun += 1

    def _chunk(self, choices: list[ChunkChoice]) -> Chunk:
        chunk: Chunk = {
            "id": self._run.id,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._model,
            "choices": choices,
            "system_fingerprint": self._fingerprint,
        }
        if self._include_usage and self._dialect.eager_role:
            chunk["usage"] = None
        return chunk

    def _choice(self, index: int, piece: Piece) -> ChunkChoice:
        choice: ChunkChoice = {
            "index": index,
            "delta": self._delta(index, piece),
            "finish_reason": None,
        }
        if piece.logprobs:
            choice["logprobs"] = {"content": list(piece.logprobs), "refusal": None}
        elif self._logprobs:
            choice["logprobs"] = {"content": [], "refusal": None}
        elif self._dialect.eager_role:
            choice["logprobs"] = None
        if piece.steps:
            choice["trace"] = {"version": VERSION, "steps": list(piece.steps)}
        return choice

    def _delta(self, index: int, piece: Piece) -> Delta:
        delta: Delta = {}
        if self._roles[index]:
            self._roles[index] = False
            delta["role"] = "assistant"
            delta["content"] = None if self._calls else piece.content
        elif piece.content:
            delta["content"] = piece.content
        if piece.thought:
            delta["reasoning"] = piece.thought
            delta["reasoning_content"] = piece.thought
            delta["reasoning_details"] = [
                {"type": "reasoning.text", "text": piece.thought, "index": 0}
            ]
        if piece.calls:
            delta["tool_calls"] = [_call_delta(call) for call in piece.calls]
        return delta


def _joined(first: ChunkChoice, second: ChunkChoice) -> ChunkChoice:
    """Two pieces as one, the second of which has no words."""
    logprobs, trace = second.get("logprobs"), second.get("trace")
    if logprobs:
        before = first.get("logprobs")
        content = [*(before["content"] if before else ()), *logprobs["content"]]
        first["logprobs"] = {"content": content, "refusal": None}
    if trace:
        steps = first["trace"]["steps"] if "trace" in first else []
        first["trace"] = {"version": VERSION, "steps": [*steps, *trace["steps"]]}
    return first


def _call_delta(call: object) -> ToolCallDelta:
    if isinstance(call, CallStart):
        return {
            "index": call.index,
            "id": f"call_{uuid.uuid4().hex[:24]}",
            "type": "function",
            "function": {"name": call.name, "arguments": ""},
        }
    return {"index": call.index, "function": {"arguments": call.text}}  # type: ignore[attr-defined]


def fold(chunks: Iterable[Chunk]) -> Completion:
    """The whole answer that a stream of chunks (with usage) amounts to."""
    folds: dict[int, _Fold] = {}
    last: Chunk | None = None
    for chunk in chunks:
        last = chunk
        for choice in chunk["choices"]:
            folds.setdefault(choice["index"], _Fold()).add(choice)
    if last is None or last.get("usage") is None:
        raise ValueError("the stream has no end")
    usage: Usage = last["usage"]  # type: ignore[assignment]
    completion: Completion = {
        "id": last["id"],
        "object": "chat.completion",
        "created": last["created"],
        "model": last["model"],
        "choices": [
            {
                "index": index,
                "message": one.message(),
                "finish_reason": one.finish,
                "logprobs": {"content": one.logprobs, "refusal": None} if one.scored else None,
                **one.extras(),  # type: ignore[typeddict-item]
            }
            for index, one in sorted(folds.items())
        ],
        "usage": usage,
        "system_fingerprint": last["system_fingerprint"],
    }
    if "confidence_score" in last:
        completion["confidence_score"] = last["confidence_score"]
    if "prompt_truncation" in last:
        completion["prompt_truncation"] = last["prompt_truncation"]
    return completion


class _Fold:
    """One choice's deltas, put together."""

    def __init__(self) -> None:
        self.content: list[str] = []
        self.thought: list[str] = []
        self.calls: dict[int, tuple[str, str, list[str]]] = {}
        self.logprobs: list = []  # type: ignore[type-arg]
        self.scored = False
        self.finish: Finish = "stop"
        self.confidence: float | None = None
        self.steps: list[StepRecord] | None = None

    def add(self, choice: ChunkChoice) -> None:
        delta = choice["delta"]
        if delta.get("content"):
            self.content.append(delta["content"] or "")
        if "reasoning" in delta:
            self.thought.append(delta["reasoning"])
        for call in delta.get("tool_calls", ()):
            function = call["function"]
            if "id" in call:
                self.calls[call["index"]] = (call["id"], function.get("name", ""), [])
            self.calls[call["index"]][2].append(function["arguments"])
        logprobs = choice.get("logprobs")
        if logprobs is not None:
            self.scored = True
            self.logprobs += logprobs["content"]
        if choice["finish_reason"] is not None:
            self.finish = choice["finish_reason"]
        self.confidence = choice.get("confidence_score")
        if "trace" in choice:
            self.steps = [*(self.steps or ()), *choice["trace"]["steps"]]

    def extras(self) -> dict[str, Any]:
        """What a choice has beside the standard's fields."""
        extras: dict[str, Any] = {}
        if self.confidence is not None:
            extras["confidence_score"] = self.confidence
        if self.steps is not None:
            extras["trace"] = {"version": VERSION, "steps": self.steps}
        return extras

    def message(self) -> MessageOut:
        content = "".join(self.content)
        message: MessageOut = {
            "role": "assistant",
            "content": None if self.calls and not content else content,
        }
        if self.thought:
            thought = "".join(self.thought)
            message["reasoning"] = thought
            message["reasoning_content"] = thought
            message["reasoning_details"] = [{"type": "reasoning.text", "text": thought, "index": 0}]
        if self.calls:
            message["tool_calls"] = [
                {
                    "id": id,
                    "type": "function",
                    "function": {"name": name, "arguments": "".join(args)},
                }
                for _, (id, name, args) in sorted(self.calls.items())
            ]
        return message
