"""The cache of compiled kernels, damaged in ten ways: each is noticed, and mended by compiling."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pytest

from tinyllm.kernels import cache, plain_linear
from tinyllm.kernels.dispatchers import KernelCache
from tinyllm.kernels.packed import _read
from tinyllm.kernels.processor import JIT

pytestmark = pytest.mark.skipif(not JIT, reason="nothing is compiled")

SCRIPT = """
import sys
from pathlib import Path
from tinyllm.kernels import cache, entry
from tinyllm.kernels.machine_code import Kernel
compiled, n = entry.compiled, 0
def counted(*args):
    global n
    n += 1
    return compiled(*args)
entry.compiled = counted
for folder in map(Path, sys.argv[1:]):
    cache.folders = lambda: (folder / f"kernels-{cache.key()}",)
    cache.readable.cache_clear()
    cache.writable.cache_clear()
    log, n = Kernel("tinyllm.kernels.draw", "log"), 0  # nothing is loaded of it
    print(log.bind((0.0,), ())(2.0), n)
"""
DISPATCHED = """
import importlib, sys
from pathlib import Path
from numba.core import event
from tinyllm.kernels import cache, draw
for folder in map(Path, sys.argv[1:]):
    cache.folders = lambda: (folder / f"kernels-{cache.key()}",)
    cache.readable.cache_clear()
    cache.writable.cache_clear()
    importlib.reload(draw)  # functions of which nothing is loaded
    with event.install_recorder("numba:compile") as compiled:
        print(draw.log(2.0), int(bool(compiled.buffer)))
"""
LOG_2 = "0.6931471805599453"
ANEW, LOADED = (LOG_2, 1), (LOG_2, 0)  # its value, and whether it was compiled


def run_all(
    folders: Iterable[Path], script: str = SCRIPT, variables: Mapping[str, str] | None = None
) -> list[tuple[str, int]]:
    """What a fresh process computes with its kernels kept in each, and how many it compiled."""
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, folders)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, **(variables or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line.split() for line in done.stdout.splitlines()]
    return [(value, int(n)) for value, n in lines]


def run(folder: Path) -> tuple[str, int]:
    (found,) = run_all([folder])
    return found


def only_file(folder: Path) -> Path:
    (found,) = folder.glob("kernels-*/log-*.kernel")
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A kernel's file as it should be: where it lies in its folder, and its bytes."""
    folder = tmp_path_factory.mktemp("kernels")
    assert run_all([folder, folder]) == [ANEW, LOADED]
    return only_file(folder).relative_to(folder), only_file(folder).read_bytes()


def placed(folder: Path, path: Path, data: bytes) -> Path:
    """A folder of kernels with these bytes in that place."""
    (folder / path).parent.mkdir(parents=True, mode=0o700)
    (folder / path).write_bytes(data)
    return folder


Damage = Callable[[bytes], bytes]
DAMAGES: dict[str, Damage] = {
    "empty": lambda data: b"",
    "cut short": lambda data: data[:-100],
    "cut in the head": lambda data: data[:20],
    "one bit": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "zeros": lambda data: bytes(len(data)),
    "something else": lambda data: b"not a kernel at all" * 10,
    "longer": lambda data: data + b"\0",
    "sealed under another name": lambda data: cache.seal(data[32:], "another.kernel"),
}


