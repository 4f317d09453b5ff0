"""Other people's text is shown on a terminal, and not obeyed."""

from __future__ import annotations

import io

import pytest
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from tinyllm.errors import printable
from tinyllm.terminal import console
from tinyllm.terminal.console import Console, progress

EVIL = "a\x1b]0;title\x07b\x1b[2Jc\x9b31md\x08\rz\u202etxt"


@pytest.mark.parametrize("inside", ["text", "table", "panel", "title"])
def test_no_sequence_of_a_text_reaches_the_terminal(inside: str) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120, color_system="truecolor")
    table = Table()
    table.add_column(EVIL)
    table.add_row(EVIL)
    framed, titled = Panel(EVIL), Panel("", title=EVIL)
    shown = {"text": escape(EVIL), "table": table, "panel": framed, "title": titled}
    console.print(shown[inside], style="bold red")
    written = out.getvalue()
    for sequence in ("\x1b]", "\x1b[2J", "\x9b", "\x07", "\x08", "\r", "\u202e"):
        assert sequence not in written
    assert "\x1b[1;31m" in written  # the console's own style


def test_letters_of_all_kinds_pass() -> None:
    text = "日本語 🙂 👩\u200d👩\u200d👧 é\n\tx"
    assert printable(text, keep="\n\t") == text
    assert printable("\x1b\n\ud800") == "\\x1b\\n\\ud800"


def test_a_log_gets_a_line_of_progress_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 0.0, 1.0, 9.9, 10.0, 10.0, 11.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    long = "a [path] of " + 100 * "x"
    with progress("loading") as tell:
        for text in ("too soon", "still", long, "too soon again"):
            tell(text)
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"loading\n{long}\n")
