"""The access log: one JSON object a line, written by a thread of its own.

A request never waits for the disk: lines queue up to a limit. When the disk is full, or the
queue, lines are dropped and counted, and serving goes on.
"""

from __future__ import annotations

import contextlib
import queue
import sys
import threading
from pathlib import Path
from typing import Any, TextIO

from pydantic_core import to_json

from tinyllm.api.limits import MAX_LOG_LINES


class AccessLog:
    """Writes entries to `target`: a path, "-" for stderr, "off" for nowhere."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._queue: queue.Queue[dict[str, Any] | None] = queue.Queue(MAX_LOG_LINES)
        self._thread: threading.Thread | None = None
        self.dropped = 0

    def check(self) -> None:
        """Raises ValueError if the file can't be opened: now rather than at the first request."""
        if self._target in ("off", "-"):
            return
        try:
            with Path(self._target).open("a", encoding="utf-8"):
                pass
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise ValueError(f"--access-log {self._target}: {reason}") from None

    def start(self) -> None:
        """Start the writer."""
        if self._target == "off":
            return
        if self._target != "-":
            with contextlib.suppress(OSError):
                Path(self._target).touch()
        self._thread = threading.Thread(target=self._write_all, name="access-log", daemon=True)
        self._thread.start()

    def write(self, entry: dict[str, Any]) -> None:
        """Queue one entry. Never blocks, never raises."""
        if self._thread is None:
            return
        try:
            self._queue.put_nowait(entry)
        except queue.Full:
            self.dropped += 1

    def stop(self) -> None:
        """Write what is queued, and end."""
        if self._thread is None:
            return
        try:
            self._queue.put(None, timeout=1)
        except queue.Full:
            return
        self._thread.join(timeout=5)

    def _write_all(self) -> None:
        stream: TextIO | None = sys.stderr if self._target == "-" else None
        while (entry := self._queue.get()) is not None:
            try:
                if stream is None:
                    stream = Path(self._target).open("a", encoding="utf-8")  # noqa: SIM115
                stream.write(to_json(entry, inf_nan_mode="null").decode() + "\n")
                stream.flush()
            except (OSError, ValueError):  # a full disk, or a closed stream
                self.dropped += 1
                if stream is not None and stream is not sys.stderr:
                    _close(stream)
                    stream = None
        if stream is not None and stream is not sys.stderr:
            _close(stream)


def _close(stream: TextIO) -> None:
    """Close what may not want to be closed: what it has buffered can't be written either."""
    with contextlib.suppress(OSError):
        stream.close()
