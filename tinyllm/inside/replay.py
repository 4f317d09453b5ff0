"""Activations by name, and the replay of one token's forward with everything recorded.

The KV cache is append-only, so whatever is asked about a past step (attention, residual stream,
logit lens) is one traced forward of one token over the cache clipped to that step. Stepping
therefore costs nothing extra, and a replay says how far its logits are from the recorded ones.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyllm.config import ModelConfig
from tinyllm.errors import HookError
from tinyllm.inside.display import activations_html, lens_html, timing_html
from tinyllm.inside.hooks import WHOLE, Conditions, HookTap
from tinyllm.inside.many_rows import ManyRows
from tinyllm.inside.points import FINAL, NamesFilter, hook_points, match_names, points_by_name
from tinyllm.kv_cache import Cache, KVCache
from tinyllm.model import Model
from tinyllm.runner import Array
from tinyllm.sampler import best_ids, log_normalizer
from tinyllm.tokenizer import Tokenizer

LARGE_BYTES = 256 * 2**20  # an activation cache above this is warned about


class LargeActivations(ResourceWarning, UserWarning):
    """Recording all this will take a lot of memory."""


class ActivationCache(Mapping[str, Array]):
    """Recorded activations by hook-point name, in forward order.

    `acts["blocks.3.attn.hook_pattern"]`, or short `acts["pattern", 3]`. An unknown or unrecorded
    name is a KeyError that says which.
    """

    def __init__(self, config: ModelConfig, arrays: Mapping[str, Array]) -> None:
        self.config = config
        self._arrays = dict(arrays)

    def __getitem__(self, key: str | tuple[str, int]) -> Array:
        name = key if isinstance(key, str) else self._long_name(*key)
        if name in self._arrays:
            return self._arrays[name]
        try:
            match_names(self.config, name)
        except HookError as error:
            raise KeyError(str(error)) from None
        raise KeyError(f"{name} was not recorded: the names filter left it out")

    def _long_name(self, short: str, layer: int) -> str:
        layer = layer + self.config.n_layers if layer < 0 else layer
        for name in (f"blocks.{layer}.{part}hook_{short}" for part in ("", "attn.", "mlp.")):
            if name in self._arrays:
                return name
        return f"blocks.{layer}.{short}"

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(a.nbytes for a in self._arrays.values())

    def __repr__(self) -> str:
        return f"ActivationCache({len(self)} arrays, {self.nbytes / 1e6:.1f} MB)"

    def _repr_html_(self) -> str:
        return activations_html(self)


def activation_bytes(
    config: ModelConfig, names: NamesFilter, n_tokens: int, itemsize: int = 4
) -> int:
    """What recording these hook points over a whole prompt of `n_tokens` takes, in bytes."""
    wanted = set(match_names(config, names))
    shapes = (p.shape(config, n_tokens, n_tokens) for p in hook_points(config) if p.name in wanted)
    return itemsize * sum(int(np.prod(shape)) for shape in shapes)


def run_with_cache(
    model: Model,
    tokens: Sequence[int],
    names_filter: NamesFilter = None,
    *,
    under: Conditions = WHOLE,
    n_prompt: int | None = None,
    image_positions: NDArray[np.int64] | None = None,
    image_rows: NDArray[np.float32] | None = None,
) -> tuple[Array, ActivationCache]:
    """One forward over a whole prompt, recording what `names_filter` selects.

    Args:
        tokens: (T,) ids.
        names_filter: see `hooks.match_names`; None records everything.
        under: hooks and breakages; what is recorded is what the forward went on with.
        n_prompt: how many of the tokens are the prompt's, for the hooks' positions; default: all.

    Returns:
        Logits (T, vocab_size) and the activations; attention's are (n_heads, T, T).

    Raises:
        HookError: an unknown name.

    Warns:
        LargeActivations: more than 256 MB would be held; names filter what is kept.
    """
    wanted = set(match_names(model.config, names_filter))
    nbytes = activation_bytes(model.config, lambda n: n in wanted, len(tokens)) if wanted else 0
    if nbytes > LARGE_BYTES:
        warnings.warn(
            f"recording {len(wanted)} activations of {len(tokens)} tokens takes "
            f'{nbytes / 1e6:.0f} MB; select fewer, as in names_filter="*.attn.hook_pattern"',
            LargeActivations,
            stacklevel=3,
        )
    cache = model.new_cache(len(tokens))
    arrays: dict[str, Array] = {}

    def record(name: str, array: Array) -> None:
        if name in wanted:
            arrays[name] = array

    logits = model.forward(
        tokens,
        cache,
        tap=HookTap(model, cache, under, len(tokens) if n_prompt is None else n_prompt, record),
        image_positions=image_positions,
        image_rows=image_rows,
    )
    return logits, ActivationCache(model.config, arrays)


def clipped_cache(model: Model, cache: Cache, length: int, capacity: int) -> KVCache:
    """A contiguous copy of the first `length` tokens of any cache, paged or not."""
    context = cache.context if isinstance(cache, KVCache) else cache.capacity
    clipped = model.new_cache(capacity, context)
    for layer in range(model.config.n_layers):
        clipped.append(layer, cache.keys(layer)[:length], cache.values(layer)[:length])
    clipped.advance(length)
    if isinstance(cache, KVCache):
        clipped.place(cache.after[:length], 0)
    return clipped


@dataclass(frozen=True)
class LensRow:
    """What the residual stream at one depth would say if it were unembedded there."""

    layer: int  # 0 is the embedding; i is the stream that leaves layer i - 1
    name: str  # of the hook point
    top: list[tuple[int, str, float]]  # (token, text, probability), best first
    rank: int  # of the token asked about, from 0
    p: float  # its probability


class LogitLens:
    """Each layer's own residual stream through the final norm and the unembedding.

    The norm's scale is each stream's own (some lenses reuse the last layer's, or leave the norm
    out: those give other numbers). nostalgebraist 2020,
    https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru.

    Attributes:
        logits: (n_layers + 1, vocab_size) float32; the last row is the model's own logits.
        rows: the table, a row a depth.
        target: the token whose rank and probability each row has.
    """

    def __init__(
        self, logits: Array, names: Sequence[str], target: int, k: int, tokenizer: Tokenizer,
        begun: bytes = b"",
    ) -> None:  # fmt: skip
        self.logits, self.target, self.k = logits, target, k
        self.target_text = tokenizer.token_text(target, begun)
        self.rows = []
        for i, (name, row) in enumerate(zip(names, logits, strict=True)):
            norm = log_normalizer(row)
            best = [int(token) for token in best_ids(row, k)] if k > 0 else []
            p = {token: float(np.exp(float(row[token]) - norm)) for token in (*best, target)}
            top = [(token, tokenizer.token_text(token, begun), p[token]) for token in best]
            rank = int(np.count_nonzero(row > row[target]))
            self.rows.append(LensRow(i, name, top, rank, p[target]))

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[LensRow]:
        return iter(self.rows)

    def __getitem__(self, layer: int) -> LensRow:
        return self.rows[layer]

    def __repr__(self) -> str:
        best = [row.top[0][1] if row.top else "" for row in self.rows]
        first = next((r.layer for r in self.rows if r.rank == 0), None)
        told = "never first" if first is None else f"first at depth {first}"
        return f"LogitLens({len(self)} depths; {self.target_text!r} {told}; last: {best[-1]!r})"

    def _repr_html_(self) -> str:
        return lens_html(self)


@dataclass(frozen=True)
class Timing:
    """Where the time of one forward of the readable path went, in seconds."""

    seconds: Mapping[str, float]  # operation, summed over layers, in forward order
    by_layer: NDArray[np.float64]  # (n_layers,)

    @property
    def total(self) -> float:
        """Seconds of the whole forward, unembedding included."""
        return sum(self.seconds.values())

    def __repr__(self) -> str:
        slow = sorted(self.seconds.items(), key=lambda item: -item[1])[:3]
        parts = ", ".join(f"{name} {s * 1e3:.1f}" for name, s in slow)
        return f"Timing({self.total * 1e3:.1f} ms; {parts} …)"

    def _repr_html_(self) -> str:
        return timing_html(self)


@dataclass(frozen=True, eq=False)
class Replay:
    """One traced forward of one token: everything inside the step that followed it.

    Attributes:
        position: the token's; the logits are of position + 1.
        activations: every hook point, with T = 1.
        logits: (vocab_size,) float32, as replayed.
        timing: seconds an operation.
        key, value: (n_layers, n_kv_heads, head_dim): what the cache was given.
    """

    model: Model = field(repr=False)
    position: int
    activations: ActivationCache
    logits: NDArray[np.float32] = field(repr=False)
    timing: Timing
    key: Array = field(repr=False)
    value: Array = field(repr=False)

    def attention(self, layer: int, head: int) -> NDArray[np.float32]:
        """How the newest token spreads its attention, (position + 1,), summing to 1."""
        config = self.model.config
        check_index("layer", layer, config.n_layers)
        check_index("head", head, config.n_heads)
        row: NDArray[np.float32] = self.activations[attention_name(layer % config.n_layers)][
            head, 0
        ]
        return row

    @cached_property
    def hidden_states(self) -> Array:
        """The residual stream at every depth, (n_layers + 1, dim): the embedding, then what leaves
        each layer (the last one before the final norm)."""
        names = depth_names(self.model.config)
        return np.stack([self.activations[name][-1] for name in names])

    @cached_property
    def lens_logits(self) -> Array:
        """Every depth's stream through final norm and unembedding, (n_layers + 1, vocab_size)."""
        model = self.model
        normed = model.norm("model.norm", self.hidden_states)
        normed[-1] = self.activations[FINAL][-1]  # a hook there counts
        return ManyRows(model).unembed(normed)

    def logit_lens(
        self, k: int, target: int, tokenizer: Tokenizer, begun: bytes = b""
    ) -> LogitLens:
        """The lens as a table of the k likeliest tokens at each depth.

        `begun` are the bytes of a character that tokens before have begun; see `token_text`.
        """
        names = depth_names(self.model.config)
        return LogitLens(self.lens_logits, names, target, k, tokenizer, begun)


