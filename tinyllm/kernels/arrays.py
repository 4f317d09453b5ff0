"""The arrays of a forward pass by name: weights, cache, what to compute, room to work in."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinyllm.config import ModelConfig
from tinyllm.kernels.expert_arrays import make_expert_scratch
from tinyllm.kernels.formats import FORMATS
from tinyllm.kernels.layout import BLOCK, CHUNK, GROUP, PAGE, TILE, Softmax
from tinyllm.kernels.parts import FamilyParts

Array = NDArray[Any]

MAX_ROWS = 256  # tokens in one call of the kernels: their activations fit the second-level cache
MAX_LOGIT_ROWS = 64  # logits of one call
SPREAD_ROWS = 32  # up to this many rows a long context is spread over the threads
OUT_BLOCKS = 3  # blocks of 16 outputs in a chunk of the output and down projections


class ModelArrays(NamedTuple):
    """Weights in the kernels' layout; the first six in whichever format, see `layout.py`."""

    embed: Any  # one matrix, (vocab_size, dim)
    head: Any  # one matrix, (vocab_size, dim); the embedding again where they are tied
    qkv: Any  # a matrix a layer: the rows of Q, then of K, then of V
    out: Any  # a matrix a layer, (dim, n_heads · head_dim)
    gate_up: Any  # a matrix a layer: 16 rows of gate, the same 16 of up, and so on
    down: Any  # a matrix a layer, (dim, hidden_dim); both None where all layers have experts
    attn_norm: Any  # (n_layers, dim) float32; None where the stream itself is read
    mlp_norm: Any  # (n_layers, dim)
    final_norm: Array  # (1, dim)
    cos: Array  # (max_seq_len, head_dim / 2) float32
    sin: Array
    n_layers: int
    n_heads: int
    norm_eps: float
    score_scale: float  # what q·k is multiplied by
    parts: FamilyParts  # beyond a Llama's
    experts: Any  # `ExpertArrays`, or None


class Pages(NamedTuple):
    """The KV cache's pages, float32 or float16 (as uint16).

    A head's keys and values of a page lie side by side: one long run of memory is read half as
    quick again as two short ones.
    """

    cells: Array  # (n_pages, n_layers, n_kv_heads, 2, 64 · head_dim), see `layout.py`


class Batch(NamedTuple):
    """What to compute. R rows (tokens) in order; those of one sequence lie together."""

    counts: Array  # (4,) int64: rows, parts, rows with logits, longest context
    tokens: Array  # (R,) int32; negative: row -1 - token of `images` instead
    images: Array  # (R, dim) float32
    position: Array  # (R,) int64
    sequence: Array  # (R,) int32, a row of `pages`
    part_first: Array  # (R,) int32: a part is up to 8 rows of one sequence, for attention
    part_rows: Array  # (R,) int32
    logit_rows: Array  # (R,) int32: rows whose logits are wanted
    pages: Array  # (sequences, pages) int32


class Call(NamedTuple):
    """What one call computes, and what follows from it for every region."""

    n_rows: int
    n_parts: int
    n_logits: int
    n_tiles: int  # of 8 rows
    n_bands: int  # of 8 tiles: matrix products are cut into bands of rows, too
    alone: bool  # few rows: every thread norms them for itself, into a tile of its own
    normed: int  # the first tile of normed rows that this thread reads
    n_spans: int  # chunks of keys in the longest context, where they are spread over the threads
    n_heads: int
    n_kv_heads: int
    head_dim: int


class Scratch(NamedTuple):
    """What all threads write on the way."""

    x: Array  # (R, dim) float32, the residual stream
    added: Array  # (R, dim): what a sublayer adds, where that is normed first; else one row
    whole: (
        Array  # (R, queries and keys): all of a row, where they are normed together; else one row
    )
    normed: Any  # activations of width dim: shared tiles, then one private tile a thread
    mixed: Any  # of width n_heads · head_dim: what attention gives
    hidden: Any  # of width hidden_dim: the MLP between its matrices
    q: Array  # (n_kv_heads · R · group + 8, head_dim): the query heads of a key head lie together
    logits: Array  # (logit rows, padded vocab_size)
    spread: Softmax  # (SPREAD_ROWS · n_heads · chunks,): attention over each chunk of a context
    experts: Any  # `ExpertScratch`, or None


