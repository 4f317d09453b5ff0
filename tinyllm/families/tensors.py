"""The tensors of a model: their names here, their shapes, and where a checkpoint keeps them.

Our names are those of Llama's checkpoints, and a few more for parts that Llama lacks. A family
whose checkpoint differs says so in a table, ours → theirs. Two kinds of difference are more than a
name: several matrices may be fused into one (`Taken`), and a norm may be stored less one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tinyllm.config import ModelConfig

Array = NDArray[Any]
Layout = Literal["rows", "columns", "rows or columns", "by head", "alternating columns"]

EMBED = "model.embed_tokens.weight"
POSITIONS = "model.embed_positions.weight"
FINAL_NORM = "model.norm"
HEAD = "lm_head"
LAYER = "model.layers.{}"


def in_layer(layer: int, stem: str) -> str:
    """`self_attn.q_proj.weight` of a layer, by its whole name."""
    return f"{LAYER.format(layer)}.{stem}"


@dataclass(frozen=True)
class Taken:
    """A part of a fused tensor.

    Attributes:
        name: the checkpoint's tensor, without .weight or .bias.
        part: which of the matrices in it, from 0.
        layout: "rows": one below the other, (a + b + c, in); "columns": the same transposed,
            (in, a + b + c); "rows or columns": "rows" where the shape allows it, as the reference
            decides; "by head": q, k and v of one head, then of the next; "alternating columns":
            (in, 2 · out), a gate's and an up's in turn.
        fused: the tensors of ours that it holds, in order.
    """

    name: str
    part: int = 0
    layout: Layout = "rows"
    fused: tuple[str, ...] = ()


QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
GATE_UP = ("mlp.gate_proj", "mlp.up_proj")


def split(name: str, ours: tuple[str, ...], layout: Layout = "rows") -> dict[str, Taken]:
    """A table's rows for one fused tensor: ours → the part of it."""
    return {stem: Taken(name, part, layout, ours) for part, stem in enumerate(ours)}


@dataclass(frozen=True)
class Names:
    """Where a family's checkpoint keeps each tensor; what isn't said is named as here.

    Attributes:
        layer: what stands before a layer's tensors, {} for its number.
        top: embed, positions, norm and head.
        tensors: in a layer: ours → theirs, a part of theirs, or "{}" for one tensor a head.
        prefixes: what may stand before every name, or be left out.
        norms_less_one: norms' weights are stored as w - 1.
        ignored: buffers that can be recomputed.
    """

    layer: str = LAYER
    top: Mapping[str, str] = field(default_factory=dict)
    tensors: Mapping[str, str | Taken] = field(default_factory=dict)
    prefixes: tuple[str, ...] = ()
    norms_less_one: bool = False
    ignored: str = r"\.(rotary_emb\.inv_freq|self_attn\.masked_bias)$"


LLAMA_NAMES = Names()


@dataclass(frozen=True)
class Source:
    """Where one tensor of ours is: the checkpoint's names, and what to do with them."""

    names: tuple[str, ...]  # several are stacked
    either: bool = False  # several are other names of one
    taken: Taken | None = None
    expert: int | None = None
    plus_one: bool = False


