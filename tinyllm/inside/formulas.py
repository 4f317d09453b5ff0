"""How each number of a forward pass is made: one function a formula, worked out in float64.

A formula takes an `Entry` (one number of one activation, with whatever it may be made of) and gives
it in symbols, with the values put in, as a result, and as its terms. A term that is a number of the
forward pass itself says which, so that it can be explained next. What a family changes is read off
its configuration, as model.py does it. Here are the residual stream, norms and products;
`formulas_attention` and `formulas_mlp` have the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyllm.config import ModelConfig
from tinyllm.runner import Array

SHOWN_TERMS = 4


@dataclass(frozen=True)
class Term:
    """One part of a formula: an addend of a sum, or a factor of a product.

    Attributes:
        label: what it is of.
        factors: as it stands in the formula, with its values.
        value: the part's.
        opens: the arguments of the `explain` that says where its first factor comes from: name, and
            head, key or dim. Empty where that is a weight, or lies in another position's forward.
    """

    label: str
    factors: str
    value: float
    opens: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Worked:
    """A formula with one entry's values in it."""

    formula: str
    filled: str
    value: float
    terms: list[Term] = field(default_factory=list)
    # Of the module one_entry, and a format; None where a family has more than the Llama's formula.
    kernel: Callable[[Any, str], float] | None = None
    tensor: str = ""  # in place of the point's own


@dataclass(frozen=True)
class Entry:
    """One number of the newest token's forward, with what its formula may need.

    Attributes:
        config, weights: the model's.
        activations: by hook point, of the newest position alone (T = 1).
        keys, values: of one layer and all positions, (S, n_kv_heads, head_dim): the cache's.
        context: how long the sequence may become: longrope's angles hang on it.
        place: the newest token's rotary position: its own, unless images stand before it.
        tokens: up to the newest.
        texts: all tokens, for display.
        layer: None at a point outside of layers.
        suffix: the point's name within the layer.
        tensor: the checkpoint's tensor at this point.
        per_head: whether the array has an axis of heads.
        head: which; or, within experts, which of the token's chosen, the best first.
    """

    config: ModelConfig
    weights: Mapping[str, Array]
    activations: Mapping[str, Array]
    keys: Callable[[int], Array]
    values: Callable[[int], Array]
    context: int
    place: int
    tokens: Sequence[int]
    texts: Sequence[str]
    layer: int | None
    suffix: str
    tensor: str
    per_head: bool
    head: int
    key: int
    dim: int

    @property
    def position(self) -> int:
        """Of the newest token."""
        return len(self.tokens) - 1

    @property
    def kv_head(self) -> int:
        """The key and value head that this query head shares."""
        return self.head // (self.config.n_heads // self.config.n_kv_heads)

    def name(self, suffix: str) -> str:
        """An activation of the same layer."""
        return suffix if self.layer is None else f"blocks.{self.layer}.{suffix}"

    def in_layer(self, stem: str) -> str:
        """A tensor of the same layer, without its end."""
        return f"model.layers.{self.layer}.{stem}"

    def row(self, suffix: str) -> NDArray[np.float64]:
        """One that counts positions first, at the newest: (…)."""
        row: NDArray[np.float64] = self.activations[self.name(suffix)][-1].astype(np.float64)
        return row

    def over_keys(self, suffix: str) -> NDArray[np.float64]:
        """Scores or pattern of the entry's head, (S,)."""
        row: NDArray[np.float64] = self.activations[self.name(suffix)][self.head, -1]
        return row.astype(np.float64)

    def weight(self) -> Array:
        """The checkpoint's tensor at this point."""
        return self.weights[self.tensor]

    def bias(self, stem: str) -> Array | None:
        """A product's or norm's bias, where the family has one."""
        return self.weights.get(f"{stem}.bias")

    @property
    def read_by_attention(self) -> str:
        """What queries, keys and values are made of."""
        return "ln1.hook_normalized" if self.config.norm_before else "hook_resid_pre"

    @property
    def read_by_mlp(self) -> str:
        """What the MLP reads: normed by its own norm, by attention's, or not."""
        if self.config.parallel == "one norm" or not self.config.norm_before:
            serial = self.config.parallel == "no"
            return "hook_resid_mid" if serial else self.read_by_attention
        return "ln2.hook_normalized"

    def at_key(self, position: int) -> str:
        """A position with its token, as a label."""
        return f"{position} {self.texts[position]!r}"