def depth_names(config: ModelConfig) -> list[str]:
    """The residual stream's hook points: the embedding, then what leaves each layer."""
    layers = range(config.n_layers)
    return ["blocks.0.hook_resid_pre", *(f"blocks.{i}.hook_resid_post" for i in layers)]


def lens_names(config: ModelConfig) -> list[str]:
    """What a replay must have recorded for its lens."""
    return [*depth_names(config), FINAL]


def attention_name(layer: int) -> str:
    """What a replay must have recorded for a layer's attention."""
    return f"blocks.{layer}.attn.hook_pattern"


def replay_token(
    model: Model,
    token: int,
    cache: KVCache,
    *,
    names: Collection[str] | None = None,
    under: Conditions = WHOLE,
    n_prompt: int = 0,
    image_row: NDArray[np.float32] | None = None,
) -> Replay:
    """Run one token over a cache of what came before it, recording what happens.

    Args:
        cache: holds the positions before the token's, with room for one more; it grows by one.
        names: hook points to record; None records all.
        under: the hooks and breakages that the step was decoded under.
        n_prompt: tokens of the prompt, for the hooks' positions.
        image_row: (dim,), if an image stands at the token's position.
    """
    recorder = Recorder(model, cache, names, under, n_prompt)
    logits = model.forward(
        [token],
        cache,
        tap=recorder.tap,
        image_positions=None if image_row is None else np.zeros(1, np.int64),
        image_rows=None if image_row is None else image_row[None],
    )
    return recorder.replay(logits[-1])


