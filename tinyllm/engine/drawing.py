"""One token of one choice: what its guide says, what the sampler draws, and what is told of it."""

from __future__ import annotations

from tinyllm.engine.job import LiveChoice
from tinyllm.engine.sampling import RowScratch, look, top_logprobs
from tinyllm.engine.types import Token
from tinyllm.sampler import Logits


def draw_token(choice: LiveChoice, logits: Logits, scratch: RowScratch) -> tuple[Token, bool]:
    """Draw a choice's next token from logits (vocab_size,); also says whether it was the last.

    Raises whatever a guide raises, and ValueError when nothing is allowed.
    """
    request, guide = choice.job.request, choice.guide
    forced = guide.forced() if guide else None
    allowed = guide.allowed() if guide and forced is None else None
    pick = choice.sampler.pick(logits, allowed, forced)
    k, trace = request.top_logprobs, request.trace
    top = top_logprobs(logits, k, scratch) if k else []
    seen = look(trace, logits, choice.sampler, allowed, pick) if trace else None
    complete = guide.accept(pick.token) if guide else False
    choice.tokens.append(pick.token)
    choice.logprobs.append(pick.logprob)
    token = Token(choice.index, pick.token, pick.logprob, top, seen)
    return token, complete or pick.token in request.stop_ids
