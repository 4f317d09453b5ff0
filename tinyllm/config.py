"""A model's shape: the one place where a checkpoint's keys become our names."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tinyllm.errors import ConfigError

SUPPORTED_ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM")
# Models of images and text, whose language model is a Llama under text_config.
VISION_ARCHITECTURES = ("Idefics3ForConditionalGeneration", "SmolVLMForConditionalGeneration")

# Beyond these a config is no model's: better an error than a loop over a billion layers.
MAX_LENGTH, MAX_LAYERS = 2**31 - 1, 10_000

T = TypeVar("T", int, float, bool, str)


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched for contexts beyond the one trained on.

    `kind` is "linear" (all frequencies divided by `factor`) or "llama3" (low frequencies divided,
    high ones kept, a ramp between; `transformers/modeling_rope_utils.py` is the reference).
    """

    kind: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_seq_len: int = 8192

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


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a Llama-family decoder.

    Lengths are in elements (`dim`, `hidden_dim`, `head_dim`) or tokens (`max_seq_len`,
    `vocab_size`). Query head h reads key/value head `h // (n_heads // n_kv_heads)`.
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
        if not 0 < self.rope_theta < math.inf:
            raise ConfigError(f"rope_theta must be a positive number, not {self.rope_theta}")
        if not 0 <= self.norm_eps < math.inf:
            raise ConfigError(f"norm_eps must be 0 or a positive number, not {self.norm_eps}")

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> ModelConfig:
        """Read the keys of a hub `config.json`.

        Raises:
            ConfigError: an unsupported architecture or feature, or a missing or mistyped key;
                the message names it.
        """
        raw = _language_part(raw)
        architectures = _architectures(raw)
        known = [a for a in architectures if a in SUPPORTED_ARCHITECTURES]
        if not known and not (not architectures and raw.get("model_type") == "llama"):
            supported = ", ".join(SUPPORTED_ARCHITECTURES)
            raise ConfigError(f"architectures is {architectures!r}; tinyllm runs {supported}")
        if (act := raw.get("hidden_act", "silu")) not in ("silu", "swish"):
            raise ConfigError(f"hidden_act is {act!r}; only 'silu' is supported")
        for key in ("attention_bias", "mlp_bias"):
            if raw.get(key):
                raise ConfigError(f"{key} is set; projections with a bias are not supported")
        if raw.get("sliding_window"):
            raise ConfigError("sliding_window is set; sliding-window attention is not supported")
        if raw.get("quantization_config"):
            raise ConfigError(
                "quantization_config is set; give the unquantised checkpoint (f32, f16 or bf16)"
            )

        dim = _get(raw, "hidden_size", int)
        n_heads = _get(raw, "num_attention_heads", int)
        if n_heads < 1:
            raise ConfigError(f"num_attention_heads must be at least 1, not {n_heads}")
        # transformers 5 moved rope_theta and the scaling into one dictionary.
        rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
        if not isinstance(rope, Mapping):
            raise ConfigError(f"rope_scaling (rope_parameters) must be an object, not {rope!r}")
        theta_in = rope if "rope_theta" in rope else raw
        return cls(
            dim=dim,
            hidden_dim=_get(raw, "intermediate_size", int),
            n_layers=_get(raw, "num_hidden_layers", int),
            n_heads=n_heads,
            n_kv_heads=_get(raw, "num_key_value_heads", int, n_heads),
            head_dim=_get(raw, "head_dim", int, dim // n_heads),
            vocab_size=_get(raw, "vocab_size", int),
            max_seq_len=_get(raw, "max_position_embeddings", int, 2048),
            rope_theta=_get(theta_in, "rope_theta", float, 10_000.0),
            norm_eps=_get(raw, "rms_norm_eps", float, 1e-6),
            tie_embeddings=_get(raw, "tie_word_embeddings", bool, False),
            bos_id=next(iter(_token_ids(raw, "bos_token_id")), None),
            eos_ids=_token_ids(raw, "eos_token_id"),
            rope_scaling=_rope_scaling(rope),
        )

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


def _get(raw: Mapping[str, Any], key: str, kind: type[T], default: T | None = None) -> T:
    value = raw.get(key)
    if value is None:
        if default is None:
            raise ConfigError(f"{key} is missing")
        return default
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 1 << 1023 else math.inf
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ConfigError(f"{key} must be {kind.__name__}, not {value!r}")
    return value


def _architectures(raw: Mapping[str, Any]) -> list[str]:
    names = raw.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"architectures must be a list of names, not {names!r}")
    return names


def _language_part(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """The keys of the language model: `raw` itself, or text_config of a model that sees images."""
    if not set(_architectures(raw)) & set(VISION_ARCHITECTURES):
        return raw
    inner = raw.get("text_config")
    if not isinstance(inner, Mapping):
        raise ConfigError(f"text_config must be an object, not {inner!r}")
    if (kind := inner.get("model_type", "llama")) != "llama":
        raise ConfigError(f"text_config: model_type is {kind!r}; only 'llama' is supported")
    outer = ("bos_token_id", "eos_token_id")
    return {
        **inner,
        "model_type": "llama",
        # Checkpoints name training code's own class here.
        "architectures": [SUPPORTED_ARCHITECTURES[0]],
        **{key: raw[key] for key in outer if raw.get(key) is not None},
        "tie_word_embeddings": bool(raw.get("tie_word_embeddings", False)),
    }


def _token_ids(raw: Mapping[str, Any], key: str) -> tuple[int, ...]:
    value = raw.get(key)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
        raise ConfigError(f"{key} must be a token id or a list of them, not {value!r}")
    return tuple(ids)


def _rope_scaling(rope: Mapping[str, Any]) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    try:
        if kind == "linear":
            return RopeScaling("linear", _get(rope, "factor", float))
        if kind == "llama3":
            return RopeScaling(
                "llama3",
                _get(rope, "factor", float),
                _get(rope, "low_freq_factor", float),
                _get(rope, "high_freq_factor", float),
                _get(rope, "original_max_position_embeddings", int),
            )
    except ConfigError as error:
        raise ConfigError(f"rope_scaling: {error}") from None
    raise ConfigError(f"rope type {kind!r} is not supported; default, linear and llama3 are")
