"""A console that shows other people's text, and doesn't obey it.

Files' names, saved traces and models' answers may hold escape sequences, by which a terminal's
cursor is moved, its title changed, or keys are typed in the user's name. Rich passes them on. Here
they are spelled out, whatever is printed, and only the console's own styles are sequences.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import IO

from rich.console import Console as RichConsole
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment

from tinyllm.errors import printable


class Console(RichConsole):
    """Rich's, with the control characters in texts spelled out."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control is None:
                segment = Segment(printable(segment.text, keep="\n"), segment.style)
            yield segment


PAUSE = 10.0  # seconds between lines of progress where nobody sees one line change


@contextmanager
def progress(first: str) -> Iterator[Callable[[str], None]]:
    """A function that says on standard error how far a long measurement is.

    On a terminal one line changes; elsewhere, in a log, there is a line now and then.
    """
    console = Console(stderr=True)
    if console.is_terminal:
        with console.status(first) as status:
            yield status.update
        return
    said = float("-inf")

    def tell(text: str) -> None:
        nonlocal said
        if time.monotonic() - said >= PAUSE:
            console.print(text, markup=False, highlight=False, soft_wrap=True)
            said = time.monotonic()

    tell(first)
    yield tell


def for_terminal(text: str, out: IO[str]) -> str:
    """A model's text as `out` may have it: spelled out on a terminal, as it is in a file."""
    return printable(text, keep="\n\t") if out.isatty() else text
