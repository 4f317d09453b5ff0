"""How far a fetch has come: a bar on a terminal, a plain line now and then, and for /health."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

Report = Callable[[int, int], None]  # (done, total), in any unit
SECONDS_BETWEEN_LINES = 3.0


@dataclass
class UnderWay:
    """Work that goes on now. `done` and `total` are in any unit; 0 of 0 before the first report."""

    label: str
    started: float  # time.monotonic()
    done: int = 0
    total: int = 0

    def seconds_left(self) -> float | None:
        """As long as the rest takes at the pace so far; None before anything is done."""
        if not self.done:
            return None
        return (time.monotonic() - self.started) * (self.total - self.done) / self.done


under_way: list[UnderWay] = []
"""What is fetched or converted now, for `/health` to tell; usually nothing."""


@contextlib.contextmanager
def progress(label: str, *, in_bytes: bool = False) -> Iterator[Report]:
    """Yield a function to call with (done, total) as work goes on. Writes to stderr."""
    work = UnderWay(label, time.monotonic())
    under_way.append(work)

    def both(done: int, total: int) -> None:
        work.done, work.total = done, total
        report(done, total)

    try:
        with _shown(label, in_bytes) as report:
            yield both
    finally:
        under_way.remove(work)


@contextlib.contextmanager
def _shown(label: str, in_bytes: bool) -> Iterator[Report]:
    """Where a person reads it."""
    # Imported only when something is fetched: a model that is there runs without.
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TaskProgressColumn, TextColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _plain(label)
        return
    columns = [TextColumn("{task.description}"), BarColumn()]
    columns.append(DownloadColumn() if in_bytes else TaskProgressColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _plain(label: str) -> Report:
    print(f"{label} …", file=sys.stderr, flush=True)
    shown, when = 0, time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal shown, when
        percent = 100 * done // max(total, 1)
        if percent > shown and time.monotonic() > when + SECONDS_BETWEEN_LINES:
            shown, when = percent, time.monotonic()
            print(f"{label} … {percent} %", file=sys.stderr, flush=True)

    return report
