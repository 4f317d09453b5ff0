"""The compiled path: a whole forward pass in one call, quantised, threaded, over a paged cache.

`CompiledModel` computes what `model.Model` computes (tests hold it to that), through the kernels in
`tinyllm.kernels`. For a given format its logits are the same bits with any number of threads, alone
or in any batch, and with a prompt cut into any chunks.
"""

from __future__ import annotations

import hashlib
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyllm.config import ModelConfig
from tinyllm.errors import ConfigError
from tinyllm.kernels.arrays import (
    MAX_LOGIT_ROWS,
    MAX_ROWS,
    ModelArrays,
    make_batch,
    make_own,
    make_scratch,
)
from tinyllm.kernels.cache import sources_hash
from tinyllm.kernels.expert_arrays import make_expert_arrays
from tinyllm.kernels.formats import format_of
from tinyllm.kernels.layout import GROUP, PAGE, TILE, check_arrays
from tinyllm.kernels.machine_code import Kernel, prepare
from tinyllm.kernels.packed import load_packed, pack
from tinyllm.kernels.packed_vectors import plain_mlps
from tinyllm.kernels.paged import PagedCache, PagePool
from tinyllm.kernels.parts import TENSORS, make_parts, rotation_tables
from tinyllm.kernels.processor import JIT
from tinyllm.kernels.regions import n_regions
from tinyllm.kernels.team import Team
from tinyllm.runner import Segment, images_between, weights_fingerprint

RUN = Kernel("tinyllm.kernels.forward", "run")  # all of a forward pass
# Parts that the kernels don't do.
READABLE_ALONE = {"images_see_ahead", "axes", "deep_rows"}

Array = NDArray[np.float32]


