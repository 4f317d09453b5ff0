"""Which kernel serves which format, decided at compile time by the types of the arguments.

`matmul(w, …)` means `matmul_q8` for a `Q8`, `matmul_f32` for an `F32`, and so on; with vector
instructions where there are any. The forward pass is written once, over these names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba.extending import overload

from tinyllm.kernels import jit
from tinyllm.kernels.build import USE_BF16, USE_SIMD
from tinyllm.kernels.layout import (
    BF16,
    F32,
    Q4,
    Q8,
    F32Rows,
    Int8Rows,
    SplitRows,
    empty_f32_rows,
    empty_int8_rows,
    empty_split_rows,
)

if USE_SIMD:
    from tinyllm.kernels import simd as fast
    from tinyllm.kernels import simd_attention as fast_attention
else:
    from tinyllm.kernels import jit as fast  # type: ignore[no-redef]
    from tinyllm.kernels import jit_attention as fast_attention  # type: ignore[no-redef]

Kernel = Callable[..., None]

MATMUL: dict[tuple[type, type], Kernel] = {
    (F32, F32Rows): fast.matmul_f32,
    (BF16, F32Rows): fast.matmul_bf16,
    (BF16, SplitRows): fast.matmul_bf16_split,
    (Q8, Int8Rows): fast.matmul_q8,
    (Q4, Int8Rows): fast.matmul_q4,
}
EMBED: dict[type, Kernel] = {
    F32: jit.embed_f32,
    BF16: jit.embed_bf16,
    Q8: jit.embed_q8,
    Q4: jit.embed_q4,
}
PUT: dict[type, Kernel] = {
    F32Rows: jit.put_f32,
    SplitRows: jit.put_split,
    Int8Rows: fast.put_int8,
}
ROWS: dict[str, Callable[[int, int], Any]] = {
    "f32": empty_f32_rows,
    "bf16": empty_split_rows if USE_BF16 else empty_f32_rows,
    "q8": empty_int8_rows,
    "q4": empty_int8_rows,
}

append_key, append_value = fast_attention.append_key, fast_attention.append_value
attend, merge = fast_attention.attend, fast_attention.merge
norm_row, rope, swiglu = fast.norm_row, fast.rope, fast.swiglu
add_row, divide_row = fast.add_row, fast.divide_row


def empty_rows(dtype: str, n_rows: int, width: int) -> Any:
    """Room for activations, in the form that weights of this format are multiplied with."""
    return ROWS[dtype](n_rows, width)


def matmul(
    w: Any, layer: int, first: int, count: int, rows: Any, tile: int, n: int,
    out: Any, out_row: int, column: int,
) -> None:  # fmt: skip
    """See `jit.matmul_f32`."""
    MATMUL[type(w), type(rows)](w, layer, first, count, rows, tile, n, out, out_row, column)


def embed(w: Any, token: int, x: Any, row: int) -> None:
    """See `jit.embed_f32`."""
    EMBED[type(w)](w, token, x, row)


def put(rows: Any, tile: int, lane: int, column: int, values: Any, start: int, n: int) -> None:
    """See `jit.put_f32`."""
    PUT[type(rows)](rows, tile, lane, column, values, start, n)


@overload(matmul, inline="always")
def _matmul(w, layer, first, count, rows, tile, n, out, out_row, column):  # type: ignore[no-untyped-def]
    del layer, first, count, tile, n, out, out_row, column
    kernel = MATMUL[w.instance_class, rows.instance_class]

    def implementation(  # type: ignore[no-untyped-def]
        w, layer, first, count, rows, tile, n, out, out_row, column
    ):
        kernel(w, layer, first, count, rows, tile, n, out, out_row, column)

    return implementation


@overload(embed)
def _embed(w, token, x, row):  # type: ignore[no-untyped-def]
    del token, x, row
    kernel = EMBED[w.instance_class]

    def implementation(w, token, x, row):  # type: ignore[no-untyped-def]
        kernel(w, token, x, row)

    return implementation


@overload(put)
def _put(rows, tile, lane, column, values, start, n):  # type: ignore[no-untyped-def]
    del tile, lane, column, values, start, n
    kernel = PUT[rows.instance_class]

    def implementation(rows, tile, lane, column, values, start, n):  # type: ignore[no-untyped-def]
        kernel(rows, tile, lane, column, values, start, n)

    return implementation
