"""One token of one choice: what its guide says, what the sampler draws, and what is told of it."""

from __future__ import annotations

from collections.abc import Sequence

from tinyllm.engine.job import Job, LiveChoice
from tinyllm.engine.lookup import Lookup
from tinyllm.engine.sampling import CompiledSampler, RowScratch, look, top_logprobs
from tinyllm.engine.types import Guess, Token
from tinyllm.kv_cache import Cache
from tinyllm.sampler import Logits


def begin_choices(job: Job, caches: Sequence[Cache], scratch: RowScratch) -> list[LiveChoice]:
    """The choices of a job whose prompt is in, one a cache. Raises whatever a guide raises."""
    choices = []
    for i, cache in enumerate(caches):
        guide = job.request.guide(i) if job.request.guide else None
        choices.append(
            LiveChoice(
                job=job,
                index=i,
                sampler=CompiledSampler(job.request.params, i, scratch, job.request.prompt.tokens),
                guide=guide,
                cache=cache,
                lookup=Lookup(job.ids, job.max_tokens),
                forced=guide.forced() if guide else (),
            )
        )
    return choices


def draw_token(
    choice: LiveChoice, logits: Logits, scratch: RowScratch, guess: Guess | None = None
) -> tuple[Token, bool]:
    """Draw a choice's next token from logits (vocab_size,); also says whether it was the last.

    Args:
        guess: what stood in its place when the logits were computed; it is told of, and no more.

    Raises whatever a guide raises, and ValueError when nothing is allowed.
    """
    request, guide = choice.job.request, choice.guide
    forced = choice.forced[0] if choice.forced else None
    allowed = guide.allowed() if guide and forced is None else None
    pick = choice.sampler.pick(logits, allowed, forced)
    k, trace = request.top_logprobs, request.trace
    top = top_logprobs(logits, k, scratch) if k else []
    seen = look(trace, logits, choice.sampler, allowed, pick) if trace else None
    complete = guide.accept(pick.token) if guide else False
    choice.tokens.append(pick.token)
    choice.logprobs.append(pick.logprob)
    choice.lookup.push(pick.token)
    is_last = complete or pick.token in request.stop_ids
    if guess is not None and guess.token == pick.token and not is_last:
        guess = Guess(guess.token, guess.source)  # kept, and nothing behind it is dropped yet
    choice.forced = guide.forced() if guide and not is_last else ()
    return Token(choice.index, pick.token, pick.logprob, top, seen, guess), is_last
