"""Regions of one kind: every row of a call; a matrix product whose outputs are kept, or added.

A product is cut into units of a few blocks of 16 outputs, and bands of up to 8 tiles of 8 rows. One
unit of one band is a chunk: whoever claims it reads the unit's weights from memory for the band's
first tile, and finds them in the cache for the others. `forward.py` walks through queries, keys and
values and through gates and ups by the same lines: with a generator for all, LLVM reads the inputs
of a lone row's float32 product by index, and such a model decodes 5% slower.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from numpy.typing import NDArray

from tinyllm.kernels.arrays import OUT_BLOCKS, Call
from tinyllm.kernels.build import part
from tinyllm.kernels.dispatch import add_row, matmul, n_blocks
from tinyllm.kernels.layout import BLOCK, TILE, TILES
from tinyllm.kernels.part_kernels import add_bias
from tinyllm.kernels.threads import Worker, chunks

Array = NDArray[Any]


@part
def rows_of(worker: Worker, at: int, call: Call) -> Iterator[int]:
    """Every row, where each is for itself; a chunk is a tile of them."""
    for tile in chunks(worker, at, call.n_tiles):
        for r in range(tile * TILE, min(call.n_rows, (tile + 1) * TILE)):  # noqa: UP028
            yield r  # numba has no `yield from`


@part
def put_product(
    worker: Worker, at: int, call: Call, w: Any, bias: Any, matrix: int, size: int, rows: Any,
    start: int, y: Array, out: Array,
) -> None:  # fmt: skip
    """y = w · rows + bias, `size` blocks of outputs a unit; the rows are in tiles from `start` on.

    y's width is a multiple of 16, and `out` is the thread's own.
    """
    of_matrix = n_blocks(w)
    n_units = (of_matrix + size - 1) // size
    for chunk in chunks(worker, at, n_units * call.n_bands):
        first, band = chunk % n_units * size, chunk // n_units
        count = min(size, of_matrix - first)
        for tile in range(band * TILES, min(call.n_tiles, (band + 1) * TILES)):
            n = min(TILE, call.n_rows - tile * TILE)
            matmul(w, matrix, first, count, rows, start + tile, n, out, 0, 0)
            add_bias(bias, matrix, first * BLOCK, out, n, count * BLOCK)
            for lane in range(n):
                for k in range(count * BLOCK):
                    y[tile * TILE + lane, first * BLOCK + k] = out[lane, k]


@part
def add_product(
    worker: Worker, at: int, call: Call, w: Any, bias: Any, matrix: int, rows: Any, x: Array,
    out: Array,
) -> None:  # fmt: skip
    """x += w · rows + bias."""
    of_matrix = n_blocks(w)
    n_units = (of_matrix + OUT_BLOCKS - 1) // OUT_BLOCKS
    for chunk in chunks(worker, at, n_units * call.n_bands):
        first, band = chunk % n_units * OUT_BLOCKS, chunk // n_units
        count = min(OUT_BLOCKS, of_matrix - first)
        for tile in range(band * TILES, min(call.n_tiles, (band + 1) * TILES)):
            n = min(TILE, call.n_rows - tile * TILE)
            matmul(w, matrix, first, count, rows, tile, n, out, 0, 0)
            add_bias(bias, matrix, first * BLOCK, out, n, count * BLOCK)
            for lane in range(n):
                add_row(x, tile * TILE + lane, first * BLOCK, out, lane, count * BLOCK)
