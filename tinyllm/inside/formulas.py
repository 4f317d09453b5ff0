"""How each number of a forward pass is made: one function a formula, worked out in float64.

A formula takes an `Entry` (one number of one activation, with whatever it may be made of) and gives
it in symbols, with the values put in, as a result, and as its terms. A term that is a number of the
forward pass itself says which, so that it can be explained next.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyllm.config import ModelConfig
from tinyllm.kernels import reference as ops
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
    kernel: Callable[[Any, str], float] | None = None  # of the module one_entry, and a format


@dataclass(frozen=True)
class Entry:
    """One number of the newest token's forward, with what its formula may need.

    Attributes:
        config, weights: the model's.
        activations: by hook point, of the newest position alone (T = 1).
        keys, values: of one layer and all positions, (S, n_kv_heads, head_dim): the cache's.
        tokens: up to the newest.
        texts: all tokens, for display.
        layer: None at a point outside of layers.
        tensor: the checkpoint's tensor at this point.
        per_head: whether the array has an axis of heads.
    """

    config: ModelConfig
    weights: Mapping[str, Array]
    activations: Mapping[str, Array]
    keys: Callable[[int], Array]
    values: Callable[[int], Array]
    tokens: Sequence[int]
    texts: Sequence[str]
    layer: int | None
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

    def attended(self) -> tuple[Array, Array, Array]:
        """The query, (head_dim,), and all keys and values it sees, (S, head_dim)."""
        assert self.layer is not None
        return (
            self.activations[self.name("attn.hook_rot_q")][-1, self.head],
            self.keys(self.layer)[:, self.kv_head],
            self.values(self.layer)[:, self.kv_head],
        )

    def at_key(self, position: int) -> str:
        """A position with its token, as a label."""
        return f"{position} {self.texts[position]!r}"


Formula = Callable[[Entry], Worked]


def embedded(e: Entry) -> Worked:
    """A row of the embedding table."""
    value, table = float(e.row("hook_embed")[e.dim]), e.weight()
    token = e.tokens[-1]
    if value != table[token, e.dim]:  # an image's row, or a hook's
        return Worked("a row in place of E[token]", short(value), value)

    def kernel(k: Any, dtype: str) -> float:
        return float(k.embedding(table, token, e.dim, dtype))

    return Worked("E[token, dim]", f"E[{token}, {e.dim}]", value, kernel=kernel)


def carried(e: Entry) -> Worked:
    """What the layer before has left."""
    before = f"blocks.{e.layer - 1}.hook_resid_post" if e.layer else "hook_embed"
    value = float(e.activations[before][-1, e.dim])
    term = Term(before, short(value), value, {"name": before, "dim": e.dim})
    return Worked(before, short(value), value, [term])


def added(old: str, new: str) -> Formula:
    """The residual stream, and what a part adds to it."""

    def work(e: Entry) -> Worked:
        a, b = float(e.row(old)[e.dim]), float(e.row(new)[e.dim])
        names = [suffix.removeprefix("hook_") for suffix in (old, new)]
        terms = [
            Term(name, short(x), x, {"name": e.name(suffix), "dim": e.dim})
            for name, suffix, x in zip(names, (old, new), (a, b), strict=True)
        ]
        terms.sort(key=lambda term: -abs(term.value))
        filled = f"{short(a)} + {short(b)}"
        return Worked(" + ".join(names), filled, a + b, terms, lambda k, dtype: k.added(a, b))

    return work


def normed(stream: str) -> Formula:
    """RMS norm of the residual stream; "" is what the last layer leaves."""

    def work(e: Entry) -> Worked:
        name = e.name(stream)
        if e.layer is None:
            name = f"blocks.{e.config.n_layers - 1}.hook_resid_post"
        x = e.activations[name][-1].astype(np.float64)
        eps, weight = e.config.norm_eps, e.weight()
        w, mean_square = float(weight[e.dim]), float((x**2).mean())
        value = float(x[e.dim]) / math.sqrt(mean_square + eps) * w
        filled = f"{short(x[e.dim])} / √({short(mean_square)} + {eps:g}) · {short(w)}"
        opens = {"name": name, "dim": e.dim}
        return Worked(
            "x / √(mean(x²) + eps) · w",
            filled,
            value,
            [Term(f"x[{e.dim}]", filled, value, opens)],
            lambda k, dtype: k.norm(x.astype(np.float32), weight, eps, e.dim),
        )

    return work


def projected(source: str) -> Formula:
    """A row of a weight matrix times a vector."""

    def work(e: Entry) -> Worked:
        by_head = e.row(source)
        x = by_head.reshape(-1)
        row = e.dim + (e.head * e.config.head_dim if e.per_head else 0)
        matrix = e.weight()
        w = matrix[row].astype(np.float64)
        opens = [indexed(e.name(source), by_head.shape, j) for j in range(len(x))]
        filled, terms = weighted_sum([f"j={j}" for j in range(len(x))], x, w, opens)
        return Worked(
            f"Σⱼ x[j] · {e.tensor.split('.')[-2]}[{row}, j]",
            filled,
            float(x @ w),
            terms,
            lambda k, dtype: k.product(matrix, row, x.astype(np.float32), dtype),
        )

    return work


def rotated(source: str) -> Formula:
    """One element of a head, turned with its partner by the position's angle."""

    def work(e: Entry) -> Worked:
        x = e.row(source)[e.head]
        half = len(x) // 2
        i = e.dim % half
        positions = np.array([e.position])
        cos, sin = (float(t[0, i]) for t in ops.rope_tables(e.config, positions, np.float64))
        tables = [t[0].astype(np.float32) for t in ops.rope_tables(e.config, positions)]
        theta = float(ops.rope_frequencies(e.config)[i])
        angle = f"{e.position}·{short(theta)}"
        own, partner = e.dim, (i + half if e.dim < half else i)
        sign, symbol = (-1.0, "−") if e.dim < half else (1.0, "+")
        terms = [
            Term(f"x[{j}]", f"{short(x[j])}·{turn}({angle})", value, {**where, "dim": j})
            for where in [{"name": e.name(source), "head": e.head}]
            for j, turn, value in ((own, "cos", float(x[own]) * cos),
                                   (partner, "sin", sign * float(x[partner]) * sin))
        ]  # fmt: skip
        return Worked(
            f"x[{own}]·cos(pθ) {symbol} x[{partner}]·sin(pθ)",
            f"{terms[0].factors} {symbol} {terms[1].factors}",
            terms[0].value + terms[1].value,
            sorted(terms, key=lambda term: -abs(term.value)),
            lambda k, dtype: float(k.turned(x.astype(np.float32), *tables, e.dim)),
        )

    return work


