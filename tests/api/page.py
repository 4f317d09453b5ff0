"""The tables of the API's page, from the code that they tell of; `python -m tests.api.page`."""

from __future__ import annotations

from pathlib import Path

from tinyllm.api.contract import endpoints

PAGE = Path(__file__).parent.parent.parent / "tinyllm" / "api" / "README.md"
TABLES = {"endpoints": endpoints.table}


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