class Own(NamedTuple):
    """What one thread writes for itself. In `run`'s argument each has a first axis of threads."""

    row: Array  # (max(dim, …),)
    out: Array  # (8, outputs of a chunk)
    half: Array  # (head_dim,) of the cache's dtype
    visible: Array  # (8 · group + 8,) int64: how many keys each query sees …
    hidden: Array  # … but for so many of the first, which are beyond its window
    scores: Array  # these three: see AttendScratch
    sums: Array
    shrink: Array
    chunk: Softmax  # (8 · group + 8,): attention over one chunk of keys …
    so_far: Softmax  # … and over all chunks so far


def make_batch(config: ModelConfig) -> Batch:
    """An empty batch of the largest size."""
    rows = (MAX_ROWS,)
    return Batch(
        counts=np.zeros(4, np.int64),
        tokens=np.zeros(rows, np.int32),
        images=np.zeros((MAX_ROWS, config.dim), np.float32),
        position=np.zeros(rows, np.int64),
        sequence=np.zeros(rows, np.int32),
        part_first=np.zeros(rows, np.int32),
        part_rows=np.zeros(rows, np.int32),
        logit_rows=np.zeros(rows, np.int32),
        pages=np.zeros((MAX_ROWS, -(-config.max_seq_len // PAGE)), np.int32),
    )


def make_scratch(config: ModelConfig, dtype: str, threads: int) -> Scratch:
    """Room for all that a call writes on its way."""
    head_dim, empty_rows = config.head_dim, FORMATS[dtype].empty_rows
    n_chunks = -(-config.max_seq_len // CHUNK)
    whole, n_turned = config.qk_norm == "whole", config.n_heads + config.n_kv_heads
    return Scratch(
        x=np.zeros((MAX_ROWS, config.dim), np.float32),
        added=np.zeros((MAX_ROWS if config.norm_after else 1, config.dim), np.float32),
        whole=np.zeros((MAX_ROWS if whole else 1, n_turned * head_dim), np.float32),
        normed=empty_rows(MAX_ROWS + TILE * threads, config.dim),
        mixed=empty_rows(MAX_ROWS, config.n_heads * head_dim),
        hidden=empty_rows(MAX_ROWS, config.hidden_dim),
        q=np.zeros((config.n_heads * MAX_ROWS + TILE, head_dim), np.float32),
        logits=np.zeros((MAX_LOGIT_ROWS, -(-config.vocab_size // BLOCK) * BLOCK), np.float32),
        spread=make_softmax((SPREAD_ROWS * config.n_heads * n_chunks,), head_dim),
        experts=make_expert_scratch(config, empty_rows, MAX_ROWS, threads),
    )


def make_own(config: ModelConfig, kv_dtype: str, threads: int) -> Own:
    """Each thread's own room, first axis threads."""
    head_dim, group = config.head_dim, config.n_heads // config.n_kv_heads
    queries = TILE * group + TILE  # of one part and key head, with slack for whole bundles

    def zeros(*shape: int) -> Array:
        return np.zeros((threads, *shape), np.float32)

    return Own(
        row=zeros(max(config.dim, group * head_dim, GROUP)),
        out=zeros(TILE, max(head_dim, 4 * BLOCK, OUT_BLOCKS * BLOCK)),
        half=np.zeros((threads, head_dim), np.float32 if kv_dtype == "f32" else np.uint16),
        visible=np.zeros((threads, queries), np.int64),
        hidden=np.zeros((threads, queries), np.int64),
        scores=zeros(TILE, PAGE),
        sums=zeros(TILE, BLOCK),
        shrink=zeros(TILE),
        chunk=make_softmax((threads, queries), head_dim),
        so_far=make_softmax((threads, queries), head_dim),
    )


def make_softmax(shape: tuple[int, ...], head_dim: int) -> Softmax:
    """Zeros for so many queries."""
    top, total = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    return Softmax(top, total, np.zeros((*shape, head_dim), np.float32))
