"""Where there is too little room, or too much is asked for at once: what is said then."""

from __future__ import annotations

from tinyllm.api.constraints.thinking import ThinkSpec
from tinyllm.api.contract.errors import ApiError, invalid
from tinyllm.api.limits import MAX_ANSWER, MAX_PROMPTS_TOGETHER

TOO_SHORT = "max_tokens_too_small"


def check_together(n_tokens: int) -> None:
    """ApiError where the prompts of one request are too many tokens, or are so at least."""
    if n_tokens > MAX_PROMPTS_TOGETHER:
        raise invalid(
            f"The prompts have over {MAX_PROMPTS_TOGETHER} tokens together: send them in several "
            "requests.",
            "prompt",
        )


def too_short(max_tokens: int, shortest: int, think: ThinkSpec | None, name: str) -> ApiError:
    """The error where `max_tokens`, by its name in the request, is less than any answer takes."""
    thought = f" and {len(think.close) + 1} for the thought before it" if think else ""
    takes = f"over {MAX_ANSWER}" if shortest == MAX_ANSWER + 1 else f"{shortest}"
    return ApiError(
        400,
        f"{name} leaves {max_tokens} tokens; the shortest answer that fits the schema takes "
        f"{takes}{thought}.",
        code=TOO_SHORT,
        loc=(name,),
    )
