"""Start and stop the servers that are measured: ours, and a peer's."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    """A port that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A server process on a port of its own."""

    def __init__(self, name: str, command: Sequence[str], port: int) -> None:
        self.name = name
        self.port = port
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # as long as the process
        self.process = subprocess.Popen(
            command, stdout=self._log, stderr=subprocess.STDOUT, cwd=ROOT, env=os.environ
        )

    def wait_ready(self, timeout: float = 300) -> None:
        """Until /health says 200. Raises RuntimeError with the end of the log."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(OSError):
                url = f"http://127.0.0.1:{self.port}/health"
                with urllib.request.urlopen(url, timeout=5) as answer:
                    if answer.status == 200:
                        return
            time.sleep(0.05)
        self.stop(signal.SIGKILL)
        raise RuntimeError(f"{self.name} didn't get ready:\n{self.log()[-3000:]}")

    def log(self) -> str:
        """Everything it has printed."""
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    @property
    def rss(self) -> int:
        """Resident memory, in bytes."""
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def stop(self, how: signal.Signals = signal.SIGTERM, timeout: float = 30) -> int:
        """Send a signal and wait; returns the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(how)
            try:
                self.process.wait(timeout)
            except subprocess.TimeoutExpired:
                self.process.kill()
        return self.process.wait()

    def close(self) -> None:
        """Stop it and let go of its log."""
        self.stop()
        self._log.close()


@contextlib.contextmanager
def tinyllm(*options: str, port: int = 0) -> Iterator[Server]:
    """Our server, ready."""
    port = port or free_port()
    command = [sys.executable, "server.py", "--port", str(port), *options]
    if "--access-log" not in options:
        command += ["--access-log", "off"]
    server = Server("tinyllm", command, port)
    try:
        server.wait_ready()
        yield server
    finally:
        server.close()


@contextlib.contextmanager
def llama_server(binary: str, model: str, slots: int, threads: int) -> Iterator[Server]:
    """llama.cpp's server with as many slots as ours has rows, ready."""
    port = free_port()
    command = [
        *(binary, "-m", model, "--host", "127.0.0.1", "--port", str(port)),
        *("-t", str(threads), "-tb", str(threads), "-np", str(slots), "-c", str(slots * 2048)),
    ]
    server = Server("llama-server", command, port)
    try:
        server.wait_ready()
        yield server
    finally:
        server.close()
