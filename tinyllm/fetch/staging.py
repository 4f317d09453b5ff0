"""A folder appears whole or not at all.

Files are written into a hidden folder beside the destination, flushed to disk, and then renamed
into place: one atomic step. A run that is interrupted removes its folder; a run that is killed
leaves one that the next run removes. A lock file keeps two runs apart.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tinyllm.errors import FetchError


@contextlib.contextmanager
def locked(destination: Path) -> Iterator[None]:
    """Hold the lock of `destination`; waits, and says so, while another process has it."""
    from filelock import FileLock, Timeout  # seldom needed, and long to import

    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(_hidden(destination, ".lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"another process is fetching {destination.name}; waiting …", file=sys.stderr)
            lock.acquire()
    except OSError as error:
        raise FetchError(
            f"{destination.parent} cannot be written ({error.strerror or error}); "
            "set TINYLLM_WEIGHTS to a folder that can"
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def staged(destination: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes `destination` when the block ends without an error.

    Call it with the destination `locked`. What was at the destination before is replaced.
    """
    parent = destination.parent
    for stale in parent.glob(f"{_hidden(destination, '.tmp-').name}*"):
        shutil.rmtree(stale, ignore_errors=True)  # of a run that was killed: we hold its lock

    stage = Path(tempfile.mkdtemp(prefix=_hidden(destination, ".tmp-").name, dir=parent))
    try:
        work = stage / "new"
        work.mkdir()
        yield work
        flush(work)
        if destination.exists():
            destination.rename(stage / "old")
        try:
            work.rename(destination)
        except OSError:
            if (stage / "old").exists():
                (stage / "old").rename(destination)
            raise
        _flush_folder(parent)
    except OSError as error:
        raise FetchError(
            f"{destination} could not be written ({error.strerror or error}); make room, or set "
            "TINYLLM_WEIGHTS to another folder, and run this again"
        ) from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def flush(folder: Path) -> None:
    """Have every file of the folder on disk, readable as the user's umask says.

    A file with another name elsewhere is the user's own, linked: that stays as it is.
    """
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.rglob("*"):
        if path.is_file() and path.stat().st_nlink == 1:
            path.chmod(0o666 & ~mask)  # safetensors writes files that only the owner may read
            with path.open("rb+") as file:
                os.fsync(file.fileno())
    _flush_folder(folder)


def need_disk(folder: Path, nbytes: int) -> None:
    """Raise `FetchError` unless the file system of `folder` has `nbytes` free."""
    free = shutil.disk_usage(folder).free
    if free < nbytes:
        raise FetchError(
            f"{folder} has {free / 1e6:,.0f} MB free and {nbytes / 1e6:,.0f} MB are needed; "
            "make room, or set TINYLLM_WEIGHTS to a folder on a larger disk"
        )


def _hidden(destination: Path, suffix: str) -> Path:
    return destination.with_name(f".{destination.name}{suffix}")


def _flush_folder(folder: Path) -> None:
    """Make renames and new names durable; a system that cannot open folders does without."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
