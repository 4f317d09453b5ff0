"""The cache of compiled kernels, damaged in ten ways: each is noticed, and mended by compiling."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tinyllm.kernels import cache
from tinyllm.kernels.processor import JIT

pytestmark = pytest.mark.skipif(not JIT, reason="nothing is compiled")

SCRIPT = """
from numba.core import event
from tinyllm.kernels import cache
only = cache.folders()[:1]  # NUMBA_CACHE_DIR, and not the package's own
cache.folders = lambda: only
from tinyllm.kernels import draw
with event.install_recorder("numba:compile") as compiled:
    print(draw.log(2.0))
print(len(compiled.buffer))
"""


def run(folder: Path, script: str = SCRIPT, **more: str) -> tuple[str, int]:
    """What a fresh process computes with its kernels kept there, and how many it compiled."""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "NUMBA_CACHE_DIR": str(folder), **more},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    value, n = done.stdout.split()
    return value, int(n)


def only_file(folder: Path) -> Path:
    (found,) = (folder / "tinyllm").glob("kernels-*/log-*.kernel")
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A kernel's file as it should be."""
    folder = tmp_path_factory.mktemp("kernels")
    assert run(folder) == ("0.6931471805599453", 2)  # begin and end
    assert run(folder) == ("0.6931471805599453", 0)
    return only_file(folder).read_bytes()


DAMAGES = {
    "empty": lambda data: b"",
    "cut short": lambda data: data[:-100],
    "cut in the head": lambda data: data[:20],
    "one bit": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "zeros": lambda data: bytes(len(data)),
    "something else": lambda data: b"not a kernel at all" * 10,
    "longer": lambda data: data + b"\0",
    "sealed under another name": lambda data: cache.seal(data[32:], "another.kernel"),
}


@pytest.mark.parametrize("damage", list(DAMAGES))
def test_a_damaged_file_is_compiled_anew(whole: bytes, tmp_path: Path, damage: str) -> None:
    run(tmp_path)
    path = only_file(tmp_path)
    path.write_bytes(DAMAGES[damage](whole))
    value, compiled = run(tmp_path)
    assert (value, compiled) == ("0.6931471805599453", 2)
    assert run(tmp_path)[1] == 0  # and kept again


def test_what_is_sealed_but_no_kernel_is_compiled_anew(whole: bytes, tmp_path: Path) -> None:
    run(tmp_path)
    path = only_file(tmp_path)
    path.write_bytes(cache.seal(b"\x80\x05N.", path.name))  # a pickled None
    assert run(tmp_path)[1] == 2
    assert run(tmp_path)[1] == 0


def test_what_others_can_write_is_not_trusted(tmp_path: Path) -> None:
    run(tmp_path)
    path = only_file(tmp_path)
    path.parent.chmod(0o777)
    assert run(tmp_path)[1] == run(tmp_path)[1] == 2  # neither read nor written
    path.parent.chmod(0o755)
    path.chmod(0o666)
    assert run(tmp_path)[1] == 2  # a file alone, too
    assert run(tmp_path)[1] == 0  # it was replaced


def test_nowhere_to_write(tmp_path: Path) -> None:
    """A file where the folder would be, and no home: compiled for this process alone."""
    script = """
import numba.core.event as event
from pathlib import Path
from tinyllm.kernels import cache, draw
cache.folders = lambda: (Path("/proc/no/place"),)
with event.install_recorder("numba:compile") as compiled:
    print(draw.log(2.0))
print(len(compiled.buffer))
"""
    assert run(tmp_path, script) == ("0.6931471805599453", 2)


def test_a_file_changes_nothing_that_it_should_not(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="damaged"):
        cache.unseal(cache.seal(b"code", "a"), "b")
    assert cache.unseal(cache.seal(b"code", "a"), "a") == b"code"


def test_a_function_that_holds_more_than_numbers_cannot_be_kept() -> None:
    held = object()

    def function() -> object:
        return held

    with pytest.raises(TypeError, match="holds more than numbers"):
        cache.KernelCache(function)
