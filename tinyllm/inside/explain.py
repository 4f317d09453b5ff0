"""One number of a forward pass as its formula, with the actual values put in.

`explain` takes one entry of one activation and says which line of model.py made it, from which
numbers, and what the formula gives when it is worked out by itself, in float64. Everything it needs
is one token's forward over the cache, however long the text before it.
"""

from __future__ import annotations

import linecache
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

from tinyllm import model as model_module
from tinyllm.errors import ConfigError
from tinyllm.inside.display import explanation_html
from tinyllm.inside.formulas import Entry, Term, Worked
from tinyllm.inside.points import match_names, points_by_name
from tinyllm.inside.replay import check_index

HEADS = ("n_heads", "n_kv_heads", "k_experts")

if TYPE_CHECKING:
    from tinyllm.inside.rerun import Rerun


@dataclass(frozen=True)
class Explanation:
    """Where one number comes from.

    Attributes:
        name: the hook point; or logits, p_raw, p, or a filter's name.
        where: the entry's indices by name: position, head, key, dim (a token's id for logits).
        token: the token at that position, as text.
        formula: in symbols.
        filled: the same with the values put in; long sums show their largest terms.
        value: the entry, as the readable path computed it in its own precision.
        recomputed: what the formula gives from its inputs in float64.
        terms: the formula's parts, the largest first; each says what explains it (`Term.opens`).
        source: "model.py:123", and `line` its text.
        tensor: the checkpoint's tensor in the formula, or "".
        kernel: the compiled kernel's value for the same inputs; None where the fused kernels never
            form this number.
    """

    name: str
    where: Mapping[str, int]
    token: str
    formula: str
    filled: str
    value: float
    recomputed: float
    source: str
    line: str
    tensor: str = ""
    kernel: float | None = None
    terms: list[Term] = field(default_factory=list, repr=False)

    def __repr__(self) -> str:
        at = ", ".join(f"{k} {v}" for k, v in self.where.items())
        lines = [
            f"{self.name} at {at} ({self.token!r})",
            f"  {self.formula}",
            f"  = {self.filled}",
            f"  = {self.recomputed:.6g}   (float64, from the inputs above)",
            f"  = {self.value:.6g}   (readable path)",
        ]
        if self.kernel is not None:
            lines.append(f"  = {self.kernel:.6g}   (compiled kernel, same inputs)")
        lines.append(f"  {self.source}: {self.line}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return explanation_html(self)


def explain(
    rerun: Rerun,
    name: str,
    *,
    head: int | None = None,
    key: int | None = None,
    dim: int | None = None,
) -> Explanation:
    """Explain one entry of one activation at the newest position of a forward.

    Args:
        rerun: the forward.
        name: a hook point.
        head: for arrays with a head axis (key/value heads at hook_k, hook_rot_k and hook_v), or,
            within experts, which of the token's chosen, the best first; default 0.
        key: for scores and patterns: the position that is looked at; default: the one that gets
            most.
        dim: the last index of other arrays; default 0.

    Raises:
        HookError: an unknown hook point.
        ValueError: an index that is out of range, or that this array doesn't have.
    """
    model = rerun.model
    activations = rerun.replay.activations
    (name,) = match_names(model.config, [name])
    point = points_by_name(model.config)[name]
    array = activations[name]
    where = {"position": len(rerun.tokens) - 1}
    given = {"head": head, "key": key, "dim": dim}
    index: list[int] = []
    for axis, size in zip(point.axes, array.shape, strict=True):
        if axis == "T":
            index.append(-1)
            continue
        what = "head" if axis in HEADS else "key" if axis == "S" else "dim"
        value = given.pop(what)
        if value is None:
            value = int(array[index[0], -1].argmax()) if what == "key" else 0
        check_index(what, value, size)
        where[what] = value % size
        index.append(value % size)
    for what, value in given.items():
        if value is not None:
            raise ValueError(f"{name} {point.axes} has no {what} axis")

    worked = point.kind.formula(
        Entry(
            config=model.config,
            weights=model.weights,
            activations=activations,
            keys=rerun.keys,
            values=rerun.values,
            tokens=rerun.tokens,
            texts=rerun.texts,
            context=rerun.context,
            place=rerun.place,
            layer=point.layer,
            suffix=point.kind.suffix,
            tensor=point.tensor,
            per_head="head_dim" in point.axes or "k_experts" in point.axes,
            head=where.get("head", 0),
            key=where.get("key", 0),
            dim=where.get("dim", 0),
        )
    )
    return Explanation(
        name=name,
        where=where,
        token=rerun.texts[-1],
        formula=worked.formula,
        filled=worked.filled,
        value=float(array[tuple(index)]),
        recomputed=worked.value,
        source=point.source,
        line=source_line(point.source),
        tensor=worked.tensor or point.tensor,
        kernel=kernel_value(rerun, worked),
        terms=worked.terms,
    )


def kernel_value(rerun: Rerun, worked: Worked) -> float | None:
    """What the compiled kernel gives for a formula's inputs; None where it never forms that."""
    if rerun.dtype is None or worked.kernel is None:
        return None
    from tinyllm.compiled import check_shape  # numba is only imported when it is used
    from tinyllm.inside import one_entry

    try:
        check_shape(rerun.model.config)
    except ConfigError:  # the kernels don't do this shape
        return None
    _tell_of_compiling()
    return worked.kernel(one_entry, rerun.dtype)


@lru_cache(maxsize=1)
def _tell_of_compiling() -> None:
    """Once: the first kernel that is asked by itself may have to be compiled for that."""
    print("asking the compiled kernel; its first time takes some seconds …", file=sys.stderr)


def source_line(source: str) -> str:
    """The text of a line of model.py, from "model.py:123"."""
    _, _, number = source.partition(":")
    path = model_module.__file__ or ""
    return linecache.getline(path, int(number)).strip() if number else ""
