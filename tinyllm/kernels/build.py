"""How kernels are compiled: one decorator, one cache on disk, and which instructions to use.

Every kernel is compiled by numba once on a machine and kept on disk; a later process loads machine
code in milliseconds. numba keys its own cache by one function's file alone, so a change in a file
that it calls would go unseen. Here the key is the text of all kernel files together: whoever edits
a kernel gets it compiled, and nobody ever runs a stale one.
"""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import llvmlite.binding as llvm
import numba
import platformdirs
from numba.core.caching import CompileResultCacheImpl, FunctionCache

numba_config: Any = numba.config  # numba is typed in parts, differently from release to release
JIT = not numba_config.DISABLE_JIT
"""False under NUMBA_DISABLE_JIT=1, where kernels are plain Python on one thread."""

F = TypeVar("F", bound=Callable[..., Any])

SIMD_VARIABLE = "TINYLLM_SIMD"
NEEDED_FEATURES = ("avx512f", "avx512bw", "avx512vl", "avx512vnni")


def _choose_simd() -> bool:
    wish = os.environ.get(SIMD_VARIABLE, "auto").lower()
    if wish not in ("auto", "on", "off"):
        raise ValueError(f"{SIMD_VARIABLE} must be auto, on or off, not {wish!r}")
    if wish == "off" or not JIT:
        return False
    features = llvm.get_host_cpu_features()
    missing = [name for name in NEEDED_FEATURES if not features.get(name)]
    if wish == "on" and missing:
        raise ValueError(f"{SIMD_VARIABLE}=on, but this processor lacks {', '.join(missing)}")
    return not missing


USE_SIMD = _choose_simd()
"""Whether `simd.py` is used (else the plain loops of `jit.py`); decided once, at import."""

USE_BF16 = USE_SIMD and bool(llvm.get_host_cpu_features().get("avx512bf16"))
"""Whether bf16 weights are multiplied by the processor's own bfloat16 instructions."""


@cache
def sources_hash() -> str:
    """Changes with any kernel's text: part of every cache key, and of a model's fingerprint."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


@cache
def cache_folder() -> Path:
    """Where compiled kernels go: `NUMBA_CACHE_DIR`, `__pycache__`, or the user's cache folder.

    A read-only installation has no writable `__pycache__`; if nothing at all is writable, a
    temporary folder serves this process alone.
    """
    name = f"kernels-{sources_hash()}-{'simd' if USE_SIMD else 'plain'}"
    candidates = [
        Path(__file__).parent / "__pycache__",
        Path(platformdirs.user_cache_dir("tinyllm", appauthor=False)),
    ]
    if numba_config.CACHE_DIR:
        candidates.insert(0, Path(numba_config.CACHE_DIR) / "tinyllm")
    for parent in candidates:
        folder = parent / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError:
            continue
        return folder
    return Path(tempfile.mkdtemp(prefix="tinyllm-"))


class _Locator:
    """numba's cache locator protocol: one folder for all kernels, stamped by all their sources."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._line = function.__code__.co_firstlineno

    @classmethod
    def from_function(cls, function: Callable[..., Any], file: str) -> _Locator:
        del file
        return cls(function)

    def ensure_cache_path(self) -> None:
        cache_folder().mkdir(parents=True, exist_ok=True)

    def get_cache_path(self) -> str:
        return str(cache_folder())

    def get_source_stamp(self) -> str:
        return sources_hash()

    def get_disambiguator(self) -> str:
        return str(self._line)


class _CacheImpl(CompileResultCacheImpl):
    _locator_classes: Any = (_Locator,)


class _KernelCache(FunctionCache):
    _impl_class = _CacheImpl


_compile: Any = numba.njit
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
# Without reference counts, two atomic steps for every array that is passed on.
_NO_ALLOCATION = {**_OPTIONS, "_nrt": False}


def kernel(function: F) -> F:
    """Compile with numba, without the interpreter's lock, and keep the machine code on disk.

    No fast-math: kernels meet -inf (masks), and the order of every float sum is part of what a
    kernel promises. With NUMBA_DISABLE_JIT=1 this is the Python function itself.
    """
    return cast(F, _kept(_compile(**_OPTIONS)(function)))


def lean(function: F) -> F:
    """As `kernel`, for a function that allocates nothing."""
    return cast(F, _kept(_compile(**_NO_ALLOCATION)(function)))


def uncached(function: F) -> F:
    """As `lean`, but compiled as part of its callers only.

    For generators and for functions that hold compiled ones in their closure: numba can't load the
    former from its cache, and can't tell the latter apart from one process to the next.
    """
    return cast(F, _compile(**_NO_ALLOCATION)(function))


def inlined(function: F) -> F:
    """As `uncached`, and copied into its callers: for what is called thousands of times a token.

    A call hands on every array as a dozen words, and a kernel has a dozen arrays.
    """
    return cast(F, _compile(inline="always", **_NO_ALLOCATION)(function))


def _kept(compiled: Any) -> Any:
    if JIT:
        make: Any = _KernelCache
        compiled._cache = make(compiled.py_func)
    return compiled


def compile_for(function: Any, name: str, args: tuple[Any, ...]) -> None:
    """Compile a kernel (or load it from disk) for arguments of these types; says so if it takes.

    `name` tells such a set of types apart from others, in the message and in the cache's folder.
    """
    if not JIT:
        return
    ready = cache_folder() / f"{name}.ready"
    start = time.monotonic()
    if not ready.exists():
        print(
            f"tinyllm: compiling the {name} kernels for this processor; it takes about half a "
            f"minute, once (they are kept in {cache_folder()})",
            file=sys.stderr,
            flush=True,
        )
    typeof: Any = numba.typeof
    function.compile(tuple(typeof(arg) for arg in args))
    if not ready.exists():
        print(f"tinyllm: compiled in {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
        ready.touch()
    shed_compiler()


def shed_compiler() -> None:
    """Give back the memory that only compiling needed: about 70 MB of a server's.

    LLVM's code, 50 MB of it, stays mapped but leaves memory; whatever is called again comes back
    page by page. Freed blocks of the C library's heap go back to the system. Linux alone; nothing
    happens elsewhere.
    """
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return
    libc = ctypes.CDLL(None)
    for line in maps.read_text(encoding="utf-8").splitlines():
        addresses, permissions, *_, name = line.split(maxsplit=5)
        # Executable pages are the file's own bytes. Writable ones hold relocations: not those.
        if "libllvmlite" in name and permissions == "r-xp":
            start, stop = (int(address, 16) for address in addresses.split("-"))
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), mmap.MADV_DONTNEED)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(ctypes.c_size_t(0))
