"""Compiled kernels kept on disk: one file each, used if it is whole and ours, else made again.

A file's name is a hash of all that went into it, and its contents begin with a hash of the rest:
whatever is cut short, mixed up or made for another processor is compiled anew. Machine code is only
taken from where nobody else can put it.

Nothing here needs numba: a process that finds all of its kernels never imports it.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import stat
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TypeVar

import llvmlite
import platformdirs

from tinyllm.kernels import processor

T = TypeVar("T")

HERE = Path(__file__).parent


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
    versions = (sys.version, numba_version(), llvmlite.__version__)
    made_of = (sources_hash(), processor.NAME, processor.target(), versions)
    return hashlib.sha256(repr(made_of).encode()).hexdigest()[:16]


def numba_version() -> bytes:
    """What numba says of its version, read without importing it."""
    found = importlib.util.find_spec("numba")
    if found is None or found.origin is None:
        return b""
    return Path(found.origin).with_name("_version.py").read_bytes()


@cache
def folders() -> tuple[Path, ...]:
    """Where kernels may lie, in the order in which they are looked for there.

    `NUMBA_CACHE_DIR`; the package's own `__pycache__`, where an image or a read-only installation
    has what `tinyllm compile` made; the user's cache folder; and where none of these can be
    written, as for a user without a home, one for temporary files.
    """
    places = [HERE / "__pycache__", Path(platformdirs.user_cache_dir("tinyllm", appauthor=False))]
    if chosen := os.environ.get("NUMBA_CACHE_DIR"):
        places.insert(0, Path(chosen) / "tinyllm")
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


def file_name(name: str, made_of: str) -> str:
    """The file of a kernel that is made of this, beside all that every kernel depends on."""
    return f"{name}-{hashlib.sha256(f'{key()} {made_of}'.encode()).hexdigest()[:24]}.kernel"


def holds(name: str) -> bool:
    """Whether there is such a file; it may yet turn out to be damaged."""
    return any((folder / name).exists() for folder in readable())


def load(name: str, use: Callable[[bytes], T]) -> T | None:
    """What `use` makes of a file's contents; None if there is no file that can be used.

    Whatever is wrong with a file, `use` raising included, is told of, and compiling mends it.
    """
    for folder in readable():
        try:
            if not is_ours(folder / name):
                told(folder / name, "isn't used, since others can write there")
                continue
            if not (folder / name).is_file():  # a folder; or a pipe, which would be waited for
                told(folder / name, "isn't a file")
                remove(folder / name)
                continue
            data = (folder / name).read_bytes()
        except OSError:
            continue
        try:
            return use(unseal(data, name))
        except Exception:
            told(folder / name, "is damaged")
            remove(folder / name)
    return None


def remove(path: Path) -> None:
    """Take away what stands in a file's place, if that can be done; of folders, an empty one."""
    with contextlib.suppress(OSError):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


def save(name: str, payload: bytes) -> None:
    """Keep it, whole or not at all, where there is a place."""
    folder = writable()
    if folder is None:
        return
    with contextlib.suppress(OSError):
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
            file.write(seal(payload, name))
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
