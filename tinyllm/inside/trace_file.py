"""Saved traces: what a session did, as versioned JSON that outlives it.

A trace is plain data with no -inf or NaN in it, so any JSON reader can take it. `version` counts
up whenever a field changes its meaning or goes; new fields alone don't raise it.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tinyllm.distribution import Standing
from tinyllm.errors import TraceError
from tinyllm.model import Model
from tinyllm.prompt import ImageSpan, Prompt, texts_of
from tinyllm.sampler import ChosenBy, Draws
from tinyllm.tokenizer import StreamDecoder, Tokenizer

if TYPE_CHECKING:
    from tinyllm.decode import Session
    from tinyllm.inside.replay import LogitLens, Replay
    from tinyllm.step import Step

FORMAT, VERSION = "tinyllm-trace", 1


@dataclass(frozen=True)
class CandidateRecord:
    """See `distribution.Standing`."""

    token: int
    text: str
    logit: float
    p_raw: float
    p: float
    rank: int
    cut_by: str | None = None


@dataclass(frozen=True)
class StageRecord:
    """How many tokens a filter left, and the raw probability of those."""

    name: str
    n_kept: int
    mass: float


@dataclass(frozen=True)
class LensRecord:
    """See `trace.LensRow`; `top` holds (text, probability)."""

    layer: int
    top: list[tuple[str, float]]
    rank: int
    p: float


@dataclass(frozen=True)
class AttentionRecord:
    """Where one head looked from the newest token: a weight a position, summing to 1."""

    layer: int
    head: int
    weights: list[float]


@dataclass(frozen=True)
class GuessRecord:
    """What a server had guessed in a token's place, and ran in one pass with the tokens before.

    See `engine/lookup.py`. Nothing but time depends on it.
    """

    token: int
    text: str
    kept: bool  # it is the token that was drawn
    source: str  # "guide": nothing else was legal; "text": it followed the same words before
    dropped: list[str]  # texts of the guesses behind it that were thrown away with it


@dataclass(frozen=True)
class StartRecord:
    """What an answer's first token stands behind, where a server was asked for the whole.

    With it an answer's steps alone are a trace to go on from: see `TraceRecord`, whose fields these
    are. `texts` and `tokens` are the prompt's.
    """

    model: str
    fingerprint: str
    dtype: str
    backend: str
    n_layers: int
    n_heads: int
    sampling: dict[str, Any]
    stream: int
    prompt: list[int]
    texts: list[str]
    deltas: list[str]
    images: list[ImageRecord]
    image_rows: RowsRecord | None


@dataclass(frozen=True)
class StepRecord:
    """One decoded token. Stages, lens, attention and replay's error are there if asked for.

    `text` is the token's for display: what it makes of a character that others have begun;
    `text_delta` are the characters that are whole with it.
    """

    index: int
    position: int
    token: int
    text: str
    text_delta: str
    logprob: float
    entropy: float
    chosen_by: ChosenBy
    uniform: float
    candidates: list[CandidateRecord]
    stages: list[StageRecord] | None = None
    lens: list[LensRecord] | None = None
    attention: list[AttentionRecord] | None = None
    replay_error: float | None = None
    guess: GuessRecord | None = None  # where a server had one
    sampling: dict[str, Any] | None = None  # what held for this step, where a session drew it
    start: StartRecord | None = None  # a server's first step, if it was asked for the whole


@dataclass(frozen=True)
class ImageRecord:
    """An image of the prompt: where it stands, and what it looks like."""

    start: int  # its first token
    stop: int  # the token behind its last
    png: str  # a thumbnail, base64; perhaps none


@dataclass(frozen=True)
class RowsRecord:
    """What stands in the place of tokens where images are, to go on with: (M, dim) float32."""

    positions: list[int]  # (M,) ascending
    dim: int
    data: str  # little-endian, row by row, base64


@dataclass(frozen=True)
class TraceRecord:
    """Some steps of one session, with what is needed to understand them, and to go on.

    `sampling` is what would hold for the next step; each step has its own.
    """

    format: str
    version: int
    model: str
    fingerprint: str
    dtype: str
    n_layers: int
    n_heads: int
    sampling: dict[str, Any]
    prompt: list[int]
    tokens: list[int]  # prompt and completion
    texts: list[str]  # of `tokens`, for display
    steps: list[StepRecord]
    backend: str = ""  # "reference" or "compiled": what computed it
    deltas: list[str] | None = None  # the characters that are whole with each of `tokens`
    images: list[ImageRecord] | None = None
    image_rows: RowsRecord | None = None
    stream: int = 0  # which of a request's choices: they share a seed, and draw apart

    def to_dict(self) -> dict[str, Any]:
        """Nested dicts, lists, strings and numbers."""
        return asdict(self)

    def to_json(self) -> str:
        """As a JSON text."""
        return json.dumps(self.to_dict(), ensure_ascii=False, allow_nan=False)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the JSON to a file."""
        path = Path(path)
        path.write_text(self.to_json(), encoding="utf-8")
        return path


