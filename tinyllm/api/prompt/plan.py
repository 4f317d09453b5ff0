"""A plan: all that is settled about one prompt's answers before the first token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tinyllm.api.constraints.call_reader import CallSpec
from tinyllm.api.constraints.closing import Format
from tinyllm.api.constraints.guides import Guides
from tinyllm.api.constraints.thinking import ThinkSpec
from tinyllm.api.contract.answers import Truncation
from tinyllm.api.contract.dialect import Dialect
from tinyllm.api.contract.errors import Loc
from tinyllm.api.contract.sampling import Trace
from tinyllm.api.prompt.served import ServedModel
from tinyllm.engine.types import Prompt
from tinyllm.inside.trace_file import StartRecord, record_start
from tinyllm.sampler import Draws, SamplingParams


@dataclass(frozen=True)
class Plan:
    """What the engine is asked, and how its tokens are to be read.

    stop_ids: tokens that end an answer, once it has `min_tokens`.
    logprobs, top_logprobs: whether tokens are shown with theirs, and with how many others.
    echo: the answer begins with the prompt; `score_prompt`: and with its log-probabilities.
    format: what the answer must fit, as the request says at `format_place`.
    calls: how calls of tools in it are to be read.
    decided: what `tool_choice: auto` came to.
    ignored: names of parameters that have no effect; `relaxed`: places of keywords in schemas.
    """

    model: ServedModel
    named: str  # the model's name in the request
    dialect: Dialect
    prompt: Prompt
    params: SamplingParams
    max_tokens: int
    n: int = 1
    stops: tuple[str, ...] = ()
    stop_ids: frozenset[int] = frozenset()
    min_tokens: int = 0
    logprobs: bool = False
    top_logprobs: int = 0
    echo: bool = False
    score_prompt: bool = False
    trace: Trace | None = None
    think: ThinkSpec | None = None
    hide_thought: bool = False
    format: Format | None = None
    format_place: Loc = ("response_format",)
    calls: CallSpec | None = None
    decided: Literal["call", "words"] | None = None
    truncation: Truncation | None = None
    ignored: tuple[str, ...] = ()
    relaxed: tuple[str, ...] = ()

    @property
    def guided(self) -> bool:
        return bool(self.think or self.format or self.stops or self.min_tokens)

    def start(self, index: int) -> StartRecord:
        """What choice `index` stands behind, to go on from; its seed is drawn by now."""
        assert self.params.seed is not None
        model = self.model
        return record_start(
            self.prompt, Draws(self.params, self.params.seed, index), model.tokenizer,
            model=model.id, fingerprint=(model.base or model).fingerprint, dtype=model.dtype,
            backend="reference" if model.processor == "numpy" else "compiled",
            n_layers=model.n_layers, n_heads=model.n_heads,
        )  # fmt: skip

    def guides(self) -> Guides:
        """What makes a fresh guide for each choice."""
        tokenizer = self.model.tokenizer
        return Guides(
            tokenizer,
            self.think,
            self.format,
            self.stops,
            self.stop_ids,
            self.max_tokens,
            self.min_tokens,
            self.model.vocab_size,
        )
