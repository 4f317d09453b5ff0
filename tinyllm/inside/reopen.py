"""A session again, from its trace: the same prompt, steps, seeds and parameters, to go on with.

What a step drew hangs on the tokens before it, its parameters and its seed alone, and the trace has
all of them. The forwards are run again, as they were run then: the prompt at once, then a token at
a time. So what comes next are the same bits, where the model is the same.
"""

from __future__ import annotations

import base64
import os
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from tinyllm.errors import TraceError
from tinyllm.inside.trace_file import StepRecord, TraceRecord, load_trace, rows_of, trace_of
from tinyllm.prompt import ImageSpan, Prompt
from tinyllm.sampler import Draws, SamplingParams

if TYPE_CHECKING:
    from tinyllm.decode import Session


TraceLike: TypeAlias = "str | os.PathLike[str] | TraceRecord | Mapping[str, Any]"


class TraceDiffers(UserWarning):
    """A session that was opened from a trace computes other numbers than the trace has."""


def read(trace: object) -> TraceRecord:
    """A trace from wherever it is: a file, a server's answer, or read already.

    Raises:
        TraceError: as `load_trace` and `trace_of`.
        TypeError: it is none of these.
    """
    if isinstance(trace, TraceRecord):
        return trace
    if isinstance(trace, Mapping):
        return trace_of(trace)
    if isinstance(trace, (str, os.PathLike)):
        return load_trace(trace)
    remedy = "; save a session by session.trace().save(path), or give session.trace() itself"
    raise TypeError(
        "trace must be a file's path, a TraceRecord, or the trace on a server's answer as a dict,"
        f" not {type(trace).__name__}{remedy if hasattr(trace, 'step') else ''}"
    )


def prompt_of(trace: TraceRecord) -> Prompt:
    """A trace's prompt, images included."""
    where, rows = rows_of(trace)
    spans = [ImageSpan(i.start, i.stop, base64.b64decode(i.png)) for i in trace.images or []]
    return Prompt(np.array(trace.prompt, np.int32), where, rows, images=tuple(spans))


def draws_of(sampling: Mapping[str, Any], where: str, stream: int = 0) -> Draws:
    """What a trace says of how tokens were drawn.

    Raises:
        TraceError: an unknown parameter, or a value out of its range.
    """
    try:
        bias = {int(token): value for token, value in sampling.get("logit_bias", {}).items()}
        params = SamplingParams(**{**sampling, "logit_bias": bias})
    except (TypeError, ValueError, AttributeError) as error:
        raise TraceError(f"{where}: {error}") from None
    if params.seed is None:
        raise TraceError(f"{where}.seed is missing: what was drawn can't be drawn again")
    return Draws(params, params.seed, stream)


def redo(session: Session, trace: TraceRecord, at: int | None = None) -> None:
    """Take a trace's steps in a session that stands behind its prompt.

    Args:
        session: a new one of `prompt_of(trace)`.
        trace: with all steps of a session, not one alone.
        at: how many steps to take; the next one then draws what step `at` drew. Default: all.

    Raises:
        TraceError: steps are missing, or a parameter is none.
        ValueError: `at` is beyond the steps, or the model has no such token.

    Warns:
        TraceDiffers: log-probabilities aren't what the trace has: another model or format, or hooks
            that were set then.
    """
    steps = trace.steps
    n = len(steps) if at is None else at
    if isinstance(n, bool) or not isinstance(n, int) or not 0 <= n <= len(steps):
        raise ValueError(f"at must be a number of steps from 0 to {len(steps)}, not {at!r}")
    if [step.index for step in steps] != list(range(len(steps))) or trace.tokens != [
        *trace.prompt, *(step.token for step in steps)
    ]:  # fmt: skip
        raise TraceError(
            "the trace doesn't have all steps behind its prompt; session.trace() saves them all"
        )
    gap = 0.0
    for step in steps[:n]:
        done = session.redo(step.token, _draws(trace, step), step.chosen_by)
        gap = max(gap, abs(done.logprob - step.logprob))
    if n < len(steps):
        session.set_draws(_draws(trace, steps[n]))
    else:
        session.set_draws(draws_of(trace.sampling, "sampling", trace.stream))
    if gap > 0:
        same = trace.fingerprint == session.runner.fingerprint
        why = (
            "it is the same model, so hooks or broken parts were set then"
            if same
            else f"the trace is of {trace.model} ({trace.dtype}, {trace.fingerprint}), this model "
            f"is {session.name} ({session.runner.dtype}, {session.runner.fingerprint})"
        )
        warnings.warn(
            f"log-probabilities differ by up to {gap:.2g} from the trace's: {why}",
            TraceDiffers,
            stacklevel=3,
        )


def _draws(trace: TraceRecord, step: StepRecord) -> Draws:
    if step.sampling is None:  # a server's, which are the same for all, or an old trace's
        return draws_of(trace.sampling, "sampling", trace.stream)
    return draws_of(step.sampling, f"steps.{step.index}.sampling", trace.stream)
