"""Rotary parameters of families whose sliding layers turn by a table of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tinyllm.errors import ConfigError
from tinyllm.families.keys import Keys
from tinyllm.families.rotary import table


def rotary_by_kind(
    keys: Keys, head_dim: int, max_len: int, *, full: float, sliding: float
) -> dict[str, Any]:
    """Both tables' base and scaling: `rope_parameters` by kind, or one base and scaling beside.

    Args:
        full, sliding: the bases where `rope_parameters` says nothing.
    """
    both = keys.any("rope_parameters") or {}
    if not isinstance(both, Mapping):
        raise ConfigError(f"rope_parameters must be an object, not {both!r}")
    flat = set(both) - {"full_attention", "sliding_attention"}
    if flat:
        raise ConfigError(
            f"rope_parameters has {sorted(flat)[0]!r}; this family nests full_attention and "
            "sliding_attention in it, and the reference passes over anything else"
        )
    whole = dict(_kind(both, "full_attention"))
    scaling = keys.any("rope_scaling") or {}
    if not isinstance(scaling, Mapping):
        raise ConfigError(f"rope_scaling must be an object, not {scaling!r}")
    if "type" in scaling and "rope_type" not in scaling:
        raise ConfigError(
            f"rope_scaling: type is {scaling['type']!r}; of this family the reference reads "
            "rope_type alone, and would pass over it: give it that name"
        )
    whole |= scaling
    wide = _table(whole, head_dim, full, max_len)
    local = _table(_kind(both, "sliding_attention"), head_dim, sliding, max_len)
    return wide | {
        "local_rope_theta": local["rope_theta"], "local_rope_scaling": local["rope_scaling"],
    }  # fmt: skip


def _kind(both: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    value = both.get(kind) or {}
    if not isinstance(value, Mapping):
        raise ConfigError(f"rope_parameters: {kind} must be an object, not {value!r}")
    return value


def _table(rope: Mapping[str, Any], head_dim: int, theta: float, max_len: int) -> dict[str, Any]:
    if rope.get("truncate") is False:
        raise ConfigError(
            "rope_parameters: truncate is False, which the reference passes over where parameters "
            "are nested by kind of layer; take it out"
        )
    return table(rope, head_dim, theta, None, max_len)