def record_step(
    step: Step,
    *,
    candidates: int = 10,
    stages: bool = True,
    lens: int = 0,
    attention: tuple[int, Sequence[int] | None] | None = None,
) -> StepRecord:
    """A step as plain data.

    Args:
        candidates: how many; the chosen token comes on top of them if it isn't among them.
        stages: with what each filter kept.
        lens: the k of the logit lens; 0 leaves it out.
        attention: a layer, and which of its heads (None: all).

    Raises:
        TypeError, ValueError: one of these is something else; the message names it.
    """
    for name, number in (("candidates", candidates), ("lens", lens)):
        if isinstance(number, bool) or not isinstance(number, (int, np.integer)) or number < 0:
            raise ValueError(f"{name} must be a number from 0 up, not {number!r}")
    if attention is not None and not (
        isinstance(attention, (tuple, list))
        and len(attention) == 2
        and (attention[1] is None or isinstance(attention[1], (tuple, list, range)))
    ):
        raise TypeError(
            "attention must be a layer and which of its heads, such as (3, [0, 2]), or (3, None) "
            f"for all of them; not {attention!r}"
        )
    choice, tokenizer = step.choice, step.session.tokenizer
    begun = step.moment.begun(tokenizer)
    return StepRecord(
        index=step.index,
        position=step.position,
        token=step.token,
        text=step.text,
        text_delta=step.text_delta,
        logprob=step.logprob,
        entropy=step.entropy,
        chosen_by=step.chosen_by,
        uniform=step.uniform,
        candidates=record_candidates(choice.best_and(step.token, candidates), tokenizer, begun),
        stages=[StageRecord(s.name, s.n_kept, s.mass) for s in choice.stages] if stages else None,
        lens=record_lens(step.logit_lens(lens)) if lens else None,
        attention=record_attention(step.replay, *attention) if attention else None,
        replay_error=step.replay_error if lens or attention else None,
        sampling=record_sampling(step.draws),
    )


def record_sampling(draws: Draws) -> dict[str, Any]:
    """Sampling parameters as data, and the seed that was drawn where none was given."""
    bias = {str(token): bias for token, bias in draws.params.logit_bias.items()}
    return {**asdict(draws.params), "seed": draws.seed, "logit_bias": bias}


def record_candidates(
    standings: Sequence[Standing], tokenizer: Tokenizer, begun: bytes = b""
) -> list[CandidateRecord]:
    """Candidates with their texts, behind the beginning of a character or none."""
    return [
        CandidateRecord(text=tokenizer.token_text(s.token, begun), **s._asdict()) for s in standings
    ]


def record_lens(lens: LogitLens) -> list[LensRecord]:
    """A logit lens, a row a depth."""
    return [
        LensRecord(row.layer, [(text, p) for _, text, p in row.top], row.rank, row.p)
        for row in lens
    ]


def record_attention(
    replay: Replay, layer: int, heads: Sequence[int] | None = None
) -> list[AttentionRecord]:
    """Where some heads of a layer looked (None: all of them). ValueError for one it hasn't."""
    chosen = range(replay.model.config.n_heads) if heads is None else heads
    return [
        AttentionRecord(layer, head, [_short(w) for w in replay.attention(layer, head)])
        for head in chosen
    ]


def record(session: Session, steps: Sequence[Step], name: str = "", **parts: Any) -> TraceRecord:
    """Some steps of a session as plain data; `parts` are those of `record_step`."""
    runner, tokens = session.runner, session.tokens
    decoder = StreamDecoder(session.tokenizer)
    where, rows = session.image_positions, session.image_rows
    return TraceRecord(
        format=FORMAT,
        version=VERSION,
        model=name or session.name,
        fingerprint=runner.fingerprint,
        dtype=runner.dtype,
        n_layers=runner.config.n_layers,
        n_heads=runner.config.n_heads,
        sampling=record_sampling(session.draws),
        prompt=list(session.prompt),
        tokens=tokens,
        texts=texts_of(session.tokenizer, tokens, where),
        steps=[record_step(step, **parts) for step in steps],
        backend="reference" if isinstance(runner, Model) else "compiled",
        deltas=[decoder.push(token) for token in tokens],
        images=[_record_image(image) for image in session.images],
        image_rows=None if where is None or rows is None else _record_rows(where, rows),
        stream=session.draws.stream,
    )


