"""Which kernel serves which format, decided at compile time by the types of the arguments.

`matmul(w, …)` means `matmul_q8` for a `Q8`, `matmul_f32` for an `F32`, and so on; with vector
instructions where there are any. The forward pass is written once, over these names.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from numba.extending import overload

from tinyllm.kernels import jit, jit_attention, jit_int16, jit_mixture
from tinyllm.kernels.build import INLINED, PART
from tinyllm.kernels.formats import FORMATS
from tinyllm.kernels.mixture import Mixture
from tinyllm.kernels.processor import JIT

if JIT:
    from tinyllm.kernels import simd, simd_attention, simd_int16, simd_mixture

    fast: ModuleType = simd
    fast_attention: ModuleType = simd_attention
    VECTORS: list[ModuleType] = [simd, simd_int16, simd_mixture]
else:
    fast, fast_attention = jit, jit_attention
    VECTORS = []
LOOPS: list[ModuleType] = [jit, jit_int16, jit_mixture]

Kernel = Callable[..., None]


def kernel_of(name: str) -> Kernel:
    """A kernel by its name: in vectors, or as loops where there is no other form of it."""
    found: Kernel = next(vars(module)[name] for module in VECTORS + LOOPS if name in vars(module))
    return found


MATMUL = {(f.packed, f.activations): kernel_of(f"matmul_{f.name}") for f in FORMATS.values()}
EMBED = {f.packed: kernel_of(f"embed_{f.weights}") for f in FORMATS.values()}
PUT = {f.activations: kernel_of(f.put) for f in FORMATS.values()}

append_key, append_value = fast_attention.append_key, fast_attention.append_value
attend, merge = fast_attention.attend, fast_attention.merge
norm_row, rope, swiglu = fast.norm_row, fast.rope, fast.swiglu
add_row, divide_row = fast.add_row, fast.divide_row


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


def n_blocks(w: Any) -> int:
    """Blocks of 16 rows in each matrix of a stack."""
    return int((w.kinds if type(w) is Mixture else w.values).shape[1])


def n_matrices(w: Any) -> int:
    """Matrices in a stack."""
    return int((w.kinds if type(w) is Mixture else w.values).shape[0])


@overload(n_blocks, jit_options=PART)
def _n_blocks(w):  # type: ignore[no-untyped-def]
    if w.instance_class is Mixture:
        return lambda w: w.kinds.shape[1]
    return lambda w: w.values.shape[1]


@overload(matmul, jit_options=INLINED)
def _matmul(w, layer, first, count, rows, tile, n, out, out_row, column):  # type: ignore[no-untyped-def]
    del layer, first, count, tile, n, out, out_row, column
    kernel = MATMUL[w.instance_class, rows.instance_class]

    def implementation(  # type: ignore[no-untyped-def]
        w, layer, first, count, rows, tile, n, out, out_row, column
    ):
        kernel(w, layer, first, count, rows, tile, n, out, out_row, column)

    return implementation


@overload(embed, jit_options=PART)
def _embed(w, token, x, row):  # type: ignore[no-untyped-def]
    del token, x, row
    kernel = EMBED[w.instance_class]

    def implementation(w, token, x, row):  # type: ignore[no-untyped-def]
        kernel(w, token, x, row)

    return implementation


@overload(put, jit_options=PART)
def _put(rows, tile, lane, column, values, start, n):  # type: ignore[no-untyped-def]
    del tile, lane, column, values, start, n
    kernel = PUT[rows.instance_class]

    def implementation(rows, tile, lane, column, values, start, n):  # type: ignore[no-untyped-def]
        kernel(rows, tile, lane, column, values, start, n)

    return implementation