Formula = Callable[[Entry], Worked]


def embedded(e: Entry) -> Worked:
    """A row of the embedding table, times the family's multiplier."""
    array, table = e.activations["hook_embed"][-1], e.weight()
    token, value, factor = e.tokens[-1], float(array[e.dim]), e.config.embedding_scale
    own = table[token, e.dim]
    if value != float(own if factor == 1.0 else own * array.dtype.type(factor)):
        return Worked("a row in place of E[token]", short(value), value)  # an image's, or a hook's
    if factor != 1.0:
        filled = f"E[{token}, {e.dim}] · {short(factor)}"
        return Worked("E[token, dim] · embedding scale", filled, float(own) * factor)

    def kernel(k: Any, dtype: str) -> float:
        return float(k.embedding(table, token, e.dim, dtype))

    return Worked("E[token, dim]", f"E[{token}, {e.dim}]", value, kernel=kernel)


def carried(e: Entry) -> Worked:
    """What the layer before has left; into the first one, learned positions are added."""
    before = f"blocks.{e.layer - 1}.hook_resid_post" if e.layer else "hook_embed"
    value = float(e.activations[before][-1, e.dim])
    terms = [Term(before, short(value), value, {"name": before, "dim": e.dim})]
    own = float(e.row("hook_resid_pre")[e.dim])
    if e.layer and e.layer <= e.config.deep_rows and own != value:  # an image's row
        terms.append(Term("the image's row for this layer", short(own - value), own - value))
        terms.sort(key=lambda term: -abs(term.value))
        filled = f"{short(value)} + {short(own - value)}"
        return Worked(f"{before} + the image's row for this layer", filled, own, terms)
    if e.layer or not e.config.learned_positions:
        return Worked(before, short(value), value, terms)
    place = float(e.weights["model.embed_positions.weight"][e.position, e.dim])
    terms.append(Term("position", short(place), place))
    filled = f"{short(value)} + P[{e.position}, {e.dim}]"
    terms.sort(key=lambda term: -abs(term.value))
    return Worked("embed + P[position, dim]", filled, value + place, terms)


def added(e: Entry) -> Worked:
    """The residual stream, and what a part adds to it; two parts where they are side by side."""
    if e.suffix == "hook_resid_mid":
        suffixes = ["hook_resid_pre", "hook_attn_out"]
    elif e.config.parallel == "no":
        suffixes = ["hook_resid_mid", "hook_mlp_out"]
    else:
        suffixes = ["hook_resid_pre", "hook_attn_out", "hook_mlp_out"]
    parts = [float(e.row(suffix)[e.dim]) for suffix in suffixes]
    names = [suffix.removeprefix("hook_") for suffix in suffixes]
    terms = [
        Term(name, short(x), x, {"name": e.name(suffix), "dim": e.dim})
        for name, suffix, x in zip(names, suffixes, parts, strict=True)
    ]
    terms.sort(key=lambda term: -abs(term.value))
    filled = " + ".join(short(x) for x in parts)
    kernel = (lambda k, dtype: k.added(*parts)) if len(parts) == 2 else None
    return Worked(" + ".join(names), filled, sum(parts), terms, kernel)