class CompiledModel:
    """A `Runner` over compiled kernels.

    Args:
        config: the model's shape; head_dim, dim and hidden_dim, an expert's too, must be multiples
            of 32. A longrope is run up to its original context, with the angles of short texts.
        weights: a checkpoint's tensors by their hub names, or the folder that holds them.
        dtype: the weights' format: "f32", "bf16", "q8" (8 bits), "q4" (4 bits) or "gguf" (a GGUF
            file's own blocks of several kinds); "q8a8" and "q4a8" have activations of 8 bits in
            place of 16.
        threads: how many threads share a forward pass.
        kv_dtype: "f32" or "f16"; by default f32 for f32 weights, f16 for the others.
        kv_cache_mb: megabytes of KV cache for all sequences together; touched only when used.

    Raises:
        ConfigError: a shape that the kernels don't do.
        WeightsError: as `load_weights`.
    """

    batch_invariant = True

    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, Array] | Path | str,
        dtype: str = "q8",
        threads: int = 2,
        kv_dtype: str | None = None,
        kv_cache_mb: int = 512,
    ) -> None:
        form = format_of(dtype)
        check_shape(config)
        config = config.for_context(config.plain_context)  # longrope: one table of angles for all
        if not JIT:
            threads = 1  # the kernels are plain Python then
        self.config = config
        self.dtype = dtype
        self.kv_dtype = kv_dtype or form.kv_dtype
        self.threads = threads
        # The kind of processor is no part of it, since all give the same bits.
        path = f"compiled-{dtype}-{self.kv_dtype}-{sources_hash()}-{'lanes' if JIT else 'loops'}"
        if isinstance(weights, (Path, str)):
            packed, digest, reading = load_packed(Path(weights), config, dtype)
            self._fingerprint = hashlib.sha256(f"{path} {digest}".encode()).hexdigest()[:12]
        else:
            packed, reading = pack(config, weights, dtype), None
            self._fingerprint = weights_fingerprint(config, weights, path)
        packed.setdefault("head", packed["embed"])
        tables = rotation_tables(config)
        parts = make_parts(config, packed, tables.pop("turns"))
        matrices: Any = {n: packed.get(n) for n in ModelArrays._fields[:9] if n not in TENSORS}
        self.arrays = ModelArrays(
            **matrices,
            **tables,
            n_layers=config.n_layers,
            n_heads=config.n_heads,
            norm_eps=config.norm_eps,
            score_scale=config.score_scale,
            parts=parts,
            experts=make_expert_arrays(config, packed),
        )

        page_nbytes = page_bytes(config, self.kv_dtype)
        pages = PagePool(config, self.kv_dtype, max(1, kv_cache_mb * 1_000_000 // page_nbytes))
        self.pool = pages
        self._batch = make_batch(config)
        self._counting = np.arange(max(config.max_seq_len, MAX_ROWS))
        self.scratch = make_scratch(config, dtype, threads)
        own = make_own(config, self.kv_dtype, threads)
        self._team = Team(threads, n_regions=n_regions(config.n_layers))
        self._lock = threading.Lock()

        args = (self.arrays, self.pool.arrays, self._batch, self.scratch, own)
        check_arrays(args, "kernel arguments")
        self._arguments = args
        fixed = (self._team.control, *args)
        prepare(f"{dtype}-{self.kv_dtype}", {RUN: (0, 0, *fixed)})
        if reading:
            reading.wait()  # it had the other core meanwhile
        self._team.start(RUN.bind((0, 0), fixed))  # the thread and the job
        weakref.finalize(self, self._team.close)

    @property
    def fingerprint(self) -> str:
        """Hash of the shape, the weights, their format and the kernels' own text."""
        return self._fingerprint

    @property
    def nbytes(self) -> int:
        """Bytes of weights that a decoded token reads."""
        read = [m for m in (self.arrays.head, *self.arrays[2:6]) if m is not None]
        whole: int = sum(array.nbytes for matrix in read for array in matrix)
        experts = self.arrays.experts
        if experts is None:
            return whole
        of_all: int = sum(array.nbytes for m in (experts.gate_up, experts.down) for array in m)
        routers: int = experts.router.values.nbytes
        return whole + routers + int(of_all * experts.k // experts.n)

    def new_cache(self, capacity: int | None = None) -> PagedCache:
        """An empty cache for one sequence; it draws pages as it grows, up to `capacity` tokens."""
        return PagedCache(self.pool, self.config.max_seq_len if capacity is None else capacity)

    def forward(
        self,
        tokens: Sequence[int] | NDArray[np.integer[Any]],
        cache: PagedCache,
        *,
        logits: Any = "last",
    ) -> Array:
        """One sequence's `forward_batch`: (T | 1 | 0, vocab_size)."""
        return self.forward_batch([Segment(np.asarray(tokens, np.int32), cache, logits)])[0]

    def forward_batch(self, segments: Sequence[Segment]) -> list[Array]:
        """Logits of each segment, (1 | T | 0, vocab_size) as it asked; its cache has grown by T.

        Long segments are cut into calls of at most 256 rows, and short ones share calls. Safe to
        call from several threads: one runs after the other.

        Raises:
            ValueError: a token id outside the vocabulary, or two segments with one cache.
            CacheFull: tokens that don't fit; no sequence has grown.
        """
        for segment in segments:
            self._check(segment)
        if len({id(s.cache) for s in segments}) < len(segments):
            raise ValueError("two segments of a batch share a cache; fork it first")
        with self._lock:
            for segment in segments:
                segment.cache.reserve(len(segment.tokens))
            return self._run(segments)

    def _check(self, segment: Segment) -> None:
        tokens = segment.tokens
        if tokens.ndim != 1:
            raise ValueError(f"tokens must be one-dimensional, not of shape {tokens.shape}")
        if not isinstance(segment.cache, PagedCache) or segment.cache.pool is not self.pool:
            raise ValueError("the cache isn't one of this model's: make it with new_cache()")
        ids = tokens.tolist()  # for a token or two, quicker to look through than an array
        if ids and not 0 <= min(ids) <= max(ids) < self.config.vocab_size:
            bad = next(i for i in ids if not 0 <= i < self.config.vocab_size)
            raise ValueError(f"token id {bad} is not in the vocabulary of {self.config.vocab_size}")
        if segment.image_positions is not None:
            rows, at = segment.image_rows, segment.image_positions
            if rows is None or rows.shape != (len(at), self.config.dim):
                raise ValueError(
                    f"image_rows must be ({len(at)}, {self.config.dim}), one row a position"
                )
            if at.size and not (at.min() >= 0 and at.max() < len(tokens)):
                raise ValueError("image_positions must lie within the segment's tokens")

    def _run(self, segments: Sequence[Segment]) -> list[Array]:
        results: list[list[Array]] = [[] for _ in segments]
        done = [0] * len(segments)
        while True:
            plan = plan_call(segments, done)
            if not plan:
                break
            wanted = self._fill(segments, done, plan)
            self._team.run()
            logits = self.scratch.logits[:, : self.config.vocab_size]
            row = 0
            for i, n in plan:
                done[i] += n
                segments[i].cache.advance(n)  # type: ignore[attr-defined]
                if wanted[i]:
                    results[i].append(logits[row : row + wanted[i]].copy())
                    row += wanted[i]
        empty = np.zeros((0, self.config.vocab_size), np.float32)
        return [
            rows[0] if len(rows) == 1 else np.concatenate(rows) if rows else empty
            for rows in results
        ]

    def _fill(
        self, segments: Sequence[Segment], done: list[int], plan: list[tuple[int, int]]
    ) -> dict[int, int]:
        """Write one call's batch; returns how many logit rows each segment gets."""
        b = self._batch
        n_rows = n_parts = n_logits = longest = 0
        wanted = {}
        for sequence, (i, n) in enumerate(plan):
            segment, start = segments[i], done[i]
            rows = slice(n_rows, n_rows + n)
            position = segment.cache.length
            pages = segment.cache.pages  # type: ignore[attr-defined]
            b.tokens[rows] = segment.tokens[start : start + n]
            b.position[rows] = self._counting[position : position + n]
            b.sequence[rows] = sequence
            b.pages[sequence, : len(pages)] = pages
            longest = max(longest, position + n)
            where, image = images_between(
                segment.image_positions, segment.image_rows, start, start + n
            )
            if where is not None:
                at = where + n_rows
                b.images[at] = image
                b.tokens[at] = -1 - at
            for first in range(0, n, TILE):
                b.part_first[n_parts] = n_rows + first
                b.part_rows[n_parts] = min(TILE, n - first)
                n_parts += 1
            is_last = start + n == len(segment.tokens)
            wanted[i] = n if segment.logits == "all" else int(segment.logits == "last" and is_last)
            n_rows += n
            if wanted[i]:
                last = slice(n_rows - wanted[i], n_rows)
                b.logit_rows[n_logits : n_logits + wanted[i]] = self._counting[last]
                n_logits += wanted[i]
        b.counts[:] = n_rows, n_parts, n_logits, longest
        return wanted


def plan_call(segments: Sequence[Segment], done: Sequence[int]) -> list[tuple[int, int]]:
    """The next call: (segment, tokens) pairs, in order, within a call's limits."""
    plan, rows, logit_rows = [], MAX_ROWS, MAX_LOGIT_ROWS
    for i, segment in enumerate(segments):
        n = min(len(segment.tokens) - done[i], rows)
        if segment.logits == "all":
            n = min(n, logit_rows)
            logit_rows -= n
        elif segment.logits == "last" and n == len(segment.tokens) - done[i] and n:
            if logit_rows == 0:
                n = 0
            else:
                logit_rows -= 1
        if n:
            plan.append((i, n))
            rows -= n
    return plan


def check_parts(config: ModelConfig) -> None:
    """Raise ConfigError for parts that the kernels don't do."""
    missing = [part for part in config.beyond_llama() if part in READABLE_ALONE]
    if config.qk_norm == "whole" and config.norm != "rms":
        missing.append("layer norms of whole queries and keys")
    elsewhere = config.parallel != "no" or config.norm_after or not config.gated
    if config.experts is not None and elsewhere:
        missing.append("experts in another place than behind attention, or without a gate")
    if missing:
        raise ConfigError(
            f"{config.family}: the compiled kernels don't do {', '.join(missing)} yet; use "
            'backend="reference" (dtype f32) for this model'
        )


def check_shape(config: ModelConfig) -> None:
    """Raise ConfigError for parts and shapes that the kernels don't do."""
    check_parts(config)
    widths = {name: getattr(config, name) for name in ("dim", "hidden_dim", "head_dim")}
    if config.experts is not None:
        widths["an expert's hidden_dim"] = config.experts.hidden_dim
        if not plain_mlps(config):
            del widths["hidden_dim"]
    for name, width in widths.items():
        if width % GROUP:
            raise ConfigError(
                f"{name} is {width}; the compiled kernels need a multiple of "
                f'{GROUP}: use backend="reference" for this model'
            )


def page_bytes(config: ModelConfig, kv_dtype: str) -> int:
    """Bytes of one page of the KV cache."""
    itemsize = 4 if kv_dtype == "f32" else 2
    return 2 * config.n_layers * config.n_kv_heads * config.head_dim * PAGE * itemsize
