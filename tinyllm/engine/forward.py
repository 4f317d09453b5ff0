"""A step's forward pass: from the scheduler's plan to segments, and to logits that come back."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tinyllm.engine.scheduler import Decode, Prefill, Work
from tinyllm.runner import Runner, Segment
from tinyllm.sampler import log_normalizer, top_logprobs

log = logging.getLogger(__name__)


def forward(
    runner: Runner, segments: Sequence[Segment]
) -> Sequence[NDArray[np.float32] | Exception]:
    """The logits of each segment; where one makes the model fail, its exception, and for it alone.

    A segment that failed leaves its cache as it was.
    """
    if not segments:
        return []
    lengths = [segment.cache.length for segment in segments]
    try:
        return runner.forward_batch(segments)
    except Exception:
        log.exception("a forward of %d segments failed; trying them one by one", len(segments))
    for segment, length in zip(segments, lengths, strict=True):
        segment.cache.truncate(min(length, segment.cache.length))
    results: list[NDArray[np.float32] | Exception] = []
    for segment, length in zip(segments, lengths, strict=True):
        try:
            results.extend(runner.forward_batch([segment]))
        except Exception as error:
            segment.cache.truncate(min(length, segment.cache.length))
            results.append(error)
    return results


def segment_of(work: Work) -> Segment:
    """The piece of a batch that a plan's item stands for."""
    if isinstance(work, Decode):
        cache = work.choice.cache
        assert cache is not None
        tokens = np.array([*work.choice.tokens[-1:], *work.guesses.tokens], np.int32)
        return Segment(tokens, cache, "all" if work.guesses.tokens else "last")
    cache, prompt = work.job.prompt_cache, work.job.request.prompt
    assert cache is not None
    start, stop = cache.length, cache.length + work.n_tokens
    positions, rows = prompt.images_between(start, stop)
    return Segment(
        np.ascontiguousarray(prompt.tokens[start:stop], np.int32),
        cache,
        _wanted_logits(work, stop),
        positions,
        rows,
    )


def _wanted_logits(work: Prefill, stop: int) -> Literal["last", "all", "none"]:
    """Which rows of logits a chunk of a prompt that ends before position `stop` needs."""
    request = work.job.request
    if request.score_from is not None and stop >= request.score_from:
        return "all"
    return "last" if stop == len(request.prompt.tokens) else "none"


def score_prompt(work: Prefill, logits: NDArray[np.float32]) -> None:
    """Note how likely the model found the prompt's own tokens, from `score_from` on."""
    request = work.job.request
    first, tokens = request.score_from, request.prompt.tokens
    if first is None or len(logits) < work.n_tokens or work.job.prompt_cache is None:
        return
    stop = work.job.prompt_cache.length  # the chunk is in by now
    for position in range(max(first, stop - work.n_tokens + 1), min(stop + 1, len(tokens))):
        row = logits[position - 1 - stop]  # what followed the token before
        work.job.prompt_logprobs.append(float(row[tokens[position]]) - log_normalizer(row))
        if request.top_logprobs:
            work.job.prompt_top.append(top_logprobs(row, request.top_logprobs))
