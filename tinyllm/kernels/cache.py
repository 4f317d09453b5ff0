"""Compiled kernels kept on disk: one file each, used if it is whole and ours, else made again.

numba keys its own cache by one function's file alone, so a change in a file that it calls would go
unseen, and a damaged file ends the program. Here a file's name is a hash of all that went into it,
and its contents begin with a hash of the rest: whatever is cut short, mixed up or made for another
processor is compiled anew. Machine code is only taken from where nobody else can put it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import stat
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite
import numba
import platformdirs
from numba.core import serialize as _serialize
from numba.core.compiler import CompileResult as _CompileResult
from numba.core.runtime import nrt as _nrt

from tinyllm.kernels import processor

serialize: Any = _serialize  # numba is typed in parts, differently from release to release
CompileResult: Any = _CompileResult
nrt: Any = _nrt

HERE = Path(__file__).parent
PLAIN = (int, float, str, bool, type(None))


@cache
def sources_hash() -> str:
    """Changes with any kernel's text: part of every file's name, and of a model's fingerprint."""
    digest = hashlib.sha256()
    for path in sorted(HERE.glob("*.py")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


@cache
def key() -> str:
    """Changes with anything that machine code depends on, but for the function itself."""
    versions = (sys.version, numba.__version__, llvmlite.__version__)
    made_of = (sources_hash(), processor.NAME, processor.target(), versions)
    return hashlib.sha256(repr(made_of).encode()).hexdigest()[:16]


@cache
def folders() -> tuple[Path, ...]:
    """Where kernels may lie, in the order in which they are looked for there.

    `NUMBA_CACHE_DIR`; the package's own `__pycache__`, where an image or a read-only installation
    has what `tinyllm compile` made; the user's cache folder; and where none of these can be
    written, as for a user without a home, one for temporary files.
    """
    places = [HERE / "__pycache__", Path(platformdirs.user_cache_dir("tinyllm", appauthor=False))]
    if processor.config.CACHE_DIR:
        places.insert(0, Path(processor.config.CACHE_DIR) / "tinyllm")
    # Where there is no home, "~" stays as it is: not a place.
    found = [place / f"kernels-{key()}" for place in places if place.is_absolute()]
    return (*found, temporary())


def temporary() -> Path:
    """The last resort. Straight under a folder in which others can't rename it (a sticky one)."""
    user = os.geteuid() if hasattr(os, "geteuid") else "user"
    return Path(tempfile.gettempdir()) / f"tinyllm-{user}-kernels-{key()}"


def is_ours(path: Path) -> bool:
    """Whether only this user, or the system's, can write there."""
    if not hasattr(os, "geteuid"):
        return True  # Windows keeps a user's folders to the user
    found = path.stat()
    return found.st_uid in (os.geteuid(), 0) and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


@cache
def readable() -> tuple[Path, ...]:
    """The folders that exist and can be trusted; says which can't."""
    found = []
    for folder in folders():
        with contextlib.suppress(OSError):
            if is_ours(folder):
                found.append(folder)
            else:
                print(
                    f"tinyllm: the kernels in {folder} aren't used, since others can write there",
                    file=sys.stderr,
                )
    return tuple(found)


@cache
def writable() -> Path | None:
    """The first folder that new files can go to, made if need be; None: they aren't kept."""
    for folder in folders():
        with contextlib.suppress(OSError):
            folder.mkdir(mode=0o755, parents=True, exist_ok=True)
            if is_ours(folder):
                tempfile.TemporaryFile(dir=folder).close()
                readable.cache_clear()
                if folder == temporary():
                    print(
                        f"tinyllm: compiled kernels are kept in {folder}, since no other folder "
                        "can be written; set NUMBA_CACHE_DIR to one that can",
                        file=sys.stderr,
                    )
                return folder
    return None


class KernelCache:
    """What numba's dispatcher asks for one function's machine code, by types of arguments."""

    def __init__(self, function: Callable[..., Any], allocates: bool) -> None:
        self._allocates = allocates
        code = function.__code__
        cells = [cell.cell_contents for cell in function.__closure__ or ()]
        if not all(isinstance(value, PLAIN) for value in cells):
            raise TypeError(f"{function.__qualname__} holds more than numbers: use `uncached`")
        own = Path(code.co_filename)
        text = b"" if own.parent == HERE else own.read_bytes()  # the others are in `key`
        self._name = function.__name__
        self._of = repr((function.__module__, function.__qualname__, code.co_firstlineno, cells))
        self._of += hashlib.sha256(text).hexdigest()

    def file_name(self, signature: Any) -> str:
        """The file of this function for these types."""
        made_of = f"{key()} {self._of} {signature}"
        return f"{self._name}-{hashlib.sha256(made_of.encode()).hexdigest()[:24]}.kernel"

    def holds(self, signature: Any) -> bool:
        """Whether there is a file; it may yet turn out to be damaged."""
        name = self.file_name(signature)
        return any((folder / name).exists() for folder in readable())

    def load_overload(self, signature: Any, target_context: Any) -> Any:
        """The compiled function, or None: then it is compiled.

        numba has all that it can compile at hand first (`refresh`), which takes longer than loading
        does; machine code needs no more than what allocates arrays.
        """
        name = self.file_name(signature)
        for folder in readable():
            try:
                if not is_ours(folder / name):
                    told(folder / name, "isn't used, since others can write there")
                    continue
                data = (folder / name).read_bytes()
            except OSError:
                continue
            try:
                payload = unseal(data, name)
                if self._allocates:
                    nrt.rtsys.initialize(target_context)
                return CompileResult._rebuild(target_context, *pickle.loads(payload))
            except Exception:  # whatever is wrong with it, compiling mends it
                told(folder / name, "is damaged")
                with contextlib.suppress(OSError):
                    (folder / name).unlink()
        return None

    def save_overload(self, signature: Any, result: Any) -> None:
        """Keep it, whole or not at all, where there is a place."""
        folder = writable()
        if folder is None or result.library.has_dynamic_globals:
            return
        name = self.file_name(signature)
        with contextlib.suppress(OSError):
            data = seal(serialize.dumps(result._reduce()), name)
            with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
                file.write(data)
            Path(file.name).replace(folder / name)


def told(path: Path, what: str) -> None:
    """Say what is wrong with a file, and that it does no harm."""
    print(f"tinyllm: the kernel {path} {what}: it is compiled anew", file=sys.stderr)


def seal(payload: bytes, name: str) -> bytes:
    """The contents of a file."""
    return hashlib.sha256(name.encode() + payload).digest() + payload


def unseal(data: bytes, name: str) -> bytes:
    """What was sealed under this name. Raises ValueError if it isn't that, or not whole."""
    payload = data[32:]
    if data[:32] != hashlib.sha256(name.encode() + payload).digest():
        raise ValueError(f"{name} is damaged")
    return payload
