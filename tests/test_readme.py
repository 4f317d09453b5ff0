"""README.md tells the truth about the tree and the commands."""

from __future__ import annotations

import re

from tests.readme_tree import BEGIN, END, ROOT, first_line, modules, tree

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_tree_is_the_tree_of_today() -> None:
    block = README.partition(BEGIN)[2].partition(END)[0]
    assert block == tree(), "renew it: python -m tests.readme_tree"


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


def test_files_that_the_readme_points_to_exist() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
