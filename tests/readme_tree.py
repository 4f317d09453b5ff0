"""The trees in the READMEs, from files' first lines; `python -m tests.readme_tree` renews them."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- tree: python -m tests.readme_tree -->\n```text\n", "```\n<!-- /tree -->"

# The order in which a token meets them; what is not named follows alphabetically.
READING_ORDER = [
    "config", "weights", "tokenizer", "model", "kernels/reference", "kv_cache", "sampler",
    "distribution", "decode", "lm", "compiled", "runner", "prompt", "parts", "errors",
    "inside", "vision", "kernels", "engine", "files", "fetch", "api", "measure", "terminal",
]  # fmt: skip
TITLES = {  # of rooms that don't say it themselves yet
    "api": "HTTP: the chat-completions contract in two dialects.",
}


def tree() -> str:
    """Every module of the package with the first line of its docstring: for tinyllm/README.md."""
    lines = []
    for place, path in sorted(modules().items(), key=lambda item: _rank(item[0])):
        indent = "  " * place.count("/")
        if path.name == "__init__.py":
            name = f"{path.parent.name}/"
            lines.append(f"{indent}{name:<{26 - len(indent)}}  {_title(place, path)}")
        else:
            lines.append(f"{indent}{path.name:<{26 - len(indent)}}  {first_line(path)}")
    return "\n".join(lines) + "\n"


def rooms() -> str:
    """The rooms, a line each: for README.md."""
    lines = [
        f"{'server.py':<20}  {first_line(ROOT / 'server.py')}",
        f"{'tinyllm/*.py':<20}  the transformer alone, in the order in which a token meets it",
    ]
    for place, path in sorted(modules().items(), key=lambda item: _rank(item[0])):
        if "/" not in place and path.name == "__init__.py":
            lines.append(f"  {place + '/':<18}  {_title(place, path)}")
    lines += [
        f"{'notebooks/':<20}  stories on the real model, from first steps to images",
        f"{'tests/':<20}  mirrors tinyllm/, file by file; naive.py holds loop oracles",
        f"{'weights/':<20}  fetched and converted on your machine; the connector is here",
    ]
    return "\n".join(lines) + "\n"


def modules() -> dict[str, Path]:
    """Place ("model", "kernels", "kernels/jit") → file, without the dunder files."""
    found = {}
    for path in (ROOT / "tinyllm").rglob("*.py"):
        place = path.relative_to(ROOT / "tinyllm").with_suffix("")
        if place.name == "__init__" and len(place.parts) > 1:
            found[str(place.parent.as_posix())] = path
        elif not place.name.startswith("__"):
            found[place.as_posix()] = path
    return found


def first_line(path: Path) -> str:
    """The first line of a module's docstring."""
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]


def _rank(place: str) -> tuple[object, ...]:
    top = place.partition("/")[0]
    order = READING_ORDER.index(top) if top in READING_ORDER else len(READING_ORDER)
    # A folder's own line comes before its files, and `reference` first among the kernels.
    return (order, top, "/" in place, place != "kernels/reference", place)


def _title(place: str, path: Path) -> str:
    return first_line(path) or TITLES[place]


# Which tree stands in which file.
TREES = {ROOT / "README.md": rooms, ROOT / "tinyllm" / "README.md": tree}


def main() -> None:
    """Put the trees of today into their files."""
    for path, make in TREES.items():
        before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
        path.write_text(before + BEGIN + make() + END + rest.partition(END)[2], encoding="utf-8")


if __name__ == "__main__":
    main()
