"""README.md tells the truth about the tree and the commands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.readme_tree import BEGIN, END, ROOT, TREES, first_line, modules

README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", TREES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_tree_is_the_tree_of_today(path: Path) -> None:
    block = path.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    assert block == TREES[path](), "renew it: python -m tests.readme_tree"


def test_the_readme_is_read_in_one_sitting() -> None:
    assert len(README.splitlines()) <= 160


def test_every_module_says_in_one_line_what_it_is() -> None:
    silent = [
        place for place, path in modules().items()
        if path.name != "__init__.py" and not first_line(path)
    ]  # fmt: skip
    assert silent == []


def test_the_two_commands_come_first() -> None:
    commands = re.findall(r"```console\n(.*?)\n```", README, re.DOTALL)
    assert commands[0] == "pip install . && python server.py"
    assert commands[1] == 'pip install -e ".[test]" && pytest'


@pytest.mark.parametrize(
    "path", [*ROOT.glob("*.md"), *ROOT.glob("tinyllm/**/*.md"), *ROOT.glob("notebooks/*.md")],
    ids=lambda path: str(path.relative_to(ROOT)),
)  # fmt: skip
def test_files_that_are_pointed_to_exist(path: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8"))
    assert [link for link in links if not (path.parent / link).exists()] == []
