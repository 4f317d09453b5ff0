"""One number of a forward pass as its formula, with the actual values put in.

`explain` takes one entry of one activation and says which line of model.py made it, from which
numbers, and what the formula gives when it is worked out by itself, in float64.
"""

from __future__ import annotations

import linecache
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tinyllm import model as model_module
from tinyllm.config import ModelConfig
from tinyllm.errors import ConfigError, HookError
from tinyllm.inside.hooks import EMBED, FINAL, HookPoint, match_names, points_by_name
from tinyllm.inside.replay import ActivationCache, check_index, run_with_cache
from tinyllm.kernels import reference as ops
from tinyllm.model import Model
from tinyllm.runner import Array

if TYPE_CHECKING:
    from tinyllm.inside.hooks import Hook

SHOWN_TERMS = 4


@dataclass(frozen=True)
class Term:
    """One part of a sum: what it is of, and its value."""

    label: str
    factors: str
    value: float


@dataclass(frozen=True)
class Explanation:
    """Where one number comes from.

    Attributes:
        name: the hook point.
        where: the entry's indices by name: position, head, key, dim.
        token: the token at that position, as text.
        formula: in symbols.
        filled: the same with the values put in; long sums show their largest terms.
        value: the entry, as the readable path computed it in its own precision.
        recomputed: what the formula gives from its inputs in float64.
        terms: all terms of the sum, the largest first; empty where there is no sum.
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
        from tinyllm.inside.display import explanation_html

        return explanation_html(self)


@dataclass(frozen=True)
class _Entry:
    """The entry that is asked about, with everything its formula may need."""

    model: Model
    activations: ActivationCache
    tokens: Sequence[int]
    point: HookPoint
    position: int
    head: int
    key: int
    dim: int

    def row(self, suffix: str) -> NDArray[np.float64]:
        """An activation of the same layer at the entry's position."""
        row: NDArray[np.float64] = self.of(suffix)[self.position].astype(np.float64)
        return row

    def of(self, suffix: str) -> Array:
        layer = self.point.layer
        return self.activations[suffix if layer is None else f"blocks.{layer}.{suffix}"]

    def weight(self) -> Array:
        return self.model.weights[self.point.tensor]

    def attended(self) -> tuple[Array, Array, Array]:
        """The query, (head_dim,), and all keys and values it sees, (position + 1, head_dim)."""
        config, seen = self.model.config, slice(self.position + 1)
        kv_head = self.head // (config.n_heads // config.n_kv_heads)
        return (
            self.of("attn.hook_rot_q")[self.position, self.head],
            self.of("attn.hook_rot_k")[seen, kv_head],
            self.of("attn.hook_v")[seen, kv_head],
        )


@dataclass(frozen=True)
class _Worked:
    formula: str
    filled: str
    value: float
    terms: list[Term] = field(default_factory=list)
    kernel: Callable[[Any, str], float] | None = None  # of kernels.one_entry and a format