class Recorder:
    """What is written down while one token's forward runs; arguments as `replay_token`'s."""

    def __init__(
        self,
        model: Model,
        cache: KVCache,
        names: Collection[str] | None = None,
        under: Conditions = WHOLE,
        n_prompt: int = 0,
    ) -> None:
        self._model, self._cache, self._names = model, cache, names
        self._position = cache.length
        self._arrays: dict[str, Array] = {}
        self._stamps: list[tuple[str, float]] = []
        self.tap = HookTap(model, cache, under, n_prompt, self._record)
        self._start = time.perf_counter()

    def _record(self, name: str, array: Array) -> None:
        if self._names is None or name in self._names:
            self._arrays[name] = array
        self._stamps.append((name, time.perf_counter()))

    def replay(self, logits: NDArray[np.float32]) -> Replay:
        """All of it, when the forward has given these logits, (vocab_size,)."""
        config, cache = self._model.config, self._cache
        timing = _timing(config, self._start, self._stamps, time.perf_counter())
        layers = range(config.n_layers)
        return Replay(
            model=self._model,
            position=self._position,
            activations=ActivationCache(config, self._arrays),
            logits=logits,
            timing=timing,
            key=np.stack([cache.keys(layer)[-1] for layer in layers]),
            value=np.stack([cache.values(layer)[-1] for layer in layers]),
        )


def _timing(
    config: ModelConfig, start: float, stamps: Sequence[tuple[str, float]], end: float
) -> Timing:
    seconds: dict[str, float] = {}
    by_layer = np.zeros(config.n_layers)
    before, points = start, points_by_name(config)
    for name, now in stamps:
        point = points[name]
        operation = point.kind.operation
        seconds[operation] = seconds.get(operation, 0.0) + now - before
        if point.layer is not None:
            by_layer[point.layer] += now - before
        before = now
    seconds["unembedding"] = end - before
    return Timing(seconds, by_layer)


def token_id(tokenizer: Tokenizer, token: object, n_tokens: int) -> int:
    """The id of a token that is to be taken: an id, or text that is exactly one token.

    Raises:
        ValueError: the text isn't one token, or there is no such id among `n_tokens`.
        TypeError: neither a text nor an id.
    """
    if isinstance(token, str):
        ids = tokenizer.encode(token, allow_special=True)
        if len(ids) != 1:
            raise ValueError(
                f"{token!r} is {len(ids)} tokens, not one: {tokenizer.token_texts(ids)}"
            )
        return ids[0]
    if isinstance(token, bool) or not isinstance(token, (int, np.integer)):
        raise TypeError(f"a token is an id or a text, not {token!r}")
    if not 0 <= token < n_tokens:
        raise ValueError(f"token {token} is not in the vocabulary of {n_tokens}")
    return int(token)


def check_index(what: str, index: Any, size: int) -> None:
    """Raise ValueError unless -size <= index < size."""
    whole = isinstance(index, (int, np.integer)) and not isinstance(index, bool)
    if not whole or not -size <= index < size:
        raise ValueError(f"{what} must be from 0 to {size - 1}, not {index!r}")
