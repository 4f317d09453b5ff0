"""What every generating request may say: how to sample, when to stop, what to show of it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Field, StringConstraints, Tag

from tinyllm.api.contract.fields import WHOLE, AnyInt, Natural, Number, Open, Positive
from tinyllm.api.limits import (
    MAX_HEADS,
    MAX_INSIDE,
    MAX_INT,
    MAX_STOP_IDS,
    MAX_STOPS,
    MAX_TOP_LOGPROBS,
)

DEFAULT_MAX_TOKENS = 2000
INSIDE = f"for the first {MAX_INSIDE} tokens (over n choices)"


class StreamOptions(Open):
    include_usage: bool | None = None


class TraceAttention(Open):
    layer: Natural
    heads: Annotated[list[Natural], Field(min_length=1, max_length=MAX_HEADS)] | None = Field(
        None, description="All of the layer's if not given"
    )


class Trace(Open):
    """How each token came to be drawn, on the choice. Extension; everything in it is off until
    asked for."""

    candidates: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS), WHOLE] | None = Field(
        None, description="Likeliest tokens a step, and why each was cut; the chosen one on top"
    )
    stages: bool | None = Field(None, description="What each filter of the sampler kept")
    attention: TraceAttention | None = Field(
        None,
        description="Where these heads looked from the newest token, "
        f"{INSIDE}; computed again in float32, without the fused kernels",
    )
    lens: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS), WHOLE] | None = Field(
        None, description=f"Likeliest tokens at each depth, {INSIDE}; computed as attention is"
    )

    whole: bool | None = Field(
        None,
        description="With the first step what it stands behind (the prompt's tokens, parameters, "
        "seed), so that `tinyllm.reopen(answer.choices[0].trace)` goes on from any step",
    )

    @property
    def inside(self) -> bool:
        """Whether it asks for what goes on inside the model."""
        return self.attention is not None or bool(self.lens)


StopString = Annotated[str, StringConstraints(min_length=1)]


class SampledRequest(Open):
    """The fields that requests of every shape share."""

    model: str = Field(description="Id or alias of a model", examples=["nugen-flash-instruct"])
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=MAX_INT), WHOLE] | None = None
    n: Positive | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: (
        Annotated[
            Annotated[StopString, Tag("~string")]
            | Annotated[list[StopString], Field(max_length=MAX_STOPS), Tag("~list")],
            Discriminator(
                lambda v: {str: "~string", list: "~list"}.get(type(v)),
                custom_error_type="stop",
                custom_error_message="stop must be a string or a list of at most 4",
            ),
        ]
        | None
    ) = None
    seed: AnyInt | None = None
    presence_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    min_p: Annotated[Number, Field(ge=0, le=1)] | None = Field(
        None, description="Keep tokens of at least this share of the likeliest one's probability"
    )
    repetition_penalty: Annotated[Number, Field(ge=0.01, le=10)] | None = Field(
        None, description="Divides the logits of tokens in prompt and answer; 1 does nothing"
    )
    min_tokens: Natural | None = Field(None, description="No token may end an answer before these")
    ignore_eos: bool | None = Field(None, description="Go on past the model's own end of an answer")
    stop_token_ids: Annotated[list[Natural], Field(max_length=MAX_STOP_IDS)] | None = Field(
        None, description="More tokens that end an answer; they are not shown"
    )
    logit_bias: dict[str, Annotated[Number, Field(ge=-100, le=100)]] | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    trace: Trace | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
