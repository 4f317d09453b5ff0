"""A console that shows other people's text, and doesn't obey it.

Files' names, saved traces and models' answers may hold escape sequences, by which a terminal's
cursor is moved, its title changed, or keys are typed in the user's name. Rich passes them on. Here
they are spelled out, whatever is printed, and only the console's own styles are sequences.
"""

from __future__ import annotations

from collections.abc import Iterable
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


def for_terminal(text: str, out: IO[str]) -> str:
    """A model's text as `out` may have it: spelled out on a terminal, as it is in a file."""
    return printable(text, keep="\n\t") if out.isatty() else text
