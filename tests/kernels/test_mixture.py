"""A GGUF file's own blocks in the kernels: values, products and rows, of every kind and mixture."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants
from numpy.typing import NDArray

from tests import kernels_oracle as oracle
from tests.kernels.test_kernels import both, make_rows, matmul
from tinyllm.files.blocks import KINDS, take_apart
from tinyllm.files.gguf import BLOCK_TYPES
from tinyllm.kernels import dispatch, mixture
from tinyllm.kernels.layout import TILE

TYPES = {block.name: block for block in BLOCK_TYPES.values()}
WIDTH = 512


def stored(kind: str, n_rows: int, seed: int) -> tuple[mixture.Parts, NDArray[np.float32]]:
    """Random blocks of a file's kind: as the kernels take them, and what the gguf package reads."""
    rng, block = np.random.default_rng(seed), TYPES[kind]
    n_blocks = WIDTH // block.values
    raw = rng.integers(0, 256, (n_rows, n_blocks, block.nbytes), dtype=np.uint8)
    for at in [208] if kind == "Q6_K" else [0, 2] if kind[-1] in "1K" else [0]:
        scales = (rng.standard_normal((n_rows, n_blocks)) / 64).astype("<f2")
        raw[..., at : at + 2] = scales[..., None].view(np.uint8)
    values = quants.dequantize(raw.reshape(n_rows, -1), GGMLQuantizationType[kind])
    blocks = take_apart(raw.reshape(-1), block, (n_rows, WIDTH))
    return mixture.carry(blocks), values


def mixed(n_rows: int = 32) -> tuple[Any, NDArray[np.float32]]:
    """Layer 0 of Q4_K, layer 1 of all kinds, `n_rows` of each; and what that stands for."""
    found = [stored(kind, n_rows, seed) for seed, kind in enumerate(KINDS)]
    parts = [np.concatenate(arrays) for arrays in zip(*(p for p, _ in found), strict=True)]
    other, _ = stored("Q4_K", n_rows * len(KINDS), 9)
    w = mixture.stack([mixture.pack(*other), mixture.pack(*parts)], 2)
    return w, np.concatenate([values for _, values in found])


def inputs(n: int) -> NDArray[np.float32]:
    return np.random.default_rng(20).standard_normal((n, WIDTH)).astype(np.float32) * 10


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_the_files(kind: str) -> None:
    """Carried over, packed and unpacked again: to the bit."""
    parts, values = stored(kind, 37, 1)
    np.testing.assert_array_equal(mixture.restore(*parts), values)
    packed = mixture.pack(*parts)
    assert packed.values.size == 3 * mixture.block_bytes(int(parts[0][0]), WIDTH // 32)
    for back, part in zip(mixture.unpack(packed, 37), parts, strict=True):
        np.testing.assert_array_equal(back, part)


@both
def test_products(kernels: Any) -> None:
    """Every kind beside float64, in one matrix, and the same bits in any tile."""
    w, values = mixed()
    x = inputs(TILE)
    rows = make_rows(kernels, x, "gguf")
    whole = matmul(kernels, w, rows, TILE, len(values))
    want = oracle.matmul(w, 1, len(values), WIDTH, rows, 1, 3)
    assert np.abs(whole[:3] - want).max() <= 1e-6 * np.abs(want).max()
    exact = x.astype(np.float64) @ values.astype(np.float64).T
    assert np.abs(whole - exact).max() <= 1e-4 * np.abs(exact).max()  # 16 bits of activations
    for n in range(1, TILE):
        part = matmul(kernels, w, make_rows(kernels, x[:n], "gguf"), n, len(values))
        assert np.array_equal(part, whole[:n])


def test_rows_of_a_table() -> None:
    """Exactly what the file holds."""
    w, values = mixed(16)
    table = mixture.Mixture(w.values, w.kinds[1:], w.starts[1:])
    out = np.zeros((2, WIDTH), np.float32)
    for token, row in enumerate(values):
        dispatch.embed(table, token, out, 1)
        np.testing.assert_array_equal(out[1], row)


def test_the_largest_sums_of_six_bits_are_exact() -> None:
    """One half of a group at the edge of its range, scales of 1: an integer times one scale."""
    q = np.full((16, 256), 63, np.uint8)
    q[:, 1::2] = 0
    scales = np.zeros((16, 8, 8), np.uint8)
    scales[..., :2] = 1
    scales[..., 4:6] = np.ones((16, 8, 1), "<f2").view(np.uint8)
    kinds = np.full(16, mixture.Q6K, np.uint8)
    w = mixture.stack([mixture.pack(kinds, q, scales)] * 2, 2)
    x = np.where(q[:3] == 63, 1.0, -1.0).astype(np.float32)
    for kernels in (dispatch.LOOPS[0], *dispatch.VECTORS[:1]):
        rows = make_rows(kernels, x, "gguf")
        got = matmul(kernels, w, rows, 3, 16)
        assert np.array_equal(got, oracle.matmul(w, 1, 16, 256, rows, 1, 3).astype(np.float32))


def test_a_block_of_two_kinds_is_refused() -> None:
    four, five = stored("Q4_K", 8, 1)[0], stored("Q5_K", 8, 2)[0]
    parts = [np.concatenate(pair) for pair in zip(four, five, strict=True)]
    with pytest.raises(ValueError, match="two kinds"):
        mixture.pack(*parts)
