"""A checkpoint's rotary keys, old and new, as one base, one share of a head and one scaling.

Until transformers 5 the base stood as `rope_theta` beside `rope_scaling`; since then both stand in
`rope_parameters`, which some families nest by kind of layer. Where both are there the reference
takes `rope_scaling` whole and forgets the other (`RotaryEmbeddingConfigMixin`), and so it is here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tinyllm.errors import ConfigError
from tinyllm.families.keys import Keys, typed
from tinyllm.families.parts import RopeScaling

DEFAULT_THETA = 10_000.0
KNOWN = {"rope_type", "type", "rope_theta", "factor", "low_freq_factor", "high_freq_factor",
         "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow", "mscale",
         "mscale_all_dim", "truncate", "short_factor", "long_factor",
         "partial_rotary_factor"}  # fmt: skip


def rotary(
    keys: Keys,
    head_dim: int,
    *,
    theta: float = DEFAULT_THETA,
    share: float | None = None,
    max_len: int = 2048,
    base_key: str = "rope_theta",
    share_key: str = "partial_rotary_factor",
    also: frozenset[str] = frozenset(),
) -> dict[str, Any]:
    """`rope_theta`, `rope_scaling` and `rotary_dim` of a config whose layers share one table.

    Args:
        theta: the family's base where the file has none.
        share: the family's share of a head that turns; None where the reference knows of none.
        max_len: the model's context.
        base_key, share_key: what the family calls the two outside of `rope_parameters`.
        also: what else the family reads in `rope_parameters`.
    """
    rope = parameters(keys)
    base = keys.get(base_key, float, theta)
    beside = keys.optional(share_key, float)
    if beside is not None:
        rope = {"partial_rotary_factor": beside, **rope}
    original = keys.optional("original_max_position_embeddings", int)
    return table(rope, head_dim, base, share, max_len, original, also)


def parameters(keys: Keys) -> Mapping[str, Any]:
    """`rope_scaling` if the file has one, else `rope_parameters`, else the family's default."""
    own = _object("rope_parameters", keys.any_or_default("rope_parameters"))
    return _object("rope_scaling", keys.any("rope_scaling")) or own


def nested(rope: Mapping[str, Any]) -> bool:
    """Whether rotary parameters are given by kind of layer."""
    return any(kind in rope for kind in ("full_attention", "sliding_attention"))


def table(
    rope: Mapping[str, Any],
    head_dim: int,
    theta: float,
    share: float | None,
    max_len: int,
    original: int | None = None,
    also: frozenset[str] = frozenset(),
) -> dict[str, Any]:
    """The same of one dictionary of parameters; `share` is the family's, where that has one."""
    if nested(rope):
        raise ConfigError(
            "rope_parameters is nested by kind of layer; this family has one for all layers"
        )
    unknown = [k for k, v in rope.items() if k not in KNOWN | also and v not in (None, False)]
    if unknown:
        raise ConfigError(
            f"rope_parameters (rope_scaling) has {unknown[0]!r}, which tinyllm doesn't understand: "
            "it might change every position, so it isn't passed over"
        )
    part = _typed(rope, "partial_rotary_factor", float)
    if share is None and part not in (None, 1.0):
        raise ConfigError(
            f"partial_rotary_factor is {part}, but this family's heads turn whole: the reference "
            "passes over it or fails, by the rope type; take it out"
        )
    part = share or 1.0 if part is None else part
    if not 0 < part <= 1:
        raise ConfigError(f"partial_rotary_factor must be in (0, 1], not {part}")
    rotary_dim = int(head_dim * part)
    if rotary_dim < 2 or rotary_dim % 2:
        raise ConfigError(
            f"partial_rotary_factor {part} of head_dim {head_dim} is {rotary_dim} elements, which "
            "aren't pairs: rotary dimensions are even"
        )
    base = _typed(rope, "rope_theta", float)
    return {
        "rope_theta": theta if base is None else base,
        "rope_scaling": _scaling(rope, rotary_dim, max_len, original),
        "rotary_dim": None if rotary_dim == head_dim else rotary_dim,
    }


