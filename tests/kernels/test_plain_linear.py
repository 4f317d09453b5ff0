"""Rows times rows as they lie: right, and the same bits whatever is computed beside."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tinyllm.kernels import plain_linear, reference
from tinyllm.kernels.processor import JIT, KIND

Array = NDArray[Any]
here = pytest.mark.skipif(not JIT or KIND.sums < 16, reason="numpy's own on this processor")


def factors(n_tokens: int, n_out: int, n_in: int) -> tuple[Array, Array]:
    rng = np.random.default_rng(n_tokens + n_out)
    shapes = (n_tokens, n_in), (n_out, n_in)
    x, weight = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    return x, weight


@pytest.mark.parametrize("n_in", [16, 48, 50, 576, plain_linear.LONGEST + 16])
@pytest.mark.parametrize(("n_tokens", "n_out"), [(1, 9), (3, 9), (4, 4), (5, 7), (40, 30), (9, 3)])
def test_the_product(n_tokens: int, n_out: int, n_in: int) -> None:
    x, weight = factors(n_tokens, n_out, n_in)
    out = plain_linear.linear(x, weight)
    exact = x.astype(np.float64) @ weight.T.astype(np.float64)
    assert out.dtype == np.float32
    scale = np.abs(x).astype(np.float64) @ np.abs(weight).T.astype(np.float64)
    assert np.all(np.abs(out - exact) <= 4e-7 * scale)


def test_of_other_precisions_it_is_the_references() -> None:
    x, weight = (factor.astype(np.float64) for factor in factors(8, 8, 32))
    np.testing.assert_array_equal(plain_linear.linear(x, weight), reference.linear(x, weight))


@here
def test_no_row_hangs_on_what_stands_beside_it() -> None:
    x, weight = factors(11, 13, 64)
    whole = plain_linear.linear(x, weight)
    for first in range(7):
        part = plain_linear.linear(x[first : first + 4], weight[first : first + 6])
        np.testing.assert_array_equal(part, whole[first : first + 4, first : first + 6])


@pytest.mark.parametrize("n_in", [50, 64])
@pytest.mark.parametrize("n_out", [3, 13])
def test_row_by_row_a_row_has_the_bits_that_it_has_alone(n_out: int, n_in: int) -> None:
    x, weight = factors(11, n_out, n_in)
    whole = plain_linear.row_by_row(x, weight)
    np.testing.assert_allclose(whole, plain_linear.linear(x, weight), atol=1e-4)
    for n_tokens in range(1, 11):
        np.testing.assert_array_equal(
            plain_linear.row_by_row(x[:n_tokens], weight), whole[:n_tokens]
        )


@here
def test_matrices_of_a_file_may_begin_anywhere_and_be_read_only() -> None:
    x, weight = factors(6, 8, 32)
    expected = plain_linear.linear(x, weight)
    for shift in (4, 12, 20):
        room = np.zeros(weight.nbytes + shift, np.uint8)[shift:]
        moved = room.view(np.float32).reshape(weight.shape)
        moved[:] = weight
        moved.flags.writeable = False
        np.testing.assert_array_equal(plain_linear.linear(x[:, ::-1][:, ::-1], moved), expected)
