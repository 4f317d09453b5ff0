"""A whole image encoder as one compiled function: one call from Python an image.

All threads of a team walk through it together, region by region (`threads.py`), as in `forward.py`:

    patches · [ norm · qkv · attention · output + residual
                norm · fc1, activation · fc2 + residual ] × n_layers · norm

Attention is made of the same matrix kernel as everything else: a head's keys are laid out as a
matrix whose outputs are scores, and its values as one that mixes them. Widths are padded with zeros
to what the kernels take at a time.
"""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from tinyllm.kernels.build import kernel, part
from tinyllm.kernels.dispatch import matmul, put
from tinyllm.kernels.encoder_arrays import (
    ATTEND,
    FC1,
    FC2,
    GELU,
    GELU_TANH,
    KEEP,
    LAYER_REGIONS,
    NORM1,
    NORM2,
    OUT,
    OUT_BLOCKS,
    QKV,
    QUICK_GELU,
    EncoderArrays,
    EncoderInput,
    EncoderScratch,
)
from tinyllm.kernels.layout import BLOCK, F32, TILE, F32Rows
from tinyllm.kernels.threads import Worker, begin, chunks, finish, next_job
from tinyllm.kernels.vit import activate, norm_row, softmax_row

Array = NDArray[Any]

TILES = 6  # tiles of 8 rows that a chunk of a matrix product goes through


@part
def region(layer: int, part: int) -> int:
    """A region of a layer by its number."""
    return 3 + LAYER_REGIONS * layer + part