def record_start(prompt: Prompt, draws: Draws, tokenizer: Tokenizer, **model: Any) -> StartRecord:
    """What a server's answer stands behind; `model` are the fields that tell of the model."""
    tokens, where, rows = prompt.tokens.tolist(), prompt.image_positions, prompt.image_rows
    decoder = StreamDecoder(tokenizer)
    return StartRecord(
        sampling=record_sampling(draws),
        stream=draws.stream,
        prompt=tokens,
        texts=texts_of(tokenizer, tokens, where),
        deltas=[decoder.push(token) for token in tokens],
        images=[_record_image(image) for image in prompt.images],
        image_rows=None if where is None or rows is None else _record_rows(where, rows),
        **model,
    )


def _record_image(image: ImageSpan) -> ImageRecord:
    thumbnail = base64.b64encode(image.thumbnail).decode("ascii")
    return ImageRecord(image.start, image.stop, thumbnail)


def _record_rows(positions: NDArray[np.int64], rows: NDArray[np.float32]) -> RowsRecord:
    raw = np.ascontiguousarray(rows, "<f4").tobytes()
    return RowsRecord(positions.tolist(), rows.shape[1], base64.b64encode(raw).decode("ascii"))


def rows_of(trace: TraceRecord) -> tuple[NDArray[np.int64] | None, NDArray[np.float32] | None]:
    """A trace's image positions (M,) and rows (M, dim); None twice where it has no images.

    Raises:
        TraceError: the file's bytes aren't as many as positions and dim say.
    """
    if trace.image_rows is None:
        return None, None
    positions = np.array(trace.image_rows.positions, np.int64)
    try:
        raw = base64.b64decode(trace.image_rows.data, validate=True)
        rows = np.frombuffer(raw, "<f4").reshape(len(positions), trace.image_rows.dim)
    except ValueError as error:
        raise TraceError(f"image_rows.data: {error}") from None
    return positions, rows.astype(np.float32)


def load_trace(path: str | os.PathLike[str]) -> TraceRecord:
    """Read a saved trace.

    Raises:
        TraceError: no such file, not JSON, not a trace, a later version, or a field that is
            missing or mistyped; the message names file and field.
    """
    path = Path(path)
    try:
        return read_trace(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise TraceError(f"{path} can't be read: {error}") from None
    except TraceError as error:
        raise TraceError(f"{path}: {error}") from None


def read_trace(text: str) -> TraceRecord:
    """A trace from its JSON; raises as `load_trace`."""
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TraceError(f"this is not JSON: {error}") from None
    return trace_of(raw)


def trace_of(raw: Any) -> TraceRecord:
    """A trace from what its JSON holds: a saved one's, or the `trace` on a server's answer.

    Raises:
        TraceError: as `load_trace`; an answer's trace that doesn't have the whole.
    """
    from pydantic import TypeAdapter, ValidationError  # decoding itself doesn't need it

    if isinstance(raw, Mapping) and "format" not in raw and isinstance(raw.get("steps"), list):
        raw = _whole_of(raw)
    if not isinstance(raw, Mapping) or raw.get("format") != FORMAT:
        raise TraceError(f'this is no trace: its "format" should be "{FORMAT}"')
    if raw.get("version") != VERSION:
        raise TraceError(
            f"this is a trace of version {raw.get('version')!r}; this tinyllm reads {VERSION}"
        )
    try:
        return TypeAdapter(TraceRecord).validate_python(dict(raw))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise TraceError(f"{where}: {first['msg']}") from None


def _whole_of(answer: Mapping[str, Any]) -> dict[str, Any]:
    """A server's trace in the form of a saved one, by what its first step brings along."""
    steps = answer["steps"]
    start = steps[0].get("start") if steps and isinstance(steps[0], Mapping) else None
    if not isinstance(start, Mapping):
        raise TraceError(
            'this is the trace of an answer without what it stands behind; ask for it with "trace":'
            ' {"whole": true}'
        )
    whole = {"format": FORMAT, "version": answer.get("version"), **start, "steps": steps}
    told = [step for step in steps if isinstance(step, Mapping)]
    for field, of_step in (("tokens", "token"), ("texts", "text"), ("deltas", "text_delta")):
        before = start.get("prompt" if field == "tokens" else field)
        if isinstance(before, list):
            whole[field] = [*before, *(step.get(of_step) for step in told)]
    return whole


def _short(x: Any) -> float:
    """A float32 in as few digits as tell it from its neighbours."""
    return float(f"{np.float32(x):.7g}")