def expected(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of a model with its shape; matrices are (out_features, in_features)."""
    dim, biased = config.dim, config.biases
    shapes: dict[str, tuple[int, ...]] = {EMBED: (config.vocab_size, dim)}
    if config.learned_positions:
        shapes[POSITIONS] = (config.max_seq_len, dim)

    def norm(name: str) -> dict[str, tuple[int, ...]]:
        if config.norm == "plain":
            return {}
        ends = ("weight", "bias") if "norm" in biased else ("weight",)
        return {f"{name}.{end}": (dim,) for end in ends}

    for i in range(config.n_layers):
        for stem, shape in _layer(config, i).items():
            shapes |= norm(in_layer(i, stem)) if shape is None else {in_layer(i, stem): shape}
    shapes |= norm(FINAL_NORM)
    if not config.tie_embeddings:
        shapes[f"{HEAD}.weight"] = (config.vocab_size, dim)
    if "head" in biased:
        shapes[f"{HEAD}.bias"] = (config.vocab_size,)
    return shapes


def _layer(config: ModelConfig, i: int) -> dict[str, tuple[int, ...] | None]:
    """A layer's tensors in the order of the forward; None for a norm over the stream."""
    dim, hidden, head_dim = config.dim, config.hidden_dim, config.head_dim
    n_q, n_kv = config.n_heads, config.n_kv_heads
    found: dict[str, tuple[int, ...] | None] = {}

    def linear(stem: str, rows: int, columns: int, bias: str) -> None:
        found[f"{stem}.weight"] = (rows, columns)
        if bias in config.biases:
            found[f"{stem}.bias"] = (rows,)

    if config.norm_before:
        found["input_layernorm"] = None
    linear("self_attn.q_proj", n_q * head_dim, dim, "q")
    linear("self_attn.k_proj", n_kv * head_dim, dim, "k")
    linear("self_attn.v_proj", n_kv * head_dim, dim, "v")
    for stem, n in (("self_attn.q_norm", n_q), ("self_attn.k_norm", n_kv)):
        if config.qk_norm != "no":
            shape = {"each head": (head_dim,), "every head its own": (n, head_dim),
                     "whole": (n * head_dim,)}[config.qk_norm]  # fmt: skip
            found[f"{stem}.weight"] = shape
            if "qk_norm" in config.biases:
                found[f"{stem}.bias"] = shape
    if config.sinks:
        found["self_attn.sinks"] = (n_q,)
    linear("self_attn.o_proj", dim, n_q * head_dim, "o")
    if config.norm_after:
        found["attention_output_norm"] = None
    if config.norm_before and config.parallel != "one norm":
        found["post_attention_layernorm"] = None
    experts = config.experts if config.layer(i).experts else None
    if experts:
        linear("mlp.router", experts.n, dim, "router")
    for e in range(experts.n if experts else 1):
        mlp = f"mlp.experts.{e}" if experts else "mlp"
        width = experts.hidden_dim if experts else hidden
        if config.gated:
            linear(f"{mlp}.gate_proj", width, dim, "gate")
        linear(f"{mlp}.up_proj", width, dim, "up")
        linear(f"{mlp}.down_proj", dim, width, "down")
    if config.activation == "xielu":
        found |= {"mlp.act.alpha_p": (1,), "mlp.act.alpha_n": (1,)}
    if config.norm_after:
        found["mlp_output_norm"] = None
    return found


def source(ours: str, names: Names, config: ModelConfig) -> Source:
    """Where a family's checkpoint keeps a tensor of ours."""
    stem, dot, suffix = ours.rpartition(".")
    if suffix not in ("weight", "bias"):
        stem, dot, suffix = ours, "", ""
    is_norm = stem.endswith(("norm", "layernorm"))
    plus_one = names.norms_less_one and is_norm and suffix == "weight"
    in_a_layer = re.fullmatch(r"model\.layers\.(\d+)\.(.*)", stem)
    if in_a_layer is None:
        top = {"model.embed_tokens": "embed", "model.embed_positions": "positions",
               "model.norm": "norm", "lm_head": "head"}[stem]  # fmt: skip
        known = tuple(f"{name}{dot}{suffix}" for name in names.top.get(top, stem).split("|"))
        return Source(known, either=len(known) > 1, plus_one=plus_one)

    prefix = f"{names.layer.format(in_a_layer[1])}."
    stem = in_a_layer[2]
    expert = re.fullmatch(r"(.*\.experts\.)(\d+)(\..*)", stem)
    if expert:
        stem = f"{expert[1]}N{expert[3]}"
    theirs = names.tensors.get(f"{stem}{dot}{suffix}") or names.tensors.get(stem) or stem
    whole = theirs.name if isinstance(theirs, Taken) else theirs
    if "N" in whole.split(".") and expert:
        whole = re.sub(r"\bN\b", expert[2], whole)
        number = None
    else:
        number = int(expert[2]) if expert else None
    end = "" if whole.endswith("!") else f"{dot}{suffix}"
    full = f"{prefix}{whole.removesuffix('!')}{end}"
    if "{}" in full:  # one tensor a head
        n = config.n_heads if "q_norm" in stem else config.n_kv_heads
        return Source(tuple(full.format(h) for h in range(n)), plus_one=plus_one)
    taken = theirs if isinstance(theirs, Taken) else None
    return Source((full,), taken=taken, expert=number, plus_one=plus_one)


def take(array: Array, found: Source, ours: str, config: ModelConfig) -> Array:
    """Our tensor out of what the checkpoint has; a view where that is possible."""
    if found.expert is not None:
        array = array[found.expert]
    taken = found.taken
    if taken is None:
        return array
    is_matrix = array.ndim == 2
    width = config.hidden_dim
    if config.experts is not None and ".experts." in ours:
        width = config.experts.hidden_dim
    outputs = len(taken.fused) * width or config.dim  # gates and ups, or what is added to x
    turned = taken.layout == "rows or columns" and len(array) != outputs
    if (turned or taken.layout in ("columns", "alternating columns")) and is_matrix:
        array = array.T  # (out, in)
    if taken.layout == "alternating columns":
        return array[taken.part :: len(taken.fused)]
    if taken.layout == "by head":
        n = len(taken.fused)
        split = array.reshape(config.n_heads, n, config.head_dim, *array.shape[1:])
        return split[:, taken.part].reshape(-1, *array.shape[1:])
    if len(taken.fused) < 2:
        return array
    q, kv = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    rows = {"self_attn.q_proj": q, "self_attn.k_proj": kv, "self_attn.v_proj": kv}
    counts = [rows.get(stem, width) for stem in taken.fused]
    first = sum(counts[: taken.part])
    if len(array) != sum(counts):
        return array  # of a wrong shape, which the caller says by name
    return array[first : first + counts[taken.part]]


def plus_one(array: Array) -> Array:
    """A norm's weight that is stored as w - 1."""
    return (np.float32(1.0) + array).astype(np.float32)
