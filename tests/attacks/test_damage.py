"""What is damaged is named at start and made anew; what can't be written is kept elsewhere."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.attacks.support import ask, chat
from tests.load import servers

pytestmark = pytest.mark.attacks

# Prints where compiled kernels lie, and which of them a server loads.
KERNELS = """
import json, sys, tinyllm
from tinyllm.kernels import ahead, cache
names, unseal = [], cache.unseal
cache.unseal = lambda data, name: names.append(name) or unseal(data, name)
lm = tinyllm.load(sys.argv[1], backend="compiled")
lm.generate("Hi", max_tokens=2)
ahead.prepare()  # the engine's
print(json.dumps([str(cache.readable()[0]), str(cache.temporary()), names]))
"""


@pytest.fixture(scope="module")
def kernels(weights_folder: Path) -> tuple[Path, Path, list[str]]:
    """Their folder, where they would go for want of another, and names, the smallest first."""
    command = [sys.executable, "-c", KERNELS, str(weights_folder)]
    for _ in range(2):  # what the first compiles, the second loads
        ended = subprocess.run(
            command, cwd=servers.ROOT, capture_output=True, text=True, check=True
        )
    folder, temporary, names = json.loads(ended.stdout.splitlines()[-1])
    names.sort(key=lambda name: (Path(folder) / name).stat().st_size)
    return Path(folder), Path(temporary), names


@contextlib.contextmanager
def started(weights: Path, env: Mapping[str, str], *before: str) -> Iterator[servers.Server]:
    """A server in another environment, behind a command that prepares it."""
    port = servers.free_port()
    flags = ("--port", str(port), "--model", str(weights), "--access-log", "off")
    set_env = ["env", *(f"{name}={value}" for name, value in env.items())]
    command = [*before, *set_env, sys.executable, "server.py", *flags, "--kv-cache-mb", "64"]
    server = servers.Server("tinyllm", command, port)
    try:
        server.wait_ready(300)
        yield server
    finally:
        server.close()


def answer(server: servers.Server) -> str:
    status, data = ask(server.port, chat("What is the capital of France?", max_tokens=12))
    assert status == 200
    content: str = json.loads(data)["choices"][0]["message"]["content"]
    return content


def flipped(data: bytes, place: float) -> bytes:
    at = int(place * (len(data) - 1))
    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "one byte": lambda data: data[:1],
    "truncated": lambda data: data[: len(data) // 2],
    "without its last byte": lambda data: data[:-1],
    "longer": lambda data: data + b"\0" * 4096,
    "foreign": lambda data: b"\x7fELF" + b"not a kernel" * 999,
    "zeros": lambda data: bytes(len(data)),
    "a bit in the seal": lambda data: flipped(data, 0.0),
    "a bit in the middle": lambda data: flipped(data, 0.5),
    "a bit at the end": lambda data: flipped(data, 1.0),
}
AT_ONCE = 4  # the smallest kernels; the forward pass would take long to compile


@pytest.mark.parametrize("begin", range(0, len(DAMAGES), AT_ONCE))
def test_damaged_kernels(
    weights_folder: Path, kernels: tuple[Path, Path, list[str]], tmp_path: Path, begin: int
) -> None:
    """Each in another way: all are named, made anew, and good at the next start."""
    folder, _, names = kernels
    mine = tmp_path / "tinyllm" / folder.name
    mine.mkdir(parents=True)
    for name in names:
        shutil.copy(folder / name, mine / name)
    damages = list(DAMAGES.items())[begin : begin + AT_ONCE]
    damaged = dict(zip(names, damages, strict=False))
    assert len(damaged) == len(damages)
    for name, (_, spoil) in damaged.items():
        (mine / name).write_bytes(spoil((mine / name).read_bytes()))
    others, missing = names[AT_ONCE : AT_ONCE + 2]
    (mine / others).chmod(0o666)  # anybody may have put it there
    (mine / missing).unlink()  # another process compiles it, and mends nothing unheard
    env = {"NUMBA_CACHE_DIR": str(tmp_path)}
    with started(weights_folder, env) as server:
        first, log = answer(server), server.log()
    assert "Traceback" not in log
    for name, (damage, _) in damaged.items():
        assert f"{name} is damaged: it is compiled anew" in log, damage
    assert f"{others} isn't used, since others can write there" in log
    with started(weights_folder, env) as server:
        assert answer(server) == first
        assert "damaged" not in server.log() and "isn't used" not in server.log()


@pytest.mark.parametrize("place", [0.02, 0.7])
def test_a_packed_file_with_a_flipped_bit(
    weights_folder: Path, tmp_path: Path, place: float
) -> None:
    for file in weights_folder.iterdir():
        if file.is_file():
            (os.link if _links(file, tmp_path) else shutil.copy)(file, tmp_path / file.name)
    with started(tmp_path, {}) as server:
        first = answer(server)
    [packed] = (tmp_path / ".packed").iterdir()
    data = packed.read_bytes()
    for spoiled, said in (
        (flipped(data, place), "is damaged"),
        (data[: len(data) // 2], "can't be used"),
        (b"", "can't be used"),
    ):
        packed.write_bytes(spoiled)
        with started(tmp_path, {}) as server:
            assert answer(server) == first
            log = server.log()
        assert f"{packed} {said}" in log and "made anew" in log and "Traceback" not in log, log
    assert packed.read_bytes() == data


def _links(file: Path, folder: Path) -> bool:
    """Whether a file can be linked into a folder."""
    return file.stat().st_dev == folder.stat().st_dev


# -- a container: nothing can be written but temporary files, and there is no home ----------------


def contained(kernels: tuple[Path, Path, list[str]]) -> list[str]:
    """A command behind which all is read-only but /mnt, where there are all kernels but one."""
    folder, temporary, names = kernels
    place = Path("/mnt") / temporary.name
    script = (
        "mount -o remount,bind,ro / && mount -t tmpfs tmpfs /mnt && "
        f"mkdir -m 755 {place} && cp {folder}/*.kernel {place} && rm {place}/{names[0]} && "
        'unset NUMBA_CACHE_DIR && exec "$@"'
    )
    alone = [] if os.geteuid() == 0 else ["--map-root-user"]
    return ["unshare", "--mount", *alone, "sh", "-c", script, "sh"]


HOMELESS = {"HOME": "/nonexistent", "TMPDIR": "/mnt", "PYTHONDONTWRITEBYTECODE": "1"}
SAID = "can be written; set NUMBA_CACHE_DIR to one that can"


def test_a_server_that_can_write_nowhere(
    weights_folder: Path, kernels: tuple[Path, Path, list[str]]
) -> None:
    with started(weights_folder, HOMELESS, *contained(kernels)) as server:
        assert answer(server)
        log = server.log()
    assert log.count(SAID) == 1 and "Traceback" not in log, log


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (("chat", "Say hi."), 0),
        (("step", "The capital of France is"), 2),  # it needs a terminal
        (("list",), 0),
        (("pull", "smollm2-135m-instruct"), 0),
        (("rm", "dinov2-small"), 1),
    ],
)
def test_commands_that_can_write_nowhere(
    kernels: tuple[Path, Path, list[str]], words: tuple[str, ...], status: int
) -> None:
    command = [*contained(kernels), "env", *(f"{k}={v}" for k, v in HOMELESS.items())]
    ended = subprocess.run(
        [*command, sys.executable, "-m", "tinyllm", *words],
        cwd=servers.ROOT, capture_output=True, text=True, timeout=200, input="",
    )  # fmt: skip
    said = ended.stdout + ended.stderr
    assert ended.returncode == status, said
    assert "Traceback" not in said and said.count(SAID) <= 1, said
