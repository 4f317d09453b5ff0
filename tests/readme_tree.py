"""The tree in README.md, from each file's first line; `python -m tests.readme_tree` renews it."""

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
TITLES = {
    "inside": "looking inside a forward pass",
    "vision": "from pixels to rows that a language model reads",
    "kernels": "the arithmetic: `reference` defines it, the rest is held to it",
    "engine": "many requests, one model",
    "files": "checkpoint files that are not safetensors",
    "fetch": "where weights come from",
    "api": "HTTP: the chat-completions contract in two dialects",
    "measure": "speed, and what a weight format costs",
    "terminal": "the programs for a terminal",
}


def tree() -> str:
    """Every module of the package with the first line of its docstring."""
    lines = ["server.py" + " " * 19 + first_line(ROOT / "server.py"), "tinyllm/"]
    for place, path in sorted(modules().items(), key=lambda item: _rank(item[0])):
        indent = "  " * (1 + place.count("/"))
        if path.name == "__init__.py":
            lines.append(f"{indent}{path.parent.name + '/':<{26 - len(indent)}}  {TITLES[place]}")
        else:
            lines.append(f"{indent}{path.name:<{26 - len(indent)}}  {first_line(path)}")
    lines += [
        "notebooks/                  nine stories on the real model, from first steps to images",
        "tests/                      mirrors tinyllm/, file by file; naive.py holds loop oracles",
        "weights/                    fetched and converted on your machine; the connector is here",
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


def main() -> None:
    """Put the tree of today into README.md."""
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    readme.write_text(before + BEGIN + tree() + END + rest.partition(END)[2], encoding="utf-8")


if __name__ == "__main__":
    main()
