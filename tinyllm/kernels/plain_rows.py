"""Tokens' rows times a checkpoint's own float32 matrix: both lie as they are.

BLAS rearranges both factors before it multiplies, which for 40 rows of tokens and a large matrix
takes longer than to multiply. Here both are read along their rows: four tokens' and four outputs'
inputs meet sixteen at a time, in sixteen sums that stay in registers, and each sum's lanes are
added up at the end. No output hangs on which others are computed beside it.

`plain_linear.py` is how Python calls it.
"""

from __future__ import annotations

from tinyllm.kernels.build import kernel
from tinyllm.kernels.bundles import fma_rows, store_sums, zeros
from tinyllm.kernels.layout import BLOCK
from tinyllm.kernels.plain_linear import ROWS, Array
from tinyllm.kernels.processor import PREFETCH_DISTANCE
from tinyllm.kernels.vectors import prefetch


@kernel
def rows_times_rows(x: Array, weight: Array, out: Array) -> None:
    """out[t, o] = Σ x[t, k] · weight[o, k]; at least four of either, k in sixteens.

    The last four begin earlier where four don't divide them: what is done again has the same bits.
    The first four tokens bring the weights along, for the others too, and ask for those that come
    next: with four or eight tokens it takes as long as the memory needs.
    """
    n_tokens, width = x.shape
    n_out = weight.shape[0]
    for i in range(0, n_out, ROWS):
        o = min(i, n_out - ROWS)
        sums = zeros(16)
        for k in range(0, width, BLOCK):
            if PREFETCH_DISTANCE > 0:  # of four rows, sixteen inputs are as long as a row's next 64
                for j in range(0, ROWS * BLOCK, BLOCK):
                    prefetch(weight, o * width + ROWS * k + j + PREFETCH_DISTANCE // 4)
            sums = fma_rows(sums, x, k, weight, o * width + k, width)
        store_sums(sums, out, o, n_out)
        for j in range(ROWS, n_tokens, ROWS):
            t = min(j, n_tokens - ROWS)
            sums = zeros(16)
            for k in range(0, width, BLOCK):
                sums = fma_rows(sums, x, t * width + k, weight, o * width + k, width)
            store_sums(sums, out, t * n_out + o, n_out)
