"""A kernel's machine code as object files, and how LLVM's library alone gets it into memory."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import llvmlite.binding as llvm

from tinyllm.kernels import processor

ENTRY = "tinyllm_entry"
"""int32 tinyllm_entry(const int64 *arguments, int64 *result): 0, or that the kernel raised."""
RESULTS: dict[str, Any] = {
    "int64": ctypes.c_int64,
    "float64": ctypes.c_double,
    "none": ctypes.c_int64,
}


@dataclass(frozen=True)
class ObjectCode:
    """A kernel's machine code for arguments of certain types: its object file, and its parts'."""

    returns: str  # a key of RESULTS
    calls: Sequence[str]  # functions of the C library
    objects: Sequence[bytes]

    def packed(self) -> bytes:
        """As it is kept on disk."""
        sizes = list(map(len, self.objects))
        head = {"returns": self.returns, "calls": list(self.calls), "sizes": sizes}
        return b"\n".join([json.dumps(head).encode(), b"".join(self.objects)])

    @classmethod
    def unpacked(cls, data: bytes) -> ObjectCode:
        """What `packed` made. Raises ValueError or TypeError for something else."""
        first, _, whole = data.partition(b"\n")
        head = json.loads(first)
        ends = list(accumulate(head.pop("sizes", ()), initial=0))
        return cls(**head, objects=[whole[a:b] for a, b in pairwise(ends)])


class Linked:
    """Machine code in memory, ready to be called. It stays as long as this object does.

    Raises:
        ValueError: it calls a function that isn't there, or has no entry.
    """

    def __init__(self, code: ObjectCode) -> None:
        self.result = RESULTS[code.returns]
        self.returns = code.returns
        triple, cpu, features = processor.target()
        target = llvm.Target.from_triple(triple).create_target_machine(cpu, features, jit=True)
        # An engine of its own: no kernel sees another's names. The first one opens the C library.
        self._engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), target)
        # LLVM would end the process for a function that it misses.
        missing = [name for name in code.calls if llvm.address_of_symbol(name) is None]
        if missing:
            raise ValueError(f"there is no {', '.join(missing)} here")
        for data in code.objects:
            self._engine.add_object_file(llvm.object_file.ObjectFileRef.from_data(data))
        self._engine.finalize_object()
        address = self._engine.get_function_address(ENTRY)
        if not address:
            raise ValueError("it has no entry")
        # ctypes lets go of the interpreter's lock while it calls.
        kind = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_char_p, ctypes.c_void_p)
        self.entry = kind(address)
