"""Hook points: the named places in a forward pass where an array can be looked at or replaced.

`POINTS` has a row for each: its name, axes and meaning, the checkpoint's tensor, the operation that
has just been done, and the formula that explains one entry. A row that model.py doesn't call its
`tap` for, or a `tap` without a row, is an error at import. The names are TransformerLens's
(https://github.com/TransformerLensOrg/TransformerLens); the weights are raw, so the numbers are the
reference implementation's.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path

from tinyllm import model as model_module
from tinyllm.config import ModelConfig
from tinyllm.errors import HookError
from tinyllm.inside import formulas, formulas_attention, formulas_mlp
from tinyllm.inside.display import hook_points_html, hook_points_text
from tinyllm.inside.formulas import Formula

NamesFilter = str | Iterable[str] | Callable[[str], bool] | None

ROW, HIDDEN, SCORES = ("T", "dim"), ("T", "hidden_dim"), ("n_heads", "T", "S")
QUERIES, KEYS = ("T", "n_heads", "head_dim"), ("T", "n_kv_heads", "head_dim")
# Experts: all of them, or the k that a token has chosen, the one with the largest weight first.
EXPERTS, CHOSEN = ("T", "n_experts"), ("T", "k_experts", "expert_hidden_dim")
EXPERT_AXES = ("n_experts", "k_experts", "expert_hidden_dim")


@dataclass(frozen=True)
class Point:
    """One kind of hook point, the same in every layer.

    Attributes:
        suffix: of the name, behind "blocks.{i}.".
        axes: T computed now, S visible, a field of ModelConfig, or a length of its experts.
        meaning: what the array is.
        operation: what has been computed when the tap is called; `Timing` adds up by it.
        formula: works out one entry from what it was made of.
        tensor: the checkpoint's tensor that it was just computed with, if any.
        in_layers: False for those that a forward meets once.
    """

    suffix: str
    axes: tuple[str, ...]
    meaning: str
    operation: str
    formula: Formula
    tensor: str = ""
    in_layers: bool = True


POINTS = (
    Point("hook_embed", ROW, "rows of the embedding table (image rows in their place)",
          "embedding", formulas.embedded, "model.embed_tokens.weight", in_layers=False),
    Point("hook_resid_pre", ROW, "residual stream entering the layer",
          "residual", formulas.carried),
    Point("ln1.hook_normalized", ROW, "what attention reads: normed and weighted",
          "attention norm", formulas.normed("hook_resid_pre"), "input_layernorm.weight"),
    Point("attn.hook_q", QUERIES, "queries, before rotary",
          "q, k, v projections", formulas.projected, "self_attn.q_proj.weight"),
    Point("attn.hook_k", KEYS, "keys, before rotary",
          "q, k, v projections", formulas.projected, "self_attn.k_proj.weight"),
    Point("attn.hook_v", KEYS, "values",
          "q, k, v projections", formulas.projected, "self_attn.v_proj.weight"),
    Point("attn.q_norm.hook_normalized", QUERIES, "queries, normed and weighted",
          "q and k norms", formulas_attention.normed_heads, "self_attn.q_norm.weight"),
    Point("attn.k_norm.hook_normalized", KEYS, "keys, normed and weighted",
          "q and k norms", formulas_attention.normed_heads, "self_attn.k_norm.weight"),
    Point("attn.hook_rot_q", QUERIES, "queries turned to their position",
          "rotary", formulas_attention.rotated),
    Point("attn.hook_rot_k", KEYS, "keys turned to their position",
          "rotary", formulas_attention.rotated),
    Point("attn.hook_attn_scores", SCORES, "q·k / sqrt(head_dim), -inf where the mask hides",
          "cache and scores", formulas_attention.scored),
    Point("attn.hook_pattern", SCORES, "softmax of the scores: rows sum to 1",
          "softmax", formulas_attention.weighed),
    Point("attn.hook_z", QUERIES, "values mixed by the pattern",
          "mix values", formulas_attention.mixed),
    Point("hook_attn_out", ROW, "what attention adds",
          "output projection", formulas.put_out("attn.hook_z", "attention_output_norm"),
          "self_attn.o_proj.weight"),
    Point("hook_resid_mid", ROW, "residual stream between attention and MLP",
          "residual", formulas.added),
    Point("ln2.hook_normalized", ROW, "what the MLP reads: normed and weighted",
          "MLP norm", formulas.normed("hook_resid_mid"), "post_attention_layernorm.weight"),
    Point("mlp.hook_pre", HIDDEN, "gate, before its SiLU",
          "gate projection", formulas.projected, "mlp.gate_proj.weight"),
    Point("mlp.hook_pre_linear", HIDDEN, "up projection",
          "up projection", formulas.projected, "mlp.up_proj.weight"),
    Point("mlp.hook_post", HIDDEN, "silu(gate) · up",
          "SwiGLU", formulas_mlp.activated("mlp")),
    Point("mlp.hook_router", EXPERTS, "each expert's score",
          "router", formulas.projected, "mlp.router.weight"),
    Point("mlp.hook_expert_weights", EXPERTS, "weight of each expert's output, 0 if not chosen",
          "router", formulas_mlp.expert_weight),
    Point("mlp.experts.hook_pre", CHOSEN, "gates of the chosen experts",
          "experts", formulas_mlp.of_expert("gate_proj")),
    Point("mlp.experts.hook_pre_linear", CHOSEN, "up projections of the chosen experts",
          "experts", formulas_mlp.of_expert("up_proj")),
    Point("mlp.experts.hook_post", CHOSEN, "silu(gate) · up of the chosen experts",
          "experts", formulas_mlp.activated("mlp.experts")),
    Point("mlp.experts.hook_out", ("T", "k_experts", "dim"), "what the chosen experts give",
          "experts", formulas_mlp.of_expert("down_proj")),
    Point("hook_mlp_out", ROW, "what the MLP adds",
          "down projection", formulas_mlp.mlp_out, "mlp.down_proj.weight"),
    Point("hook_resid_post", ROW, "residual stream leaving the layer",
          "residual", formulas.added),
    Point("ln_final.hook_normalized", ROW, "what the unembedding reads",
          "final norm", formulas.normed(""), "model.norm.weight", in_layers=False),
)  # fmt: skip
EXPERT_POINTS = ("mlp.hook_router", "mlp.hook_expert_weights", "mlp.experts.")
QK_NORMS = ("attn.q_norm.hook_normalized", "attn.k_norm.hook_normalized")
EMBED, FINAL = "hook_embed", "ln_final.hook_normalized"


@dataclass(frozen=True)
class HookPoint:
    """A named place in the forward pass."""

    name: str
    axes: tuple[str, ...]
    meaning: str
    tensor: str  # full checkpoint name, "" where no tensor is applied
    source: str  # "model.py:123", where the tap is
    layer: int | None
    kind: Point

    def shape(self, config: ModelConfig, n_tokens: int, n_visible: int) -> tuple[int, ...]:
        """The array's shape when T tokens are computed and S positions are visible."""
        sizes = {"T": n_tokens, "S": n_visible, **_expert_lengths(config)}
        return tuple(sizes[a] if a in sizes else int(getattr(config, a)) for a in self.axes)

    @property
    def position_axis(self) -> int:
        """The axis that counts the tokens being computed."""
        return self.axes.index("T")


