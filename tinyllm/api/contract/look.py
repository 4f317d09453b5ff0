"""The request for a look at one token of a text, and its answer."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator
from typing_extensions import NotRequired, TypedDict

from tinyllm.api.contract.fields import WHOLE, AnyInt, Natural, Number, Open, Positive, fail
from tinyllm.api.contract.messages import ImageURLs
from tinyllm.api.limits import (
    MAX_HEADS,
    MAX_INT,
    MAX_LOOK_CANDIDATES,
    MAX_LOOK_DRAWN,
    MAX_LOOK_PARTS,
    MAX_LOOK_ROWS,
    MAX_LOOK_TOKENS,
    MAX_TOP_LOGPROBS,
)


# The mistakes that can be made are code, which is imported when somebody asks for one.
def _known(name: str) -> str:
    from tinyllm.inside.lab import break_it

    return break_it(name).name


def _list_all(schema: dict[str, Any]) -> None:
    from tinyllm.inside.lab import BREAKAGES

    schema["enum"] = sorted(BREAKAGES)


Breaking = Annotated[str, AfterValidator(_known), Field(json_schema_extra=_list_all)]


class LookAttention(Open):
    layer: Natural | None = Field(None, description="All layers, as bytes, if not given")
    heads: Annotated[list[Natural], Field(min_length=1, max_length=MAX_HEADS)] | None = None


class LookPart(Open):
    part: Literal["attn", "mlp", "head"]
    layer: Natural
    head: Natural = 0


class LookNumber(Open):
    name: str = Field(
        description="A hook point, as blocks.3.attn.hook_z; or logits, p_raw, a filter, p"
    )
    head: Natural | None = None
    key: Natural | None = None
    dim: Natural | None = Field(
        None, description="The last index; of logits and what follows them, a token's id"
    )


class LookImage(Open):
    index: Natural = Field(0, description="Which of `images`")
    values: bool | None = Field(None, description="With the rows' own numbers, in float32")
    places: bool | None = Field(
        None,
        description="With each row's position in the prompt, and the part of the image that it "
        "stands for: left, top, right, bottom as shares of it",
    )
    start: Natural = Field(
        0, description=f"The first row that is told of; {MAX_LOOK_ROWS} at most are"
    )


class LookDrawn(Open):
    token: Natural
    logit: Number


class LookWant(Open):
    """What to look at; everything is off until asked for."""

    candidates: Annotated[int, Field(ge=0, le=MAX_LOOK_CANDIDATES), WHOLE] | None = None
    logits: bool | None = Field(None, description="The 256 best exactly, a histogram of the rest")
    attention: LookAttention | None = None
    lens: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS), WHOLE] | None = None
    activations: str | None = Field(None, description="A hook point's name")
    explain: LookNumber | None = Field(None, description="One number as its formula")
    causal: Annotated[list[LookPart], Field(max_length=MAX_LOOK_PARTS)] | None = Field(
        None, description="Nats that the token owes to each of these parts"
    )
    image: LookImage | None = Field(
        None, description="An image's patches, and the rows that stand for it in the prompt"
    )
    timing: bool | None = None
    cache: bool | None = None
    drawn: Annotated[list[LookDrawn], Field(max_length=MAX_LOOK_DRAWN)] | None = Field(
        None,
        description="Logits that the token was drawn from, as a trace's candidates have them: "
        "`replay_error` is how far the float32 ones lie from them at most",
    )


class LookRequest(Open):
    """A token of a text: where it came from, worked out again in float32."""

    model: str
    tokens: list[Natural] = Field(min_length=2, max_length=MAX_LOOK_TOKENS)
    position: Positive = Field(description="Of the token that is asked about")
    n_prompt: Positive | None = Field(
        None, description="Where the answer begins, for penalties and draws; position if not given"
    )
    want: LookWant
    images: ImageURLs | None = Field(
        None,
        description="https://… or data:image/…;base64,… of each image whose tokens stand in "
        "`tokens`, in their order",
    )
    break_: Breaking | None = Field(
        None, alias="break", description="A part that is wrong for this look alone"
    )
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=MAX_INT), WHOLE] | None = None
    seed: AnyInt | None = None
    presence_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None

    @model_validator(mode="after")
    def _rules(self) -> LookRequest:
        if self.break_ is not None and (self.n_prompt or 0) > self.position:
            raise fail("n_prompt must be at most position where a part is broken", "n_prompt")
        if self.position >= len(self.tokens):
            raise fail(f"position must be below the {len(self.tokens)} tokens given", "position")
        n_images = len(self.images or ())
        if self.want.image is not None and self.want.image.index >= n_images:
            raise fail(f"want.image must be below the {n_images} images given", "want", "image")
        return self


class LookAnswer(TypedDict):
    object: Literal["look"]
    model: str
    computed: Literal["f32"]
    n_layers: int
    n_heads: int
    position: int
    token: int
    logprob: float
    entropy: float
    candidates: list[Any]
    broken: NotRequired[str]
    replay_error: NotRequired[float]
    logits: NotRequired[dict[str, Any]]
    attention: NotRequired[dict[str, Any]]
    lens: NotRequired[list[dict[str, Any]]]
    activations: NotRequired[dict[str, Any]]
    explain: NotRequired[dict[str, Any]]
    causal: NotRequired[list[dict[str, Any]]]
    image: NotRequired[dict[str, Any]]
    timing: NotRequired[dict[str, Any]]
    cache: NotRequired[dict[str, Any]]