def scored(e: Entry) -> Worked:
    """A query's product with one key."""
    q, keys, _ = (array.astype(np.float64) for array in e.attended())
    key = keys[e.key]
    opens = [{"name": e.name("attn.hook_rot_q"), "head": e.head, "dim": d} for d in range(len(q))]
    filled, terms = weighted_sum([f"d={d}" for d in range(len(q))], q, key, opens)
    return Worked(
        f"Σ_d q[head {e.head}, d] · k[head {e.kv_head}, d] / √head_dim",
        f"({filled}) / √{e.config.head_dim}",
        float(q @ key) / math.sqrt(e.config.head_dim),
        terms,
        lambda k, dtype: float(k.weight_of(*e.attended(), e.key, dtype)[0]),
    )


def weighed(e: Entry) -> Worked:
    """A key's share of a query's attention."""
    scores = e.over_keys("attn.hook_attn_scores")
    top = float(scores.max())
    opens = [{"name": e.name("attn.hook_attn_scores"), "head": e.head, "key": j}
             for j in range(len(scores))]  # fmt: skip
    filled, value, terms = softmax_share(scores, e.key, [e.at_key(j) for j in range(len(scores))],
                                         opens)  # fmt: skip
    return Worked(
        "exp(score[key] − max) / Σⱼ exp(score[j] − max)",
        f"exp({short(scores[e.key])} − {short(top)}) / ({filled})",
        value,
        terms,
        lambda k, dtype: float(k.weight_of(*e.attended(), e.key, dtype)[1]),
    )


def mixed(e: Entry) -> Worked:
    """Values, each by its key's share."""
    assert e.layer is not None
    pattern = e.over_keys("attn.hook_pattern")
    v = e.values(e.layer)[:, e.kv_head, e.dim].astype(np.float64)
    labels = [e.at_key(j) for j in range(len(pattern))]
    opens = [{"name": e.name("attn.hook_pattern"), "head": e.head, "key": j}
             for j in range(len(pattern))]  # fmt: skip
    filled, terms = weighted_sum(labels, pattern, v, opens)
    return Worked(
        f"Σ_key pattern[head {e.head}, key] · v[key, head {e.kv_head}, {e.dim}]",
        filled,
        float(pattern @ v),
        terms,
        lambda k, dtype: float(k.attention(*e.attended(), dtype)[2][e.dim]),
    )


def gated(e: Entry) -> Worked:
    """SwiGLU: one number, let through by another."""
    gate, up = float(e.row("mlp.hook_pre")[e.dim]), float(e.row("mlp.hook_pre_linear")[e.dim])
    silu = gate * (0.5 * math.tanh(0.5 * gate) + 0.5)
    terms = [
        Term(
            "silu(gate)",
            f"silu({short(gate)})",
            silu,
            {"name": e.name("mlp.hook_pre"), "dim": e.dim},
        ),
        Term("up", short(up), up, {"name": e.name("mlp.hook_pre_linear"), "dim": e.dim}),
    ]
    return Worked(
        "silu(gate) · up",
        f"silu({short(gate)}) · {short(up)}",
        silu * up,
        sorted(terms, key=lambda term: -abs(term.value)),
        lambda k, dtype: k.gated(gate, up),
    )


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
