"""What a model is made of, as a table; and what differs between two, in words and numbers."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from html import escape
from typing import Protocol

from tinyllm.config import ModelConfig
from tinyllm.families import BY_TYPE
from tinyllm.families.parts import Layer, RopeScaling
from tinyllm.families.tensors import expected


class HasConfig(Protocol):
    """A loaded model, or anything else that has a shape."""

    config: ModelConfig


@dataclass(frozen=True)
class Architecture:
    """One model's parts, in the order in which a token meets them.

    Attributes:
        parts: what it is → how this model does it.
        n_parameters: numbers in its tensors; a tied head isn't counted twice.
        n_active: of them, those that one token is multiplied with (all but unchosen experts').
        kv_bytes: bytes of KV cache a token takes in float16.
    """

    name: str
    parts: dict[str, str]
    n_parameters: int
    n_active: int
    kv_bytes: int

    @classmethod
    def of(cls, config: ModelConfig, name: str = "") -> Architecture:
        """The parts of a shape."""
        sizes = {name: math.prod(shape) for name, shape in expected(config).items()}
        total = sum(sizes.values())
        in_experts = sum(size for name, size in sizes.items() if ".experts." in name)
        active = total
        if config.experts:
            active -= in_experts - in_experts * config.experts.k // config.experts.n
        kv = 2 * 2 * config.n_layers * config.n_kv_heads * config.head_dim
        parts = describe(config)
        parts["parameters"] = f"{total:,}" + (f", {active:,} a token" if active < total else "")
        parts["KV cache"] = f"{kv:,} bytes a token in float16"
        return cls(name or parts["family"], parts, total, active, kv)

    def __repr__(self) -> str:
        width = max(map(len, self.parts))
        rows = [f"  {part:<{width}}  {how}" for part, how in self.parts.items()]
        return "\n".join([self.name, *rows])

    def _repr_html_(self) -> str:
        return _html(["part", self.name], [[*row] for row in self.parts.items()])


@dataclass(frozen=True)
class Comparison:
    """What differs between two models: part → (the one, the other)."""

    names: tuple[str, str]
    differing: dict[str, tuple[str, str]]
    same: tuple[str, ...]

    def __repr__(self) -> str:
        if not self.differing:
            return f"{self.names[0]} and {self.names[1]} are of the same architecture"
        lines = [f"{self.names[0]} | {self.names[1]}"]
        for part, (one, other) in self.differing.items():
            lines += [f"  {part}", f"    {one}", f"    {other}"]
        return "\n".join([*lines, f"  the same: {', '.join(self.same) or 'nothing'}"])

    def _repr_html_(self) -> str:
        rows = [[part, *both] for part, both in self.differing.items()]
        return _html(["part", *self.names], rows)


def compare(a: HasConfig | ModelConfig, b: HasConfig | ModelConfig) -> Comparison:
    """What differs between two models (loaded ones, or their configs), part by part."""
    one, other = (_architecture(model) for model in (a, b))
    differing = {}
    for part in dict.fromkeys([*one.parts, *other.parts]):
        both = one.parts.get(part, "—"), other.parts.get(part, "—")
        if both[0] != both[1]:
            differing[part] = both
    same = tuple(part for part in one.parts if part not in differing)
    return Comparison((one.name, other.name), differing, same)


def _architecture(model: HasConfig | ModelConfig) -> Architecture:
    if isinstance(model, ModelConfig):
        return Architecture.of(model)
    config = getattr(model, "config", None)
    if not isinstance(config, ModelConfig):
        raise TypeError(f"compare takes loaded models or their configs, not {type(model).__name__}")
    return Architecture.of(config, getattr(model, "name", ""))


def describe(config: ModelConfig) -> dict[str, str]:
    """Each part in words."""
    known = BY_TYPE.get(config.family)
    parts = {
        "family": known.name if known else config.family,
        "described in": known.paper if known else "",
        "embeddings": f"{config.vocab_size:,} × {config.dim:,}"
        + (f", times {config.embedding_scale:g}" if config.embedding_scale != 1 else ""),
        "positions": _positions(config),
        "layers": _layers(config),
        "norms": _norms(config),
        "attention": f"{config.n_heads} query heads on {config.n_kv_heads} key/value heads of "
        f"{config.head_dim}",
        "queries and keys": _queries(config),
        "scores": _scores(config),
        "MLP": _mlp(config),
        "residual stream": _residual(config),
        "logits": _logits(config),
        "biases": ", ".join(config.biases) or "none",
        "context": f"{config.max_seq_len:,} tokens",
    }
    return {part: how for part, how in parts.items() if how}


def _positions(config: ModelConfig) -> str:
    if config.learned_positions:
        return "learned, added to the embeddings"
    pairs = "neighbours" if config.rope_pairs == "neighbours" else "halves of a head"
    some = "" if config.rotary_dim is None else f", {config.rotary_dim} of {config.head_dim}"
    text = f"rotary, {pairs} turn together{some}; base {config.rope_theta:,.0f}"
    text += _scaling(config.rope_scaling)
    if config.local_rope_theta is not None:
        text += f"; in windowed layers base {config.local_rope_theta:,.0f}"
        text += _scaling(config.local_rope_scaling)
    return text


def _scaling(scaling: RopeScaling | None) -> str:
    return "" if scaling is None else f", {scaling.kind} × {scaling.factor:g}"


def _layers(config: ModelConfig) -> str:
    kinds = Counter(config.layer(i) for i in range(config.n_layers))
    if set(kinds) == {Layer()}:
        return str(config.n_layers)

    def words(layer: Layer) -> str:
        seen = "all" if layer.window is None else f"the last {layer.window:,}"
        turned = "" if layer.rotary != "none" or config.learned_positions else ", no positions"
        return f"see {seen}{turned}{', experts' if layer.experts else ''}"

    return f"{config.n_layers}: " + "; ".join(f"{n} {words(kind)}" for kind, n in kinds.items())


def _norms(config: ModelConfig) -> str:
    kind = {"rms": "RMS", "layer": "layer norm", "plain": "layer norm without weights"}
    before, after = config.norm_before, config.norm_after
    where = "before and after" if before and after else "after" if after else "before"
    return f"{kind[config.norm]} {where} each sublayer, eps {config.norm_eps:g}"


def _queries(config: ModelConfig) -> str:
    norms = {"no": "", "each head": "each head normed", "whole": "normed as a whole",
             "every head its own": "each head normed by a weight of its own"}  # fmt: skip
    words = [norms[config.qk_norm]]
    if config.qk_norm_last:
        words.append("after the rotation")
    if config.qkv_clip is not None:
        words.append(f"cut at ±{config.qkv_clip:g}, values too")
    if config.temperature is not None:
        words.append(f"queries grow by {config.temperature.beta:g} · log of their position")
    return ", ".join(word for word in words if word) or "as projected"


def _scores(config: ModelConfig) -> str:
    words = [f"q·k × {config.score_scale:.4g}"]
    if config.score_cap is not None:
        words.append(f"capped at ±{config.score_cap:g}")
    if config.sinks:
        words.append("a sink in every head")
    return ", ".join(words)


def _mlp(config: ModelConfig) -> str:
    gated = {"silu": "SwiGLU", "gelu_tanh": "GeGLU"}.get(config.activation, config.activation)
    one = gated if config.gated else f"{config.activation}, no gate"
    if config.act_limit is not None:
        one += f", clamped at {config.act_limit:g}"
    if config.experts is None:
        return f"{one}, {config.hidden_dim:,} wide"
    e = config.experts
    return f"{e.k} of {e.n} experts, {one}, {e.hidden_dim:,} wide, {e.weights} weights"


def _residual(config: ModelConfig) -> str:
    words = {
        "no": "attention, then MLP",
        "one norm": "attention and MLP side by side, one norm",
        "two norms": "attention and MLP side by side, two norms",
    }[config.parallel]
    times = f", what they add × {config.residual_scale:g}" if config.residual_scale != 1 else ""
    return words + times


def _logits(config: ModelConfig) -> str:
    words = ["by the embeddings" if config.tie_embeddings else "by a matrix of their own"]
    if config.logit_scale != 1:
        words.append(f"× {config.logit_scale:.4g}")
    if config.logit_cap is not None:
        words.append(f"capped at ±{config.logit_cap:g}")
    return ", ".join(words)


def _html(head: list[str], rows: list[list[str]]) -> str:
    def row(cells: list[str], tag: str) -> str:
        left = f'<{tag} style="text-align: left">'  # words; Jupyter would hang them right
        return "<tr>" + "".join(f"{left}{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(row(cells, "td") for cells in rows)
    return f"<table><thead>{row(head, 'th')}</thead><tbody>{body}</tbody></table>"