@kernel
def run(
    thread: int, last: int, control: Array, w: EncoderArrays, todo: EncoderInput, s: EncoderScratch
) -> int:  # fmt: skip
    """One thread's part of the work, as `threads.Work` has it: all regions of a job, in order."""
    row, out, lanes = s.row[thread], s.out[thread], s.lanes[thread]
    n_heads, head_dim, dim = w.n_heads, w.head_dim, s.x.shape[1]
    hidden_dim, n_threads = w.fc1_bias.shape[1], s.row.shape[0]
    head_blocks = s.values.values.shape[1]

    while True:
        job = next_job(control, thread, last)
        if job == 0:
            return last
        n_rows, n_layers, final = todo.counts
        if not begin(control, thread, job):
            continue  # the counts may be the next job's already
        worker = Worker(control, thread, n_threads, job)
        n_tiles = (n_rows + TILE - 1) // TILE
        n_bands = (n_tiles + TILES - 1) // TILES

        for tile in chunks(worker, 0, n_tiles):
            for r in range(tile * TILE, min(n_rows, (tile + 1) * TILE)):
                for k in range(dim):
                    s.x[r, k] = todo.start[r, k]
        n_patches = n_rows - w.n_class
        n_units, n_patch_bands = _units(w.patches, n_patches)
        for chunk in chunks(worker, 1, n_units * n_patch_bands):
            add_product(w.patches, 0, todo.squares, chunk % n_units, chunk // n_units, out,
                        s.x, w.n_class, n_patches)  # fmt: skip
        for tile in chunks(worker, 2, n_tiles):
            for r in range(tile * TILE, min(n_rows, (tile + 1) * TILE)):
                if w.pre_norm.shape[0] > 0:
                    norm_row(s.x[r], w.pre_norm[0], w.eps, s.x[r], lanes)
                keep_row(todo, 0, s.x, r)

        for layer in range(n_layers):
            for tile in chunks(worker, region(layer, NORM1), n_tiles):
                norm_tile(s.x, w.norm1[layer], w.eps, n_rows, tile, row, lanes,
                          s.normed)  # fmt: skip

            n_units = 3 * n_heads
            for chunk in chunks(worker, region(layer, QKV), n_units * n_bands):
                unit, band = chunk % n_units, chunk // n_units
                for tile in range(band * TILES, min(n_tiles, (band + 1) * TILES)):
                    n = min(TILE, n_rows - tile * TILE)
                    matmul(w.qkv, layer, unit * head_blocks, head_blocks, s.normed, tile, n, out,
                           0, 0)  # fmt: skip
                    for lane in range(n):
                        for k in range(head_dim):
                            out[lane, k] += w.qkv_bias[layer, unit * head_blocks * BLOCK + k]
                    place(unit // n_heads, unit % n_heads, tile, n, head_dim, out, s)

            all_tiles = s.q.values.shape[0] // n_heads
            key_blocks = (n_rows + BLOCK - 1) // BLOCK
            for chunk in chunks(worker, region(layer, ATTEND), n_heads * n_tiles):
                head, tile = chunk // n_tiles, chunk % n_tiles
                n = min(TILE, n_rows - tile * TILE)
                matmul(s.keys, head, 0, key_blocks, s.q, head * all_tiles + tile, n, out, 0, 0)
                for lane in range(n):
                    softmax_row(out[lane], n_rows, lanes)
                    put(s.weights, thread, lane, 0, out[lane], 0, n_rows)
                matmul(s.values, head, 0, head_blocks, s.weights, thread, n, out, 0, 0)
                for lane in range(n):
                    put(s.mixed, tile, lane, head * head_dim, out[lane], 0, head_dim)

            n_units = (w.out.values.shape[1] + OUT_BLOCKS - 1) // OUT_BLOCKS
            for chunk in chunks(worker, region(layer, OUT), n_units * n_bands):
                add_product_and_bias(w.out, w.out_bias, layer, s.mixed, chunk % n_units,
                                     chunk // n_units, out, s.x, n_rows)  # fmt: skip

            for tile in chunks(worker, region(layer, NORM2), n_tiles):
                norm_tile(s.x, w.norm2[layer], w.eps, n_rows, tile, row, lanes,
                          s.normed)  # fmt: skip

            n_blocks = w.fc1.values.shape[1]
            n_units = (n_blocks + OUT_BLOCKS - 1) // OUT_BLOCKS
            for chunk in chunks(worker, region(layer, FC1), n_units * n_bands):
                unit, band = chunk % n_units, chunk // n_units
                first = unit * OUT_BLOCKS
                count = min(OUT_BLOCKS, n_blocks - first)
                start = first * BLOCK
                size = min(count * BLOCK, hidden_dim - start)
                for tile in range(band * TILES, min(n_tiles, (band + 1) * TILES)):
                    n = min(TILE, n_rows - tile * TILE)
                    matmul(w.fc1, layer, first, count, s.normed, tile, n, out, 0, 0)
                    for lane in range(n):
                        add_bias_and_activate(
                            out[lane], w.fc1_bias[layer, start : start + size], w.activation
                        )
                        put(s.hidden, tile, lane, start, out[lane], 0, size)

            n_units = (w.fc2.values.shape[1] + OUT_BLOCKS - 1) // OUT_BLOCKS
            for chunk in chunks(worker, region(layer, FC2), n_units * n_bands):
                add_product_and_bias(w.fc2, w.fc2_bias, layer, s.hidden, chunk % n_units,
                                     chunk // n_units, out, s.x, n_rows)  # fmt: skip

            if todo.keep[layer + 1] >= 0:
                for tile in chunks(worker, region(layer, KEEP), n_tiles):
                    for r in range(tile * TILE, min(n_rows, (tile + 1) * TILE)):
                        keep_row(todo, layer + 1, s.x, r)

        if final > 0:
            for tile in chunks(worker, region(n_layers, 0), n_tiles):
                for r in range(tile * TILE, min(n_rows, (tile + 1) * TILE)):
                    norm_row(s.x[r], w.final_norm[0], w.eps, s.x[r], lanes)

        if finish(control, thread):
            return job
        last = job


@part
def _units(w: F32, n_rows: int) -> tuple[int, int]:
    n_tiles = (n_rows + TILE - 1) // TILE
    return (w.values.shape[1] + OUT_BLOCKS - 1) // OUT_BLOCKS, (n_tiles + TILES - 1) // TILES


@part
def norm_tile(
    x: Array, norm: Array, eps: float, n_rows: int, tile: int, row: Array, lanes: Array,
    normed: F32Rows,
) -> None:  # fmt: skip
    """Layer-norm the rows of a tile and lay them out as activations."""
    for r in range(tile * TILE, min(n_rows, (tile + 1) * TILE)):
        norm_row(x[r], norm, eps, row, lanes)
        put(normed, tile, r % TILE, 0, row, 0, x.shape[1])


@part
def keep_row(todo: EncoderInput, layer: int, x: Array, r: int) -> None:
    """Copy a row of the residual stream, where what is behind this layer was asked for."""
    slot = todo.keep[layer]
    if slot >= 0:
        for k in range(x.shape[1]):
            todo.streams[slot, r, k] = x[r, k]


@part
def place(
    part: int, head: int, tile: int, n: int, head_dim: int, out: Array, s: EncoderScratch
) -> None:
    """Put a tile of one head's queries (part 0), keys (1) or values (2) where attention reads."""
    all_tiles = s.q.values.shape[0] // s.keys.values.shape[0]
    for lane in range(n):
        at = tile * TILE + lane
        if part == 0:
            put(s.q, head * all_tiles + tile, lane, 0, out[lane], 0, head_dim)
        elif part == 1:
            for k in range(head_dim):
                s.keys.values[head, at // BLOCK, k, at % BLOCK] = out[lane, k]
        else:
            for k in range(head_dim):
                s.values.values[head, k // BLOCK, at, k % BLOCK] = out[lane, k]


@kernel
def add_bias_and_activate(x: Array, bias: Array, activation: int) -> None:
    """x[: len(bias)] := activation(x + bias)."""
    if activation == GELU:
        for k in range(bias.shape[0]):
            x[k] = activate(x[k] + bias[k], GELU)
    elif activation == GELU_TANH:
        for k in range(bias.shape[0]):
            x[k] = activate(x[k] + bias[k], GELU_TANH)
    else:
        for k in range(bias.shape[0]):
            x[k] = activate(x[k] + bias[k], QUICK_GELU)


@part
def add_product(
    w: F32, layer: int, rows: F32Rows, unit: int, band: int, out: Array, x: Array,
    first_row: int, n_rows: int,
) -> None:  # fmt: skip
    """x[first_row + i] += w · rows[i], for one chunk of outputs and rows."""
    n_tiles = (n_rows + TILE - 1) // TILE
    first = unit * OUT_BLOCKS
    count = min(OUT_BLOCKS, w.values.shape[1] - first)
    begin = first * BLOCK
    size = min(count * BLOCK, x.shape[1] - begin)
    for tile in range(band * TILES, min(n_tiles, (band + 1) * TILES)):
        n = min(TILE, n_rows - tile * TILE)
        matmul(w, layer, first, count, rows, tile, n, out, 0, 0)
        for lane in range(n):
            for k in range(size):
                x[first_row + tile * TILE + lane, begin + k] += out[lane, k]


@part
def add_product_and_bias(
    w: F32, bias: Array, layer: int, rows: F32Rows, unit: int, band: int, out: Array, x: Array,
    n_rows: int,
) -> None:  # fmt: skip
    """x += w · rows + bias, for one chunk of outputs and rows."""
    begin = unit * OUT_BLOCKS * BLOCK
    end = min(begin + OUT_BLOCKS * BLOCK, x.shape[1])
    for r in range(band * TILES * TILE, min(n_rows, (band + 1) * TILES * TILE)):
        for k in range(begin, end):
            x[r, k] += bias[layer, k]
    add_product(w, layer, rows, unit, band, out, x, 0, n_rows)