def _expert_lengths(config: ModelConfig) -> dict[str, int]:
    own = config.experts
    lengths = (0, 0, 0) if own is None else (own.n, own.k, own.hidden_dim)
    return dict(zip(EXPERT_AXES, lengths, strict=True))


@lru_cache(maxsize=8)
def hook_points(config: ModelConfig) -> tuple[HookPoint, ...]:
    """Every hook point that a model has, in the order in which a forward pass meets them.

    A family without a part (no rotary, one norm for both halves of a layer) has no point there.
    """
    lines = _tap_lines()

    def point(kind: Point, layer: int | None) -> HookPoint:
        name, tensor = kind.suffix, _tensor(config, layer, kind)
        if layer is not None:
            name = f"blocks.{layer}.{name}"
            tensor = tensor and f"model.layers.{layer}.{tensor}"
        source = lines.get(_as_written(kind.suffix), "model.py")
        return HookPoint(name, kind.axes, kind.meaning, tensor, source, layer, kind)

    inner = [kind for kind in POINTS if kind.in_layers]
    first, last = POINTS.index(inner[0]), POINTS.index(inner[-1])
    if config.qk_norm_last:  # behind the rotation
        norms = [kind for kind in inner if kind.suffix in QK_NORMS]
        inner = [kind for kind in inner if kind not in norms]
        turned = [kind.suffix for kind in inner].index("attn.hook_rot_k")
        inner[turned + 1 : turned + 1] = norms
    before = [point(kind, None) for kind in POINTS[:first]]
    in_layers = [
        point(kind, i)
        for i in range(config.n_layers)
        for kind in inner
        if _has(config, i, kind.suffix)
    ]
    return (*before, *in_layers, *[point(kind, None) for kind in POINTS[last + 1 :]])


def _has(config: ModelConfig, layer: int, suffix: str) -> bool:
    """Whether a layer has the part that a point is at."""
    own = config.layer(layer)
    match suffix:
        case "ln1.hook_normalized":
            return config.norm_before
        case "attn.q_norm.hook_normalized" | "attn.k_norm.hook_normalized":
            return config.qk_norm != "no"
        case "attn.hook_rot_q" | "attn.hook_rot_k":
            return own.rotary != "none" and not config.learned_positions
        case "hook_resid_mid":
            return config.parallel == "no"
        case "ln2.hook_normalized":
            return config.norm_before and config.parallel != "one norm"
        case "mlp.hook_pre" | "mlp.hook_post":
            return not own.experts
        case "mlp.hook_pre_linear":
            return config.gated and not own.experts
    return own.experts or not suffix.startswith(EXPERT_POINTS)


