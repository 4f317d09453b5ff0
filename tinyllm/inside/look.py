"""A look at one token of a text: every view that was asked for, as a pure function of token ids.

The server keeps no debugger state. A `Session` is opened behind the text's first tokens, the token
that stands next is its step, and what was asked is read off: the views are the notebook's own, so
their numbers are a `Step`'s to the bit: of a session whose products are as the server's looks have
them (`many_rows.RowByRow`), and of any other but for rounding.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tinyllm.errors import HookError
from tinyllm.inside.points import match_names
from tinyllm.inside.replay import attention_name, check_index
from tinyllm.inside.trace_file import record_lens, record_step
from tinyllm.sampler import best_ids

if TYPE_CHECKING:
    from tinyllm.step import Step

N_TOP = 256  # logits that come exactly; the rest comes as a histogram
N_BINS = 64
MAX_NUMBERS = 262_144  # of activations in one look
MAX_TERMS = 24  # of an explained sum


@dataclass(frozen=True)
class Want:
    """What to look at. Everything is off until it is asked for.

    candidates: how many; stages come with them.
    logits: the 256 best logits, and how the rest lie.
    attention: (layer, heads) with None for all; layer None for all layers.
    lens: k of the logit lens.
    activations: a hook point's name.
    timing, cache: as they say.
    drawn: token → logit as the server drew from, to be compared with these float32 logits.
    """

    candidates: int = 0
    logits: bool = False
    attention: tuple[int | None, Sequence[int] | None] | None = None
    lens: int = 0
    activations: str = ""
    timing: bool = False
    cache: bool = False
    drawn: Mapping[int, float] = field(default_factory=dict)


def look(step: Step, want: Want) -> dict[str, Any]:
    """What was asked for of a step, as data for JSON.

    Raises:
        HookError: an unknown hook point.
        ValueError: an index out of range, or more numbers than a look may hold.
    """
    record = record_step(step, candidates=want.candidates, stages=want.candidates > 0)
    record = replace(record, sampling=None)  # the caller has said it
    out: dict[str, Any] = {key: value for key, value in asdict(record).items() if value is not None}
    if want.logits:
        out["logits"] = logits_in_short(step.logits)
    if want.drawn:
        out["replay_error"] = max(abs(float(step.logits[t]) - x) for t, x in want.drawn.items())
    if want.attention is not None:
        out["attention"] = _attention(step, *want.attention)
    if want.lens:
        out["lens"] = [vars(row) for row in record_lens(step.logit_lens(want.lens))]
    if want.activations:
        out["activations"] = _activations(step, want.activations)
    if want.timing:
        timing = step.timing()
        out["timing"] = {"seconds": dict(timing.seconds), "by_layer": timing.by_layer.tolist()}
    if want.cache:
        view = step.cache
        out["cache"] = {"n_tokens": view.n_tokens, "nbytes": view.nbytes}
    return out


def logits_in_short(logits: NDArray[np.float32]) -> dict[str, Any]:
    """The best logits exactly, and a histogram of the rest: what sliders need, in 3 kB.

    `tail` counts tokens in bins of equal width from `low` to `high`, both logits; `exp_sums` has
    each bin's Σ exp(logit - best), so that the rest's mass at temperature 1 is exact.
    """
    ids = best_ids(logits, N_TOP)
    rest = np.delete(logits, ids).astype(np.float64)
    top = float(logits[ids[0]])
    low, high = (float(rest.min()), float(rest.max())) if len(rest) else (0.0, 0.0)
    width = (high - low) / N_BINS or 1.0
    bins = np.minimum(((rest - low) / width).astype(np.int64), N_BINS - 1)
    return {
        "ids": packed(ids.astype(np.int32)),
        "values": packed(logits[ids]),
        "tail": {
            "low": low,
            "high": high,
            "counts": np.bincount(bins, minlength=N_BINS).tolist(),
            "exp_sums": np.bincount(bins, np.exp(rest - top), N_BINS).tolist(),
        },
    }


def packed(array: NDArray[Any]) -> dict[str, Any]:
    """An array for a page: its shape, its dtype, and its bytes, little-endian, in base64."""
    raw = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"))
    data = base64.b64encode(raw.tobytes()).decode("ascii")
    return {"shape": list(array.shape), "dtype": array.dtype.name, "data": data}


def _attention(step: Step, layer: int | None, heads: Sequence[int] | None) -> dict[str, Any]:
    """(heads, position) float16 of one layer, or (layers, heads, position) as bytes of all."""
    config = step.replay.model.config
    if layer is None:
        rows = [step.replay.activations[attention_name(i)][:, 0] for i in range(config.n_layers)]
        loud = np.stack(rows)
        return {"layer": None, "weights": packed(np.round(loud * 255).astype(np.uint8))}
    check_index("layer", layer, config.n_layers)
    chosen = list(range(config.n_heads) if heads is None else heads)
    weights = np.stack([step.attention(layer, head) for head in chosen])
    return {"layer": layer, "heads": chosen, "weights": packed(weights.astype(np.float16))}


def _activations(step: Step, name: str) -> dict[str, Any]:
    found, *more = match_names(step.replay.model.config, [name])
    if more:
        raise HookError(f"{name[:80]!r} fits {len(more) + 1} hook points; a look shows one")
    array = step.activations(found)[found]
    if array.size > MAX_NUMBERS:
        raise ValueError(f"{found} has {array.size} numbers here; a look holds {MAX_NUMBERS}")
    finite = array[np.isfinite(array)]
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    return {
        "name": found,
        "values": packed(half),
        "low": float(finite.min()) if finite.size else 0.0,
        "high": float(finite.max()) if finite.size else 0.0,
        "rms": float(np.sqrt(np.mean(finite.astype(np.float64) ** 2))) if finite.size else 0.0,
    }