def normed(stream: str) -> Formula:
    """The family's norm of the residual stream; "" is what the last layer leaves."""

    def work(e: Entry) -> Worked:
        if e.layer is None:
            name, stem = f"blocks.{e.config.n_layers - 1}.hook_resid_post", "model.norm"
        else:
            side_by_side = e.config.parallel != "no" and stream == "hook_resid_mid"
            name = e.name("hook_resid_pre" if side_by_side else stream)
            stem = e.in_layer("input_layernorm")
            if e.suffix == "ln2.hook_normalized":
                stem = e.in_layer("post_attention_layernorm")
        x = e.activations[name][-1].astype(np.float64)
        weight, eps = e.weights.get(f"{stem}.weight"), e.config.norm_eps
        norm = Norm(e.config, weight, e.bias(stem))
        value, filled = norm.of(x, e.dim)
        opens = {"name": name, "dim": e.dim}
        kernel = None
        if e.config.norm == "rms" and weight is not None:
            kernel = lambda k, dtype: k.norm(x.astype(np.float32), weight, eps, e.dim)  # noqa: E731
        term = Term(f"x[{e.dim}]", filled, value, opens)
        return Worked(norm.formula, filled, value, [term], kernel)

    return work


@dataclass(frozen=True)
class Norm:
    """A family's norm, for one entry at a time."""

    config: ModelConfig
    weight: Array | None
    bias: Array | None

    @property
    def formula(self) -> str:
        """In symbols."""
        rms = self.config.norm == "rms"
        told = "x / √(mean(x²) + eps)" if rms else "(x − mean(x)) / √(var(x) + eps)"
        return told + (" · w" if self.weight is not None else "") + (
            " + b" if self.bias is not None else "")  # fmt: skip

    def of(self, x: NDArray[np.float64], i: int) -> tuple[float, str]:
        """Entry i of the norm of x, (n,), and its formula with the values put in."""
        mean = 0.0 if self.config.norm == "rms" else float(x.mean())
        square, eps = float(((x - mean) ** 2).mean()), self.config.norm_eps
        value = (float(x[i]) - mean) / math.sqrt(square + eps)
        top = short(x[i]) if self.config.norm == "rms" else f"({short(x[i])} − {short(mean)})"
        filled = f"{top} / √({short(square)} + {eps:g})"
        if self.weight is not None:
            w = float(self.weight.reshape(-1)[i])
            value, filled = value * w, f"{filled} · {short(w)}"
        if self.bias is not None:
            b = float(self.bias.reshape(-1)[i])
            value, filled = value + b, f"{filled} + {short(b)}"
        return value, filled


def projected(e: Entry) -> Worked:
    """A row of a weight matrix times what attention or the MLP reads."""
    source = e.read_by_attention if e.suffix.startswith("attn.") else e.read_by_mlp
    x = e.row(source)
    row = e.dim + (e.head * e.config.head_dim if e.per_head else 0)
    opens = [indexed(e.name(source), x.shape, j) for j in range(len(x))]
    return product(e, e.tensor.removesuffix(".weight"), row, x, opens)


def product(
    e: Entry,
    stem: str,
    row: int,
    x: NDArray[np.float64],
    opens: Sequence[Mapping[str, Any]],
) -> Worked:
    """A row of a weight matrix times a vector, plus the row's bias."""
    matrix, bias = e.weights[f"{stem}.weight"], e.bias(stem)
    w = matrix[row].astype(np.float64)
    filled, terms = weighted_sum([f"j={j}" for j in range(len(x))], x, w, opens)
    formula, value = f"Σⱼ x[j] · {stem.split('.')[-1]}[{row}, j]", float(x @ w)
    if bias is None:
        kernel = lambda k, dtype: k.product(matrix, row, x.astype(np.float32), dtype)  # noqa: E731
        return Worked(formula, filled, value, terms, kernel, f"{stem}.weight")
    b = float(bias[row])
    terms = sorted([*terms, Term("bias", short(b), b)], key=lambda term: -abs(term.value))
    return Worked(f"{formula} + bias[{row}]", f"{filled} + {short(b)}", value + b, terms,
                  tensor=f"{stem}.weight")  # fmt: skip