def _tensor(config: ModelConfig, layer: int | None, kind: Point) -> str:
    """The tensor that a point's array was just computed with, "" where there is none, or many."""
    if kind.suffix.endswith("hook_normalized") and config.norm == "plain":
        return ""
    if kind.suffix == "mlp.hook_pre" and not config.gated:
        return "mlp.up_proj.weight"
    many = layer is not None and config.layer(layer).experts
    return "" if many and kind.suffix == "hook_mlp_out" else kind.tensor


@lru_cache(maxsize=8)
def points_by_name(config: ModelConfig) -> dict[str, HookPoint]:
    """The hook points by name."""
    return {p.name: p for p in hook_points(config)}


@lru_cache(maxsize=1)
def _tap_lines() -> dict[str, str]:
    """Hook name as written in model.py → "model.py:LINE"."""
    path = Path(inspect.getsourcefile(model_module) or "model.py")
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:  # a frozen or zipped install has no source to point to
        return {}
    return {
        name: f"{path.name}:{number}"
        for number, line in enumerate(text.splitlines(), 1)
        for name in re.findall(r'tap\(\s*f?"(?:\{hook\}\.)?([\w.]+)"', line)
    }


def _as_written(suffix: str) -> str:
    """A suffix as model.py writes it, where `{hook}` ends in "attn" or "mlp" already."""
    return suffix.removeprefix("attn.").removeprefix("mlp.")


def check_points(points: Iterable[Point], tapped: Iterable[str]) -> None:
    """Raise RuntimeError unless the rows are the taps of model.py, each with a formula of its own.

    Args:
        points: the table.
        tapped: names as model.py writes them; none where its source isn't there.
    """
    rows = [point.suffix for point in points]
    written, tapped = {_as_written(suffix) for suffix in rows}, set(tapped)
    wrong = []
    if twice := {suffix for suffix in rows if rows.count(suffix) > 1}:
        wrong.append(f"two rows for {', '.join(sorted(twice))}")
    if tapped and (missing := tapped - written):
        wrong.append(f"no row for {', '.join(sorted(missing))}, which model.py taps")
    if tapped and (idle := written - tapped):
        wrong.append(f"a row for {', '.join(sorted(idle))}, which model.py doesn't tap")
    for point in points:
        sizes = {"T", "S", *EXPERT_AXES, *ModelConfig.__dataclass_fields__}
        if not set(point.axes) <= sizes or "T" not in point.axes:
            wrong.append(f"{point.suffix} has axes {point.axes}")
        if not callable(point.formula) or not point.operation or not point.meaning:
            wrong.append(f"{point.suffix} lacks a meaning, an operation or a formula")
    if wrong:
        raise RuntimeError(f"hook points (inside/points.py): {'; '.join(wrong)}")


def match_names(config: ModelConfig, names: NamesFilter) -> list[str]:
    """The hook points that a filter selects, in forward order.

    Args:
        names: a name or glob ("blocks.*.attn.hook_pattern"; * crosses dots), several of them, a
            function of the name, or None for all.

    Raises:
        HookError: a name or glob that fits no hook point; the message has the nearest ones.
    """
    known = [p.name for p in hook_points(config)]
    if names is None:
        return known
    if callable(names):
        chosen = {name for name in known if names(name)}
        if not chosen:
            raise HookError("the names filter selects no hook point; lm.hook_points() lists them")
    else:
        patterns = [names] if isinstance(names, str) else names
        if not isinstance(patterns, Iterable) or not all(isinstance(p, str) for p in patterns):
            raise HookError(
                "names are a hook point's name or glob, several of them, or a function of the "
                f"name, not {names!r}"
            )
        chosen = set()
        for pattern in patterns:
            found = [name for name in known if fnmatchcase(name, pattern)]
            if not found:
                raise HookError(_unknown(pattern, known, config))
            chosen.update(found)
    return [name for name in known if name in chosen]


def _unknown(pattern: str, known: list[str], config: ModelConfig) -> str:
    message = f"there is no hook point {pattern!r}"
    if (block := re.match(r"blocks\.(\d+)\.", pattern)) and int(block[1]) >= config.n_layers:
        return f"{message}: the model's layers are 0 to {config.n_layers - 1}"
    if pattern.split(".", 2)[-1] in {kind.suffix for kind in POINTS} and pattern.count(".") > 1:
        message = f"{message}: this {config.family} has no such part in that layer"
    near = difflib.get_close_matches(pattern, known, n=3, cutoff=0.5)
    # "hook_z" alone is nearer to "blocks.0.attn.hook_z" than letter counting thinks.
    tail = pattern.rsplit(".", 1)[-1].strip("*")
    near = ([k for k in known if tail and k.endswith(tail)][:2] + near)[:3]
    nearest = f"; the nearest are {', '.join(dict.fromkeys(near))}" if near else ""
    return f"{message}{nearest} (lm.hook_points() lists all)"


class HookPoints(tuple[HookPoint, ...]):
    """A table of hook points."""

    def __repr__(self) -> str:
        return hook_points_text(self)

    def _repr_html_(self) -> str:
        return hook_points_html(self)


check_points(POINTS, _tap_lines())
