"""What a transformer of today is made of: the choices that tell one family from another.

A description (`gemma3.py`, `qwen3.py`, …) picks among these, `config.ModelConfig` holds the choice,
and `model.py` runs it. The arithmetic of each part is in `kernels/reference.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from tinyllm.errors import ConfigError

Norm = Literal["rms", "layer", "plain"]  # plain: a layer norm without weights
Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "relu2", "xielu"]
Pairs = Literal["halves", "neighbours"]  # which elements of a head turn together
Parallel = Literal["no", "one norm", "two norms"]
QKNorm = Literal["no", "each head", "every head its own", "whole"]
Rotary = Literal["global", "local", "none"]


@dataclass(frozen=True)
class Layer:
    """How one layer differs from its neighbours.

    Attributes:
        window: how many positions a token sees, itself included; None sees all.
        rotary: which table of angles turns queries and keys, or "none".
        experts: whether its MLP is a router and experts.
    """

    window: int | None = None
    rotary: Rotary = "global"
    experts: bool = False


@dataclass(frozen=True)
class Experts:
    """A mixture of MLPs, of which each token takes a few (Shazeer 2017, arXiv 1701.06538).

    Attributes:
        n: experts a layer.
        k: of them chosen for a token.
        hidden_dim: width of one.
        weights: "softmax" over all experts' scores, then the k largest; "normalised", the same
            divided by their sum (which is the softmax over the chosen alone).
    """

    n: int
    k: int
    hidden_dim: int
    weights: Literal["softmax", "normalised"]

    def __post_init__(self) -> None:
        if not 1 <= self.k <= self.n:
            raise ConfigError(f"{self.k} of {self.n} experts can't be chosen")
        if self.hidden_dim < 1:
            raise ConfigError(f"an expert's width must be at least 1, not {self.hidden_dim}")


@dataclass(frozen=True)
class Temperature:
    """Queries grow with their position, so that attention stays sharp far out (Llama 4).

    scale(position) = 1 + beta · log(1 + floor(position / length)).
    """

    beta: float
    length: int


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched for contexts beyond the one trained on.

    The reference is `transformers/modeling_rope_utils.py`. `kind` is

    - "linear": all frequencies divided by `factor`;
    - "llama3": low frequencies divided, high ones kept, a ramp between;
    - "yarn": the same by turns in the original context (`beta_slow` … `beta_fast`); cos and sin
      times `attention_factor` (Peng et al. 2023, https://arxiv.org/abs/2309.00071);
    - "dynamic": kept up to the model's own context, which is as far as a cache goes here;
    - "longrope": each frequency divided by its own factor, `long` ones where the context may grow
      beyond the original one, `short` ones otherwise; cos and sin times `attention_factor`
      (Ding et al. 2024, https://arxiv.org/abs/2402.13753).
    """

    kind: str
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_seq_len: int = 8192
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True  # yarn: the ramp's ends are whole dimensions
    attention_factor: float = 1.0
    short: tuple[float, ...] = ()
    long: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.factor < math.inf:
            raise ConfigError(f"factor must be a positive number, not {self.factor}")
        if not 0 < self.low_freq_factor < self.high_freq_factor < math.inf:
            raise ConfigError(
                "low_freq_factor must be positive and less than high_freq_factor, not "
                f"{self.low_freq_factor} and {self.high_freq_factor}"
            )
        if self.original_max_seq_len < 1:
            raise ConfigError("original_max_position_embeddings must be at least 1")
        if not 0 < self.attention_factor < math.inf:
            raise ConfigError(f"attention_factor must be positive, not {self.attention_factor}")
        if not 0 < self.beta_slow <= self.beta_fast < math.inf:
            raise ConfigError(
                "beta_slow must be positive and at most beta_fast, not "
                f"{self.beta_slow} and {self.beta_fast}"
            )
        if not all(0 < f < math.inf for f in (*self.short, *self.long)):
            raise ConfigError("short_factor and long_factor must be positive numbers")