def explain(
    model: Model,
    tokens: Sequence[int],
    name: str,
    pos: int = -1,
    *,
    head: int | None = None,
    key: int | None = None,
    dim: int | None = None,
    hooks: Sequence[Hook] = (),
    token_text: Callable[[int], str] = str,
    kernels: str | None = None,
    image_positions: NDArray[np.int64] | None = None,
    image_rows: NDArray[np.float32] | None = None,
) -> Explanation:
    """Explain one entry of one activation of a prompt.

    Args:
        tokens: the prompt's ids.
        name: a hook point.
        pos: which token; negative ones count from the end.
        head: for arrays with a head axis (key/value heads at hook_k, hook_rot_k and hook_v);
            default 0.
        key: for scores and patterns: the position that is looked at; default: the one that gets
            most.
        dim: the last index of other arrays; default 0.
        kernels: the format ("f32", "bf16", "q8" or "q4") whose compiled kernel is asked as well.

    Raises:
        HookError: an unknown hook point.
        ValueError: an index that is out of range, or that this array doesn't have.
    """
    if beyond := model.config.beyond_llama():
        raise HookError(
            f"explain knows a Llama's formulas; this {model.config.family} differs in "
            f"{', '.join(beyond)}: look at the array itself with run_with_cache"
        )
    (name,) = match_names(model.config, [name])
    point = points_by_name(model.config)[name]
    layer = point.layer
    prefix = "*" if layer is None else f"blocks.{layer}.*"
    names: list[str] = [prefix] if layer is not None else [EMBED.suffix, FINAL.suffix]
    last = f"blocks.{model.config.n_layers - 1}.hook_resid_post"
    names.append(last if layer is None else EMBED.suffix)
    if layer:
        names.append(f"blocks.{layer - 1}.hook_resid_post")
    _, activations = run_with_cache(
        model, tokens, names, hooks=hooks, image_positions=image_positions, image_rows=image_rows
    )

    array, axes = activations[name], point.axes
    check_index("pos", pos, len(tokens))
    position = pos % len(tokens)
    index: list[int] = []
    where: dict[str, int] = {"position": position}
    given = {"head": head, "key": key, "dim": dim}
    for axis, size in zip(axes, array.shape, strict=True):
        if axis == "T":
            index.append(position)
            continue
        what = "head" if axis in ("n_heads", "n_kv_heads") else "key" if axis == "S" else "dim"
        value = given.pop(what)
        if value is None:
            value = int(array[index[0], position].argmax()) if what == "key" else 0
        check_index(what, value, size)
        where[what] = value % size
        index.append(value % size)
    for what, value in given.items():
        if value is not None:
            raise ValueError(f"{name} {axes} has no {what} axis")

    entry = _Entry(
        model=model,
        activations=activations,
        tokens=tokens,
        point=point,
        position=position,
        head=where.get("head", 0),
        key=where.get("key", 0),
        dim=where.get("dim", 0),
    )
    suffix = name if layer is None else name.split(".", 2)[2]
    worked = FORMULAS[suffix](entry, token_text)
    return Explanation(
        name=name,
        where=where,
        token=token_text(tokens[position]),
        formula=worked.formula,
        filled=worked.filled,
        value=float(array[tuple(index)]),
        recomputed=worked.value,
        source=point.source,
        line=_line(point.source),
        tensor=point.tensor,
        kernel=_kernel_value(model.config, worked, kernels),
        terms=worked.terms,
    )


def _kernel_value(config: ModelConfig, worked: _Worked, dtype: str | None) -> float | None:
    if dtype is None or worked.kernel is None:
        return None
    from tinyllm.compiled import check_shape  # numba is only imported when it is used
    from tinyllm.inside import one_entry

    try:
        check_shape(config)
    except ConfigError:  # the kernels don't do this shape
        return None
    return worked.kernel(one_entry, dtype)


# One function a formula. Each works in float64 from the float32 inputs.


def _embed(e: _Entry, text: Callable[[int], str]) -> _Worked:
    value = float(e.of(EMBED.suffix)[e.position, e.dim])
    token = e.tokens[e.position]
    table = e.weight()
    if value != table[token, e.dim]:  # an image's row, or a hook's
        return _Worked("a row in place of E[token]", _n(value), value)

    def kernel(k: Any, dtype: str) -> float:
        return float(k.embedding(table, token, e.dim, dtype))

    return _Worked("E[token, dim]", f"E[{token}, {e.dim}]", value, kernel=kernel)


def _resid_pre(e: _Entry, text: Callable[[int], str]) -> _Worked:
    layer = e.point.layer or 0
    before = f"blocks.{layer - 1}.hook_resid_post" if layer else EMBED.suffix
    value = float(e.activations[before][e.position, e.dim])
    return _Worked(before, _n(value), value)


def _added(old: str, new: str) -> Callable[[_Entry, Callable[[int], str]], _Worked]:
    def work(e: _Entry, text: Callable[[int], str]) -> _Worked:
        a, b = float(e.row(old)[e.dim]), float(e.row(new)[e.dim])
        formula = f"{old.removeprefix('hook_')} + {new.removeprefix('hook_')}"
        return _Worked(formula, f"{_n(a)} + {_n(b)}", a + b, kernel=lambda k, dtype: k.added(a, b))

    return work


