"""A model's shape: the one place where a checkpoint's keys become our names."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from tinyllm.errors import ConfigError
from tinyllm.families import describe
from tinyllm.families.parts import (
    Activation,
    Experts,
    Layer,
    Norm,
    Pairs,
    Parallel,
    QKNorm,
    RopeScaling,
    Temperature,
)

__all__ = ["ModelConfig", "RopeScaling", "read_json_object"]

# Beyond these a config is no model's: better an error than a loop over a billion layers.
MAX_LENGTH, MAX_LAYERS = 2**31 - 1, 10_000
PLAIN_LAYER = Layer()


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a decoder, and the parts it is made of; what isn't said is as in Llama.

    Lengths are in elements (`dim`, `hidden_dim`, `head_dim`) or tokens (`max_seq_len`,
    `vocab_size`). Query head h reads key/value head `h // (n_heads // n_kv_heads)`.

    Attributes:
        rotary_dim: how many elements of a head turn; None: all.
        rope_pairs: which of them turn together, i with i + rotary_dim / 2 or i with i + 1.
        local_rope_theta, local_rope_scaling: of layers whose `rotary` is "local".
        layers: how layers differ; empty: they don't.
        learned_positions: a table of positions is added to the embeddings.
        temperature: queries grow with their position.
        attention_scale: what q·k is multiplied by; None: 1 / sqrt(head_dim).
        score_cap, logit_cap: cap · tanh(x / cap) of attention scores, of logits.
        sinks: every head has a score that takes weight and gives nothing.
        axes: how many rotary pairs turn by time, height and width (M-RoPE, interleaved); in a text
            the three are one. An image's rows bring their places along, see `runner.places`.
        deep_rows: early layers to whose output an image's rows are added, each its own.
        images_see_ahead: positions of one image see all of it, the later ones too.
        qk_norm, qk_norm_last: norms of queries and keys; after the rotation.
        norm_before, norm_after: norms of what a sublayer reads, and of what it adds.
        parallel: attention and MLP read the same stream, and are added together.
        gated: act(gate · x) * (up · x) rather than act(up · x).
        act_limit: gpt-oss: gate and up are clamped, and the gate is x · sigmoid(1.702 x).
        biases: which tensors have one: q k v o gate up down norm qk_norm router head.
    """

    dim: int
    hidden_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocab_size: int
    max_seq_len: int
    rope_theta: float
    norm_eps: float
    tie_embeddings: bool
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    rope_scaling: RopeScaling | None = None
    family: str = "llama"
    # positions
    rotary_dim: int | None = None
    rope_pairs: Pairs = "halves"
    local_rope_theta: float | None = None
    local_rope_scaling: RopeScaling | None = None
    layers: tuple[Layer, ...] = ()
    learned_positions: bool = False
    # attention
    temperature: Temperature | None = None
    attention_scale: float | None = None
    score_cap: float | None = None
    sinks: bool = False
    images_see_ahead: bool = False
    axes: tuple[int, int, int] | None = None
    deep_rows: int = 0
    qk_norm: QKNorm = "no"
    qk_norm_last: bool = False
    qkv_clip: float | None = None
    # MLP
    activation: Activation = "silu"
    gated: bool = True
    act_alpha: float | None = None
    act_limit: float | None = None
    experts: Experts | None = None
    # the residual stream
    norm: Norm = "rms"
    norm_before: bool = True
    norm_after: bool = False
    parallel: Parallel = "no"
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    logit_cap: float | None = None
    biases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "head_dim",
                     "vocab_size", "max_seq_len"):  # fmt: skip
            limit = MAX_LAYERS if name == "n_layers" else MAX_LENGTH
            if not 1 <= getattr(self, name) <= limit:
                raise ConfigError(f"{name} must be from 1 to {limit}, not {getattr(self, name)}")
        if self.n_heads % self.n_kv_heads:
            raise ConfigError(
                f"n_heads ({self.n_heads}) must be a multiple of n_kv_heads ({self.n_kv_heads}): "
                "each key/value head serves a whole group of query heads"
            )
        if self.head_dim % 2:
            raise ConfigError(f"head_dim must be even for rotary pairs, not {self.head_dim}")
        for name in ("rope_theta", "local_rope_theta", "attention_scale", "score_cap", "logit_cap",
                     "qkv_clip", "act_limit"):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"{name} must be a positive number, not {value}")
        for name in ("embedding_scale", "residual_scale", "logit_scale"):
            if not math.isfinite(getattr(self, name)):
                raise ConfigError(f"{name} must be a finite number, not {getattr(self, name)}")
        if not 0 <= self.norm_eps < math.inf:
            raise ConfigError(f"norm_eps must be 0 or a positive number, not {self.norm_eps}")
        if self.layers and len(self.layers) != self.n_layers:
            raise ConfigError(f"{len(self.layers)} layers are described, but there are "
                              f"{self.n_layers}")  # fmt: skip
        for layer in self.layers:
            if layer.window is not None and layer.window < 1:
                raise ConfigError(f"sliding_window must be at least 1, not {layer.window}")

    def layer(self, i: int) -> Layer:
        """How layer i differs from its neighbours."""
        return self.layers[i] if self.layers else PLAIN_LAYER

    def beyond_llama(self) -> tuple[str, ...]:
        """The parts in which it differs from a Llama, by the names of their fields."""
        own = fields(self)
        first = [field.name for field in own].index("family") + 1
        differing = [f.name for f in own[first:] if getattr(self, f.name) != f.default]
        if all(layer == PLAIN_LAYER for layer in self.layers):
            differing = [name for name in differing if name != "layers"]
        return tuple(differing)

    @property
    def score_scale(self) -> float:
        """What q·k is multiplied by."""
        own = self.attention_scale
        return 1.0 / math.sqrt(self.head_dim) if own is None else own

    @property
    def turned(self) -> int:
        """How many elements of a head turn with its position."""
        return self.head_dim if self.rotary_dim is None else self.rotary_dim

    def local(self) -> ModelConfig:
        """The same with the rotary base of its local layers: what their tables are made from."""
        if self.local_rope_theta is None:
            return self
        return replace(self, rope_theta=self.local_rope_theta, rope_scaling=self.local_rope_scaling)

    @property
    def plain_context(self) -> int:
        """How long sequences may become with one table of angles, which short ones have, too.

        That is all of the context, but for longrope, which turns by others beyond the original one.
        """
        scaling = self.rope_scaling
        if scaling is None or scaling.kind != "longrope":
            return self.max_seq_len
        return min(self.max_seq_len, scaling.original_max_seq_len)

    def for_context(self, capacity: int) -> ModelConfig:
        """The same for sequences of at most `capacity` tokens.

        It differs where the rotary frequencies depend on how long a sequence may become (longrope):
        they are chosen once, before the first token, since the cache keeps turned keys. (The
        reference computes them anew where a text grows beyond the original context.)
        """
        scaling = self.rope_scaling
        if scaling is None or scaling.kind != "longrope" or capacity >= self.max_seq_len:
            return self
        return replace(self, max_seq_len=max(capacity, 1))

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> ModelConfig:
        """Read the keys of a hub `config.json`, as the family's description says.

        Raises:
            ConfigError: an architecture or a feature that isn't here, a key that isn't understood
                and might change the numbers, or a missing or mistyped one; the message names it.
        """
        return cls(**describe(raw))

    @classmethod
    def from_folder(cls, folder: Path) -> ModelConfig:
        """Read `folder/config.json`."""
        path = folder / "config.json"
        try:
            return cls.from_hf(read_json_object(path))
        except ConfigError as error:
            raise ConfigError(
                error.args[0] if str(path) in str(error) else f"{path}: {error}"
            ) from None


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a model folder; ConfigError names the file."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"{path} is missing; a model folder holds config.json, tokenizer.json and *.safetensors"
        ) from None
    except (OSError, ValueError, RecursionError) as error:  # ValueError: JSON's and Unicode's
        raise ConfigError(f"{path} can't be read as JSON: {error}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} must hold a JSON object")
    return raw
