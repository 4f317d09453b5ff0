"""Updates of choices → the chunks of a text completion, and back into one answer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tinyllm.api.answer.generation import Update
from tinyllm.api.answer.run import Run
from tinyllm.api.contract.answers import (
    TextChoice,
    TextCompletion,
    TextLogprobs,
    TokenLogprob,
    TraceOut,
)
from tinyllm.inside.trace_file import VERSION


class TextChunkWriter:
    """Writes text completions as chunks: the same object whether it is whole or a piece.

    Unlike a chat's, a choice's last piece carries its finish_reason in both dialects, and the usage
    follows in a chunk without choices.
    """

    def __init__(self, run: Run, created: float, include_usage: bool) -> None:
        plan = run.plans[0]
        self._run = run
        self._created = plan.dialect.created(created)
        self._plan = plan
        self._include_usage = include_usage or plan.dialect.usage_always
        self._lengths = [0] * (plan.n * len(run.plans))  # letters of each choice so far

    def start(self) -> list[TextCompletion]:
        """What can be said before the first token: nothing."""
        return []

    def push(self, update: Update) -> list[TextCompletion]:
        """The chunk that an update makes, if there is anything in it."""
        piece = update.piece
        if piece.echo is None and not piece.told and update.finish is None:
            return []
        offset = self._lengths[update.index]
        text = piece.content if piece.echo is None else piece.echo.text
        self._lengths[update.index] += len(text)
        choice: TextChoice = {
            "index": update.index,
            "text": text,
            "logprobs": None,
            "finish_reason": "stop" if update.finish == "tool_calls" else update.finish,
        }
        if piece.echo is not None:
            choice["logprobs"] = piece.echo.own_columns()
        elif piece.logprobs:
            choice["logprobs"] = _columns(piece.logprobs, offset)
        if piece.steps:
            trace: TraceOut = {"version": VERSION, "steps": list(piece.steps)}
            choice["trace"] = trace
        return [self._chunk([choice])]

    def end(self) -> list[TextCompletion]:
        """The usage, if it is wanted."""
        if not self._include_usage:
            return []
        last = self._chunk([])
        last["usage"] = self._run.usage
        return [last]

    def _chunk(self, choices: list[TextChoice]) -> TextCompletion:
        return {
            "id": self._run.id,
            "object": "text_completion",
            "created": self._created,
            "model": self._plan.named,
            "choices": choices,
            "system_fingerprint": self._plan.model.fingerprint,
        }


def _columns(entries: Sequence[TokenLogprob], offset: int) -> TextLogprobs:
    """One list a field, as text completions have them; two tokens of one text share an entry."""
    out: TextLogprobs = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for entry in entries:
        out["tokens"].append(entry["token"])
        out["token_logprobs"].append(entry["logprob"])
        top: dict[str, float] = {}
        for other in (*entry["top_logprobs"], entry):  # the token itself is always among them
            top[other["token"]] = max(other["logprob"], top.get(other["token"], other["logprob"]))
        out["top_logprobs"].append(top)
        out["text_offset"].append(offset)
        offset += len(entry["token"])
    return out


def fold_text(chunks: Iterable[TextCompletion]) -> TextCompletion:
    """The whole answer that a stream of chunks (with usage) amounts to."""
    choices: dict[int, TextChoice] = {}
    last: TextCompletion | None = None
    for chunk in chunks:
        last = chunk
        for choice in chunk["choices"]:
            if choice["index"] not in choices:
                choices[choice["index"]] = choice
            else:
                _append(choices[choice["index"]], choice)
    if last is None or "usage" not in last:
        raise ValueError("the stream has no end")
    return {**last, "choices": [choice for _, choice in sorted(choices.items())]}


def _append(whole: TextChoice, more: TextChoice) -> None:
    """Put a later piece of a choice behind what there is."""
    whole["text"] += more["text"]
    whole["finish_reason"] = more["finish_reason"]
    before, after = whole["logprobs"], more["logprobs"]
    if before is None:
        whole["logprobs"] = after
    elif after is not None:
        before["tokens"] += after["tokens"]
        before["token_logprobs"] += after["token_logprobs"]
        before["top_logprobs"] += after["top_logprobs"]
        before["text_offset"] += after["text_offset"]
    if "trace" in more:
        steps = whole["trace"]["steps"] if "trace" in whole else []
        whole["trace"] = {"version": VERSION, "steps": [*steps, *more["trace"]["steps"]]}