def _norm(stream: str) -> Callable[[_Entry, Callable[[int], str]], _Worked]:
    def work(e: _Entry, text: Callable[[int], str]) -> _Worked:
        name = stream
        if e.point.layer is None:
            name = f"blocks.{e.model.config.n_layers - 1}.hook_resid_post"
            x = e.activations[name][e.position].astype(np.float64)
        else:
            x = e.row(stream)
        eps, w = e.model.config.norm_eps, float(e.weight()[e.dim])
        mean_square = float((x**2).mean())
        value = float(x[e.dim]) / math.sqrt(mean_square + eps) * w
        filled = f"{_n(x[e.dim])} / √({_n(mean_square)} + {eps:g}) · {_n(w)}"
        f32, weight = x.astype(np.float32), e.weight()
        return _Worked(
            "x / √(mean(x²) + eps) · w",
            filled,
            value,
            kernel=lambda k, dtype: k.norm(f32, weight, eps, e.dim),
        )

    return work


def _projected(source: str) -> Callable[[_Entry, Callable[[int], str]], _Worked]:
    def work(e: _Entry, text: Callable[[int], str]) -> _Worked:
        x = e.row(source).reshape(-1)
        row = e.dim
        if "head_dim" in e.point.axes:
            row += e.head * e.model.config.head_dim
        w = e.weight()[row].astype(np.float64)
        filled, terms = _sum([f"j={j}" for j in range(len(x))], x, w)
        short = e.point.tensor.split(".")[-2]
        f32, matrix = x.astype(np.float32), e.weight()
        return _Worked(
            f"Σⱼ x[j] · {short}[{row}, j]",
            filled,
            float(x @ w),
            terms,
            lambda k, dtype: k.product(matrix, row, f32, dtype),
        )

    return work


def _rotated(source: str) -> Callable[[_Entry, Callable[[int], str]], _Worked]:
    def work(e: _Entry, text: Callable[[int], str]) -> _Worked:
        x = e.row(source)[e.head]
        half = len(x) // 2
        i = e.dim % half
        positions = np.array([e.position])
        cos, sin = (float(t[0, i]) for t in ops.rope_tables(e.model.config, positions, np.float64))
        a, b = float(x[i]), float(x[i + half])
        f32_tables = ops.rope_tables(e.model.config, positions)
        f32 = x.astype(np.float32)

        def kernel(k: Any, dtype: str) -> float:
            return float(k.turned(f32, *(t[0].astype(np.float32) for t in f32_tables), e.dim))

        theta = float(ops.rope_frequencies(e.model.config)[i])
        angle = f"{e.position}·{_n(theta)}"
        if e.dim < half:
            formula = f"x[{i}]·cos(pθ) − x[{i + half}]·sin(pθ)"
            filled = f"{_n(a)}·cos({angle}) − {_n(b)}·sin({angle})"
            return _Worked(formula, filled, a * cos - b * sin, kernel=kernel)
        formula = f"x[{i + half}]·cos(pθ) + x[{i}]·sin(pθ)"
        filled = f"{_n(b)}·cos({angle}) + {_n(a)}·sin({angle})"
        return _Worked(formula, filled, b * cos + a * sin, kernel=kernel)

    return work


def _score(e: _Entry, text: Callable[[int], str]) -> _Worked:
    config = e.model.config
    if e.key > e.position:
        return _Worked(
            "−∞ where the key comes after the query", f"−∞: {e.key} > {e.position}", -math.inf
        )
    q = e.row("attn.hook_rot_q")[e.head]
    kv_head = e.head // (config.n_heads // config.n_kv_heads)
    k = e.of("attn.hook_rot_k")[e.key, kv_head].astype(np.float64)
    filled, terms = _sum([f"d={d}" for d in range(len(q))], q, k)
    value = float(q @ k) / math.sqrt(config.head_dim)
    formula = f"Σ_d q[head {e.head}, d] · k[head {kv_head}, d] / √head_dim"
    return _Worked(
        formula,
        f"({filled}) / √{config.head_dim}",
        value,
        terms,
        lambda k, dtype: float(k.weight_of(*e.attended(), e.key, dtype)[0]),
    )