def put_out(source: str, norm: str) -> Formula:
    """The product that goes back to the stream; normed after it and scaled in some families."""

    def work(e: Entry) -> Worked:
        by_head = e.row(source)
        x = by_head.reshape(-1)
        opens = [indexed(e.name(source), by_head.shape, j) for j in range(len(x))]
        stem = e.tensor.removesuffix(".weight")
        plain = product(e, stem, e.dim, x, opens)
        if not e.config.norm_after and e.config.residual_scale == 1.0:
            return plain
        y = e.weights[f"{stem}.weight"].astype(np.float64) @ x
        if (bias := e.bias(stem)) is not None:
            y = y + bias
        return back_in_stream(e, plain, y, norm)

    return work


def back_in_stream(e: Entry, plain: Worked, y: NDArray[np.float64], norm: str) -> Worked:
    """What a sublayer gives, y (dim,), as the family adds it: normed, and times its multiplier.

    The terms stay those of the entry's own sum.
    """
    value, formula, filled = plain.value, plain.formula, plain.filled
    if e.config.norm_after:
        stem = e.in_layer(norm)
        own = Norm(e.config, e.weights.get(f"{stem}.weight"), e.bias(stem))
        value, filled = own.of(y, e.dim)
        formula = f"y = {formula};  {own.formula.replace('x', 'y')}"
        filled = f"y = {plain.filled};  {filled}"
    if (scale := e.config.residual_scale) != 1.0:
        value, formula = value * scale, f"({formula}) · residual scale"
        filled = f"({filled}) · {short(scale)}"
    return Worked(formula, filled, value, plain.terms, tensor=plain.tensor)


# What the formulas share ------------------------------------------------------------------------


def indexed(name: str, shape: tuple[int, ...], j: int) -> dict[str, Any]:
    """Which entry of an activation (heads, head_dim) or (dim,) the j-th number of its row is."""
    if len(shape) == 1:
        return {"name": name, "dim": j}
    return {"name": name, "head": j // shape[1], "dim": j % shape[1]}


def weighted_sum(
    labels: Sequence[str],
    a: NDArray[np.float64],
    b: NDArray[np.float64],
    opens: Sequence[Mapping[str, Any]],
) -> tuple[str, list[Term]]:
    """Σ a·b with its largest terms written out, and all terms, the largest first."""
    products = a * b
    order = np.argsort(-np.abs(products), kind="stable")
    terms = [
        Term(labels[j], f"{short(a[j])}·{short(b[j])}", float(products[j]), opens[j]) for j in order
    ]
    shown = " + ".join(t.factors for t in terms[:SHOWN_TERMS])
    rest = terms[SHOWN_TERMS:]
    if rest:
        shown += f" + … ({len(rest)} more, together {short(sum(t.value for t in rest))})"
    return shown, terms


def softmax_share(
    x: NDArray[np.float64], index: int, labels: Sequence[str], opens: Sequence[Mapping[str, Any]]
) -> tuple[str, float, list[Term]]:
    """The sum below a softmax with its largest terms written out, one entry's share, the terms."""
    top = float(x.max())
    weights = np.exp(x - top)
    order = np.argsort(-weights, kind="stable")
    terms = [
        Term(labels[j], f"exp({short(x[j])} − {short(top)})", float(weights[j]), opens[j])
        for j in order
        if weights[j] > 0
    ]
    shown = " + ".join(t.factors for t in terms[:SHOWN_TERMS])
    rest = f" + {len(terms) - SHOWN_TERMS} more" if len(terms) > SHOWN_TERMS else ""
    return shown + rest, float(weights[index]) / float(weights.sum()), terms


def short(x: float) -> str:
    """A number in four digits."""
    return f"{x + 0.0:.4g}".replace("-", "−")  # + 0.0: no minus before a zero
