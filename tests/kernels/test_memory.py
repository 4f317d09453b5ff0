"""Weights on large pages: the same numbers, somewhere else."""

from __future__ import annotations

import weakref
from collections import UserDict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tinyllm.kernels.memory import LINE, on_huge_pages


def test_arrays_are_moved_and_files_stay(tmp_path: Path) -> None:
    np.arange(8, dtype=np.float32).tofile(tmp_path / "mapped")
    mapped = np.memmap(tmp_path / "mapped", np.float32, "r")
    rng = np.random.default_rng(0)
    whole = rng.standard_normal((6, 5)).astype(np.float32)
    whole.flags.writeable = False
    arrays = {
        "a": whole,
        "file": mapped[2:],
        "rows": whole[2:4],
        "double": np.ones(3),
        "none": whole[:0],
    }
    moved = on_huge_pages(arrays)
    assert list(moved) == list(arrays)
    for name, old in arrays.items():
        new = moved[name]
        np.testing.assert_array_equal(new, old)
        assert (new.dtype, new.flags.writeable) == (old.dtype, old.flags.writeable)
        assert new.flags.c_contiguous
        assert (new is old) is (name == "file")
        assert name == "file" or new.ctypes.data % LINE == 0
    assert not np.shares_memory(moved["a"], whole)


def test_an_array_is_let_go_before_the_next_one_is_made() -> None:
    class Made(UserDict[str, NDArray[np.float32]]):
        def __getitem__(self, name: str) -> NDArray[np.float32]:
            assert not alive or alive[-1]() is None
            array = np.full(1000, float(name), np.float32)
            alive.append(weakref.ref(array))
            return array

    alive: list[weakref.ref[NDArray[np.float32]]] = []
    moved = on_huge_pages(Made.fromkeys("123"))
    assert [array[999] for array in moved.values()] == [1, 2, 3]


def test_nothing_to_move() -> None:
    assert on_huge_pages({}) == {}
