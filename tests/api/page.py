"""The tables of the API's page, from the code that they tell of; `python -m tests.api.page`."""

from __future__ import annotations

import re
from pathlib import Path

from tinyllm.api import limits
from tinyllm.api.contract import endpoints

PAGE = Path(__file__).parent.parent.parent / "tinyllm" / "api" / "README.md"
LIMIT = re.compile(r"([A-Z]\w+) = (.*?)  # (.*)")


def limits_table() -> str:
    """Each line of limits.py as a row, in Markdown; sections in the first column."""
    lines = ["| | at most | of what, and why |", "|---|---|---|"]
    section = ""
    for line in Path(limits.__file__).read_text(encoding="utf-8").splitlines():
        if line.startswith("# -- "):
            section = line[5:]
        elif found := LIMIT.fullmatch(line):
            name, _, why = found.groups()
            lines.append(f"| {section} | {_shown(getattr(limits, name))} | {why} |")
            section = ""
    return "\n".join(lines) + "\n"


def _shown(value: float) -> str:
    """A limit as one writes it: 4 MiB, 2,048, 2⁶³ - 1."""
    if value == limits.MAX_INT:
        return "2⁶³ - 1"
    for unit in ("GiB", "MiB", "KiB"):
        if value >= getattr(limits, unit) and value % getattr(limits, unit) == 0 and value > 16_384:
            return f"{value // getattr(limits, unit)} {unit}"
    return f"{value:,g}" if value < 100_000 else f"{value:,}"


TABLES = {"endpoints": endpoints.table, "limits": limits_table}


def block(name: str, text: str) -> tuple[str, str, str]:
    """What stands before a table, the table, and what stands behind it."""
    begin, end = f"<!-- {name}: python -m tests.api.page -->\n", f"<!-- /{name} -->"
    before, _, rest = text.partition(begin)
    table, _, after = rest.partition(end)
    return before + begin, table, end + after


def main() -> None:
    """Renew every table."""
    text = PAGE.read_text(encoding="utf-8")
    for name, make in TABLES.items():
        before, _, after = block(name, text)
        text = before + make() + after
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
