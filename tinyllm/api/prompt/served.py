"""One model as clients see it: what its prompts, answers and limits are made from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from tinyllm.api.constraints.call_forms import CallForm
from tinyllm.api.constraints.closing import TokenForms, token_forms
from tinyllm.api.constraints.grammar import Grammars
from tinyllm.api.prompt.defaults import SamplingDefaults
from tinyllm.api.prompt.tool_forms import form_of
from tinyllm.api.prompt.vision import LazyVision
from tinyllm.config import ModelConfig
from tinyllm.engine.replay import Recording
from tinyllm.engine.types import Event, Handle, Request
from tinyllm.model import Model
from tinyllm.tokenizer import Tokenizer


class EngineLike(Protocol):
    """What the API asks of an engine; `tinyllm.engine.engine.Engine` is one."""

    n_ctx: int

    def check_place(self, share: str) -> None: ...
    def submit(self, request: Request, on_event: Callable[[Event], None]) -> Handle: ...
    def recording(self, request_id: str, key: str) -> Recording: ...
    def stats(self) -> Any: ...
    def stop(self, drain_timeout: float = 0.0) -> None: ...


@dataclass(eq=False)
class ServedModel:
    """One model as clients see it.

    `card` is the model's card.json; `defaults` are how it is sampled from where a request doesn't
    say; `vision` makes prompts out of images, None where the model
    reads text alone; `readable` gives the numpy model that a trace looks into. `base` is what it
    shares with other models on the same language model.
    """

    id: str
    tokenizer: Tokenizer
    engine: EngineLike
    vocab_size: int
    fingerprint: str
    card: Mapping[str, Any] = field(default_factory=dict)
    defaults: SamplingDefaults = field(default_factory=SamplingDefaults)
    vision: LazyVision | None = None
    created: int = 0
    readable: Callable[[], Model] | None = None
    n_layers: int = 0  # of `readable`
    n_heads: int = 0
    shape: ModelConfig | None = None
    base: ServedModel | None = None
    dtype: str = "f32"  # the weights' format that the engine computes with
    processor: str = "numpy"  # the kind that the kernels are compiled for, where they compute

    @cached_property
    def grammars(self) -> Grammars:
        """Built at the first need: it reads the whole vocabulary."""
        if self.base is not None:
            return self.base.grammars
        return Grammars(self.tokenizer, self.vocab_size, self.tokenizer.eos_ids)

    @cached_property
    def token_forms(self) -> TokenForms:
        """What ending a structured answer needs to know of the vocabulary."""
        if self.base is not None:
            return self.base.token_forms
        return token_forms(self.tokenizer, self.grammars.tokens, self.vocab_size, self.call_form)

    @cached_property
    def call_form(self) -> CallForm | None:
        """How the model was taught to write a call of a tool; None if it wasn't."""
        return form_of(self.tokenizer)

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end an answer."""
        return frozenset(self.tokenizer.eos_ids)

    @cached_property
    def silent_ids(self) -> frozenset[int]:
        """Control tokens: they have no text of their own in an answer."""
        return self.stop_ids | frozenset(self.tokenizer.special_tokens.values())

    @property
    def reasoning(self) -> str:
        """native, prompted or none."""
        return str(self.card.get("reasoning", "none"))

    @property
    def domain_aligned(self) -> bool:
        return bool(self.card.get("domain_aligned", False))