def _pattern(e: _Entry, text: Callable[[int], str]) -> _Worked:
    scores = e.of("attn.hook_attn_scores")[e.head, e.position].astype(np.float64)
    top = float(scores.max())
    weights = np.exp(scores - top)
    total = float(weights.sum())
    order = np.argsort(-weights, kind="stable")
    terms = [
        Term(f"{j} {text(e.tokens[j])!r}", f"exp({_n(scores[j])} − {_n(top)})", float(weights[j]))
        for j in order
        if weights[j] > 0
    ]
    shown = " + ".join(t.factors for t in terms[:SHOWN_TERMS])
    rest = f" + {len(terms) - SHOWN_TERMS} more" if len(terms) > SHOWN_TERMS else ""
    filled = f"exp({_n(scores[e.key])} − {_n(top)}) / ({shown}{rest})"
    value = float(weights[e.key]) / total

    def kernel(k: Any, dtype: str) -> float:
        hidden = e.key > e.position
        return 0.0 if hidden else float(k.weight_of(*e.attended(), e.key, dtype)[1])

    return _Worked("exp(score[key] − max) / Σⱼ exp(score[j] − max)", filled, value, terms, kernel)


def _mixed(e: _Entry, text: Callable[[int], str]) -> _Worked:
    config = e.model.config
    kv_head = e.head // (config.n_heads // config.n_kv_heads)
    pattern = e.of("attn.hook_pattern")[e.head, e.position, : e.position + 1].astype(np.float64)
    v = e.of("attn.hook_v")[: e.position + 1, kv_head, e.dim].astype(np.float64)
    labels = [f"{j} {text(e.tokens[j])!r}" for j in range(e.position + 1)]
    filled, terms = _sum(labels, pattern, v)
    formula = f"Σ_key pattern[head {e.head}, key] · v[key, head {kv_head}, {e.dim}]"
    return _Worked(
        formula,
        filled,
        float(pattern @ v),
        terms,
        lambda k, dtype: float(k.attention(*e.attended(), dtype)[2][e.dim]),
    )


def _gated(e: _Entry, text: Callable[[int], str]) -> _Worked:
    gate, up = float(e.row("mlp.hook_pre")[e.dim]), float(e.row("mlp.hook_pre_linear")[e.dim])
    silu = gate * (0.5 * math.tanh(0.5 * gate) + 0.5)
    return _Worked(
        "silu(gate) · up",
        f"silu({_n(gate)}) · {_n(up)}",
        silu * up,
        kernel=lambda k, dtype: k.gated(gate, up),
    )


FORMULAS: dict[str, Callable[[_Entry, Callable[[int], str]], _Worked]] = {
    "hook_embed": _embed,
    "hook_resid_pre": _resid_pre,
    "ln1.hook_normalized": _norm("hook_resid_pre"),
    "attn.hook_q": _projected("ln1.hook_normalized"),
    "attn.hook_k": _projected("ln1.hook_normalized"),
    "attn.hook_v": _projected("ln1.hook_normalized"),
    "attn.hook_rot_q": _rotated("attn.hook_q"),
    "attn.hook_rot_k": _rotated("attn.hook_k"),
    "attn.hook_attn_scores": _score,
    "attn.hook_pattern": _pattern,
    "attn.hook_z": _mixed,
    "hook_attn_out": _projected("attn.hook_z"),
    "hook_resid_mid": _added("hook_resid_pre", "hook_attn_out"),
    "ln2.hook_normalized": _norm("hook_resid_mid"),
    "mlp.hook_pre": _projected("ln2.hook_normalized"),
    "mlp.hook_pre_linear": _projected("ln2.hook_normalized"),
    "mlp.hook_post": _gated,
    "hook_mlp_out": _projected("mlp.hook_post"),
    "hook_resid_post": _added("hook_resid_mid", "hook_mlp_out"),
    "ln_final.hook_normalized": _norm(""),
}


def _sum(
    labels: Sequence[str], a: NDArray[np.float64], b: NDArray[np.float64]
) -> tuple[str, list[Term]]:
    products = a * b
    order = np.argsort(-np.abs(products), kind="stable")
    terms = [Term(labels[j], f"{_n(a[j])}·{_n(b[j])}", float(products[j])) for j in order]
    shown = " + ".join(t.factors for t in terms[:SHOWN_TERMS])
    rest = terms[SHOWN_TERMS:]
    if rest:
        shown += f" + … ({len(rest)} more, together {_n(sum(t.value for t in rest))})"
    return shown, terms


def _n(x: float) -> str:
    return f"{x + 0.0:.4g}".replace("-", "−")  # + 0.0: no minus before a zero


def _line(source: str) -> str:
    """The text of a line of model.py."""
    _, _, number = source.partition(":")
    path = model_module.__file__ or ""
    return linecache.getline(path, int(number)).strip() if number else ""
