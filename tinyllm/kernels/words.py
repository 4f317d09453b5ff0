"""A kernel's arguments as 64-bit words, and their types as text: all that a call in C needs.

A number is one word, its bits. An array is where it begins and its shape; it must be C-contiguous,
so that its strides follow. A NamedTuple is its fields, one behind the other, and None is no word at
all. The types say which word is what, and with them a kernel's machine code is found on disk.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

# A number's letter in the text of types, and how `struct` writes it into a word.
NUMBERS = {"i8": "q", "u8": "Q", "f8": "d", "f4": "f4x", "b1": "?7x"}


def described(value: Any) -> str:
    """The type of an argument, as text that is the same in every process.

    Raises:
        TypeError: it is nothing that kernels take.
    """
    if value is None:
        return "-"
    if isinstance(value, tuple):
        kind = type(value)
        name = "" if kind is tuple else f"{kind.__module__}.{kind.__qualname__}"
        return f"{name}({','.join(map(described, value))})"
    if isinstance(value, np.ndarray):
        if not (value.flags.c_contiguous and value.flags.aligned and value.flags.writeable):
            raise TypeError("kernels take arrays that are C-contiguous, aligned and writable")
        return f"{value.dtype.str[1:]}[{value.ndim}]"
    return _letter(value)


def _letter(value: Any) -> str:
    if isinstance(value, bool):
        return "b1"
    if isinstance(value, int):
        return "i8"
    if isinstance(value, np.generic):  # first, since numpy's float64 is a Python float too
        letter = value.dtype.str[1:]
    else:
        letter = "f8" if isinstance(value, float) else ""
    if letter not in NUMBERS:
        raise TypeError(f"kernels take no {type(value).__name__}")
    return letter


def layout(value: Any) -> str:
    """How `struct` packs the words of an argument of this type."""
    if value is None:
        return ""
    if isinstance(value, tuple):
        return "".join(map(layout, value))
    if isinstance(value, np.ndarray):
        return "Q" + "q" * value.ndim
    return NUMBERS[_letter(value)]


def numbers(value: Any) -> Iterator[Any]:
    """What is packed: for an array its address and shape."""
    if isinstance(value, tuple):
        for field in value:
            yield from numbers(field)
    elif isinstance(value, np.ndarray):
        yield value.ctypes.data
        yield from value.shape
    elif value is not None:
        yield value


class Words:
    """Arguments of one type as words, again and again; most are arrays and numbers.

    Args:
        example: arguments of the types that all later ones have.
    """

    def __init__(self, example: Sequence[Any]) -> None:
        self._struct = struct.Struct("=" + "".join(map(layout, example)))
        self._arrays = [
            (i, value.dtype, value.ndim)
            for i, value in enumerate(example)
            if isinstance(value, np.ndarray)
        ]

    def of(self, values: Sequence[Any]) -> bytes:
        """Their words. Raises TypeError or `struct.error` for arguments of another type."""
        for i, dtype, ndim in self._arrays:
            array = values[i]
            if array.dtype != dtype or array.ndim != ndim or not array.flags.c_contiguous:
                raise TypeError(f"argument {i} must be a C-contiguous {dtype} of {ndim} dimensions")
        return self._struct.pack(*numbers(tuple(values)))
