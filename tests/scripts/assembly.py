"""What LLVM makes of the matrix products for a processor that isn't here, and what that costs.

    python -m tests.scripts.assembly neon apple-m1 1 4

prints, for each format and the tiles for 1 and 4 tokens, the instructions of the hot loop: how many
a byte of weights, how many of them multiply, how many keep registers in memory for want of
registers, and any calls.

numba compiles for the machine that it runs on; here its LLVM text is taken before that, and given
to LLVM for the other processor. One kind a process, since kernels are made for one kind.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

import llvmlite.binding as llvm
import numba
from numba.core import codegen as _codegen
from numba.core import types as _types
from numba.core.caching import NullCache
from numba.core.compiler_lock import global_compiler_lock as _global_compiler_lock
from numba.core.cpu import CPUContext

codegen: Any = _codegen  # numba is typed in parts
types: Any = _types
global_compiler_lock: Any = _global_compiler_lock

TARGETS = {
    "apple-m1": "aarch64-apple-darwin",
    "apple-m2": "aarch64-apple-darwin",
    "neoverse-n1": "aarch64-unknown-linux-gnu",
    "neoverse-v1": "aarch64-unknown-linux-gnu",
    "haswell": "x86_64-unknown-linux-gnu",
    "alderlake": "x86_64-unknown-linux-gnu",
    "znver4": "x86_64-unknown-linux-gnu",
}
PRODUCTS = r"vpdpbusd|vpmaddwd|usdot|sdot"
FUSED = r"fmla|vfn?madd"
CALLS = r"bl|blr|callq?"


def take_llvm_text() -> list[str]:
    """From now on numba makes no machine code: each kernel's LLVM text comes to this list."""
    numba.njit(lambda: 0)()  # numba's own start-up compiles for this machine
    found: list[str] = []

    def keep(library: Any) -> None:
        library._finalized = True
        found.append(str(library._final_module))

    from tinyllm.kernels.once import PartLibrary

    library: Any = codegen.CPUCodeLibrary
    library._optimize_final_module = lambda self: None
    library._finalize_final_module = keep
    part: Any = PartLibrary
    part.finalize = library.finalize  # with all that it calls
    context: Any = CPUContext
    context.get_executable = lambda self, library, *_: library.finalize()
    return found


def compile_in_part(function: Any, signature: tuple[Any, ...]) -> None:
    """As far as `take_llvm_text` lets it come."""
    function._cache = NullCache()
    with contextlib.suppress(TypeError):  # there is nothing that could be called
        function.compile(signature)
    for part in function.overloads.values():  # whose text is whole once a caller wants it
        with global_compiler_lock:
            part.library._ensure_finalized()


def assembly(text: str, triple: str, cpu: str) -> str:
    """LLVM's text as assembly for that processor, optimised as numba optimises."""
    module = llvm.parse_assembly(text)
    target = llvm.Target.from_triple(triple).create_target_machine(cpu, "", opt=3)
    module.triple, module.data_layout = triple, str(target.target_data)
    options = llvm.create_pipeline_tuning_options(3)
    builder = llvm.create_pass_builder(target, options)
    builder.getModulePassManager().run(module, builder)
    return str(target.emit_assembly(module))


def hot_loop(text: str) -> list[str]:
    """The instructions of the longest loop that branches back to its own beginning."""
    lines = [re.sub(r"//.*|#.*|\{vex\}", "", line).strip() for line in text.splitlines()]
    labels = {line[:-1]: i for i, line in enumerate(lines) if line.endswith(":")}
    longest: list[str] = []
    for end, line in enumerate(lines):
        target = line.split()[-1].rstrip(",") if line else ""
        if re.match(r"(j[a-z]+|b\.[a-z]+|cbn?z|tbn?z)\s", line) and target in labels:
            body = [x for x in lines[labels[target] : end + 1] if re.match(r"[a-z]", x)]
            body = [x for x in body if not x.endswith(":")]
            longest = max(longest, body, key=len)
    return longest


def counts(loop: list[str], bytes_of_weights: int) -> dict[str, Any]:
    """What the table says of a loop that goes through so many bytes of weights."""
    names = Counter(line.split()[0].split(".")[0] for line in loop)

    def of(pattern: str) -> int:
        return sum(n for name, n in names.items() if re.match(f"({pattern})", name))

    # What went to the stack and back; the tile stores nothing else inside its loop.
    kept = sum(bool(re.search(r"\bsp\b|%rsp|%rbp", line)) for line in loop)
    return {
        "instructions": len(loop),
        "per_byte": round(len(loop) / bytes_of_weights, 2),
        "products": of(PRODUCTS),
        "fused": of(FUSED),
        "kept_on_the_stack": kept,
        "calls": sum(n for name, n in names.items() if re.fullmatch(CALLS, name)),
    }


def table(kind: str, cpu: str, tokens: Sequence[int]) -> dict[str, dict[str, Any]]:
    """The counts of each format's tiles for so many tokens, as "q8, 4 tokens": …"""
    from tinyllm.kernels import processor

    processor.KIND = next(k for k in processor.KINDS if k.name == kind)
    processor._HAS_FMA = processor._HAS_HALVES = True
    processor.PREFETCH_DISTANCE = processor.prefetch_distance((TARGETS[cpu], cpu, ""))
    from tinyllm.kernels import layout, simd, simd_int16

    byte, int8, f32, int32 = (
        types.CPointer(t) for t in (types.uint8, types.int8, types.float32, types.int32)
    )
    both = types.Tuple((int8, int8, f32, int32, f32))
    one = types.Tuple((int8, f32, int32, f32))
    panel = 4 * layout.BLOCK  # bytes of float32 weights that one input takes
    rows: list[tuple[str, Any, Any, Any, int]] = [
        ("q8", simd_int16._make_q8_tile, byte, both, layout.Q8_BYTES),
        ("q4", simd_int16._make_q4_tile, byte, both, layout.Q4_BYTES),
        ("q8a8", simd._make_q8_tile, byte, one, layout.Q8_BYTES),
        ("q4a8", simd._make_q4_tile, byte, one, layout.Q4_BYTES),
        ("f32", simd._make_f32_tile, f32, types.Tuple((f32,)), panel),
    ]
    texts = take_llvm_text()
    found = {}
    for name, make, weights, inputs, n_bytes in rows:
        for n in tokens:
            compile_in_part(
                make(n), (weights, types.int64, inputs, f32, types.int64, types.boolean)
            )
            loop = hot_loop(assembly(texts[-1], TARGETS[cpu], cpu))
            row = counts(loop, n_bytes)
            if name == "f32":  # unrolled as LLVM likes: a byte, by the products there are
                registers = {"neon": 4, "neon-i8mm": 4, "avx512": 1}.get(kind, 2)
                n_bytes = panel * max(1, row["fused"] // (n * registers))
                row = counts(loop, n_bytes)
            found[f"{name}, {n} token{'s' * (n > 1)}"] = row
    return found


def main() -> None:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    kind, cpu, *tokens = sys.argv[1:]
    found = table(kind, cpu, [int(n) for n in tokens] or [1, 4])
    print(
        "{\n" + ",\n".join(f" {json.dumps(k)}: {json.dumps(v)}" for k, v in found.items()) + "\n}"
    )


if __name__ == "__main__":
    main()