def _object(key: str, value: Any) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ConfigError(f"{key} must be an object, not {value!r}")
    return value


def _typed(rope: Mapping[str, Any], key: str, kind: type[Any]) -> Any:
    try:
        return typed(rope.get(key), key, kind)
    except ConfigError as error:
        raise ConfigError(f"rope_scaling: {error}") from None


def _scaling(
    rope: Mapping[str, Any], rotary_dim: int, max_len: int, original: int | None
) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if not isinstance(kind, str) or kind not in READERS:
        known = ", ".join(["default", *READERS])
        raise ConfigError(f"rope type {kind!r} is not supported; {known} are")
    trained = original or _typed(rope, "original_max_position_embeddings", int) or max_len
    try:
        return READERS[kind](rope, trained, rotary_dim, max_len)
    except ConfigError as error:
        text = str(error)
        raise ConfigError(text if text.startswith("rope") else f"rope_scaling: {text}") from None


def _need(rope: Mapping[str, Any], key: str) -> float:
    value = _typed(rope, key, float)
    if value is None:
        raise ConfigError(f"rope type {rope.get('rope_type', rope.get('type'))}: {key} is missing")
    return float(value)


def _linear(rope: Mapping[str, Any], trained: int, dim: int, max_len: int) -> RopeScaling:
    return RopeScaling("linear", _need(rope, "factor"))


def _dynamic(rope: Mapping[str, Any], trained: int, dim: int, max_len: int) -> RopeScaling:
    return RopeScaling("dynamic", _need(rope, "factor"))


def _llama3(rope: Mapping[str, Any], trained: int, dim: int, max_len: int) -> RopeScaling:
    low, high = _need(rope, "low_freq_factor"), _need(rope, "high_freq_factor")
    return RopeScaling("llama3", _need(rope, "factor"), low, high, trained)


def _yarn(rope: Mapping[str, Any], trained: int, dim: int, max_len: int) -> RopeScaling:
    factor = _need(rope, "factor")
    attention = _typed(rope, "attention_factor", float)
    above, below = _typed(rope, "mscale", float), _typed(rope, "mscale_all_dim", float)
    if attention is None:
        if above and below:
            attention = _mscale(factor, above) / _mscale(factor, below)
        else:
            attention = _mscale(factor, 1.0)
    truncate = _typed(rope, "truncate", bool)
    return RopeScaling(
        "yarn",
        factor,
        original_max_seq_len=trained,
        beta_fast=_typed(rope, "beta_fast", float) or 32.0,
        beta_slow=_typed(rope, "beta_slow", float) or 1.0,
        truncate=True if truncate is None else truncate,
        attention_factor=attention,
    )


def _mscale(factor: float, weight: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def _longrope(rope: Mapping[str, Any], trained: int, dim: int, max_len: int) -> RopeScaling:
    factors = {}
    for key in ("short_factor", "long_factor"):
        value = rope.get(key)
        if not isinstance(value, list) or len(value) != dim // 2:
            raise ConfigError(f"{key} must be a list of {dim // 2} numbers, one a rotary pair")
        numbers = [typed(item, key, float) for item in value]
        if None in numbers:
            raise ConfigError(f"{key} must be a list of numbers")
        factors[key] = tuple(float(item) for item in numbers if item is not None)
    factor = _typed(rope, "factor", float) or max_len / trained
    attention = _typed(rope, "attention_factor", float)
    if attention is None:
        if factor > 1 and trained < 2:
            raise ConfigError("original_max_position_embeddings must be at least 2")
        grown = 1 + math.log(factor) / math.log(trained) if factor > 1 else 1.0
        attention = math.sqrt(grown)
    return RopeScaling(
        "longrope",
        factor,
        original_max_seq_len=trained,
        attention_factor=attention,
        short=factors["short_factor"],
        long=factors["long_factor"],
    )


READERS = {"linear": _linear, "dynamic": _dynamic, "llama3": _llama3, "yarn": _yarn,
           "longrope": _longrope}  # fmt: skip