def test_a_damaged_file_is_compiled_anew(whole: tuple[Path, bytes], tmp_path: Path) -> None:
    path, data = whole
    damages: dict[str, Damage] = {
        **DAMAGES,
        "no kernel": lambda data: cache.seal(b"{}\n" + data, path.name),
        "calls what isn't there": lambda data: cache.seal(
            data[32:].replace(b'"calls": []', b'"calls": ["tinyllm_nothing"]'), path.name
        ),
    }
    folders = [placed(tmp_path / name, path, spoil(data)) for name, spoil in damages.items()]
    assert dict(zip(damages, run_all(folders), strict=True)) == dict.fromkeys(damages, ANEW)
    assert run_all(folders) == [LOADED] * len(folders)  # and kept again


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_what_is_no_file_is_taken_away(
    make: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipe in a file's place would be waited for, and a folder never be replaced."""
    monkeypatch.setattr(cache, "readable", lambda: (tmp_path,))
    place, packed = tmp_path / "a.kernel", tmp_path / "q8.safetensors"
    for path in (place, packed):
        make(path)
    assert cache.load("a.kernel", bytes) is None
    assert _read(packed, "digest") is None
    assert not place.exists() and not packed.exists()


def test_a_kernel_called_as_a_function_is_kept_and_mended(tmp_path: Path) -> None:
    """numba's dispatchers have their files beside the entries, and the same care."""
    assert run_all([tmp_path, tmp_path], DISPATCHED) == [ANEW, LOADED]
    path = only_file(tmp_path)
    for data in (path.read_bytes()[:-100], cache.seal(b"\x80\x05N.", path.name)):
        path.write_bytes(data)
        assert run_all([tmp_path, tmp_path], DISPATCHED) == [ANEW, LOADED]


def test_what_others_can_write_is_not_trusted(whole: tuple[Path, bytes], tmp_path: Path) -> None:
    folder = placed(tmp_path / "kernels", *whole)
    path = only_file(folder)
    path.parent.chmod(0o777)
    assert run_all([folder, folder]) == [ANEW, ANEW]  # neither read nor written
    path.parent.chmod(0o755)
    path.chmod(0o666)
    assert run_all([folder, folder]) == [ANEW, LOADED]  # a file alone, too; it was replaced


BY_ENTRY = """
import sys
from pathlib import Path
from tinyllm.kernels import cache
from tinyllm.kernels.drawing import LOG
from tinyllm.kernels.machine_code import compile_beside
BEFORE
print(LOG.bind((0.0,), ())(2.0), int("numba" in sys.modules))
"""  # numba is there only if something was compiled


def test_nowhere_to_write() -> None:
    """A file where the folder would be, and no home: compiled for this process alone."""
    before = 'cache.folders = lambda: (Path("/proc/no/place"),)'
    assert run_all([], BY_ENTRY.replace("BEFORE", before)) == [ANEW]


def test_what_another_process_compiled_is_loaded(tmp_path: Path) -> None:
    before = """
compile_beside(
    {LOG: (2.0,)}, "from tinyllm.kernels.drawing import LOG; LOG.bind((2.0,), ())"
)
"""
    set_up = {"NUMBA_CACHE_DIR": str(tmp_path)}
    assert run_all([], BY_ENTRY.replace("BEFORE", before), set_up) == [LOADED]
    assert only_file(tmp_path / "tinyllm")


def test_sampling_and_looks_are_compiled_by_another_process(tmp_path: Path) -> None:
    """So that no look, the first one of a server's life neither, waits for the compiler."""
    before = """
from tinyllm.kernels import ahead, plain_linear
ahead.prepare_beside()
plain_linear.prepare()
"""
    set_up = {"NUMBA_CACHE_DIR": str(tmp_path)}
    assert run_all([], BY_ENTRY.replace("BEFORE", before), set_up) == [LOADED]
    files = {path.name.split("-")[0] for path in tmp_path.glob("tinyllm/*/*.kernel")}
    assert {"draw", "largest"} <= files
    assert ("rows_times_rows" in files) == plain_linear.ENOUGH_REGISTERS


def test_a_process_that_fails_costs_no_more_than_compiling_here(tmp_path: Path) -> None:
    before = 'compile_beside({LOG: (2.0,)}, "raise SystemExit(1)")'
    set_up = {"NUMBA_CACHE_DIR": str(tmp_path)}
    assert run_all([], BY_ENTRY.replace("BEFORE", before), set_up) == [ANEW]


def test_what_a_kernel_calls_is_compiled_with_it(tmp_path: Path) -> None:
    """One file for all of it; what it calls can still be called from Python."""
    script = """
import numpy as np
import numba.core.event as event
from tinyllm.kernels import draw
u = draw.uniform(np.uint64(1), np.uint64(2), np.uint64(3))
with event.install_recorder("numba:compile") as compiled:
    assert draw._high_product(np.uint64(2**63), np.uint64(6)) == 3
print(u, len(compiled.buffer) // 2)
"""
    ((_, compiled),) = run_all([], script, {"NUMBA_CACHE_DIR": str(tmp_path)})
    files = sorted(path.name.split("-")[0] for path in tmp_path.glob("tinyllm/*/*.kernel"))
    assert (compiled, files) == (1, ["_high_product", "uniform"])


def test_a_file_changes_nothing_that_it_should_not(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="damaged"):
        cache.unseal(cache.seal(b"code", "a"), "b")
    assert cache.unseal(cache.seal(b"code", "a"), "a") == b"code"


def test_a_function_that_holds_more_than_numbers_cannot_be_kept() -> None:
    held = object()

    def function() -> object:
        return held

    with pytest.raises(TypeError, match="holds more than numbers"):
        KernelCache(function)


LARGE = """
import sys
from pathlib import Path
from tinyllm.kernels import cache
from tinyllm.kernels.build import kernel, part
from tinyllm.kernels.machine_code import Kernel
folder = Path(sys.argv[1])
cache.folders = lambda: (folder / f"kernels-{cache.key()}",)

def make(n):
    def large(x):
LINES        return x + n
    return part(large)

two, three = make(2), make(3)

@kernel
def with_two(x):
    return two(x) + two(x + 1)

@kernel
def with_three(x):
    return three(x) + three(x + 1)

for name in sys.argv[2].split(",") if __name__ == "__main__" else ():
    print(CALL, end=" ")
""".replace("LINES", "".join(f"        x = x * x % {p} + 1\n" for p in range(101, 161)))


CALLS = {
    "as a function": "globals()[name](0)",
    "by its entry": "Kernel('large', name).bind((0,), ())(0)",
}


@pytest.mark.parametrize("call", CALLS)
def test_kernels_of_two_processes_are_themselves_in_a_third(tmp_path: Path, call: str) -> None:
    """Their parts' machine code has the same names, where numba counts from 1 in each process."""
    script = tmp_path / "large.py"  # parts too large to be copied into what calls them
    script.write_text(LARGE.replace("CALL", CALLS[call]))

    def run(*names: str) -> list[int]:
        done = subprocess.run(
            [sys.executable, script, tmp_path, ",".join(names)],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
            text=True,
            check=True,
        )
        return [int(value) for value in done.stdout.split()]

    (two,), (three,) = run("with_two"), run("with_three")
    assert three == two + 2
    assert run("with_two", "with_three") == [two, three]
