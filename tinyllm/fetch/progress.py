"""How far a fetch has come: a bar on a terminal, now and then a plain line elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

Report = Callable[[int, int], None]  # (done, total), in any unit
SECONDS_BETWEEN_LINES = 3.0


@contextlib.contextmanager
def progress(label: str, *, in_bytes: bool = False) -> Iterator[Report]:
    """Yield a function to call with (done, total) as work goes on. Writes to stderr."""
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
