"""The notebooks: what is committed is what a run gives, in order, small, and of no one machine.

Executing them takes minutes, so that part is for `pytest -m notebooks` (CI runs it).
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest

from notebooks.run import execute, notebooks

PATHS = notebooks()
NAMES = [p.stem for p in PATHS]
# Where a run happened: home folders, temporary ones, kernels' cell files, addresses of objects.
MACHINE = re.compile(r"/home/|/root/|/Users/|/tmp/|/work/|ipykernel_|C:\\\\|0x[0-9a-f]{8,}")


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("path", PATHS, ids=NAMES)
def test_the_committed_notebook_was_run_from_top_to_bottom(path: Path) -> None:
    nbformat.validate(read(path))  # type: ignore[no-untyped-call]
    code = [c for c in read(path).cells if c.cell_type == "code"]
    assert [c.execution_count for c in code] == list(range(1, len(code) + 1))
    outputs = [o for c in code for o in c.outputs]
    assert outputs
    for output in outputs:
        assert output.output_type != "error"
        assert output.get("name") != "stderr", output.text
    assert path.stat().st_size < 2**20
    found = MACHINE.search(path.read_text(encoding="utf-8"))
    assert not found, found


@pytest.mark.parametrize("path", PATHS, ids=NAMES)
def test_every_notebook_checks_its_claims_and_asks_to_be_broken(path: Path) -> None:
    cells = read(path).cells
    headings = [
        line.removeprefix("## ")
        for c in cells
        if c.cell_type == "markdown"
        for line in c.source.splitlines()
        if line.startswith("## ")
    ]
    assert "Check" in headings
    assert headings[-1] == "Break it"
    check = next(i for i, c in enumerate(cells) if "## Check" in c.source.splitlines())
    assert cells[check + 1].cell_type == "code"
    assert cells[check + 1].source.count("assert ") >= 3
    assert cells[-1].cell_type == "code"
    # A picture or a table needs no network and no script; an address as text fetches nothing.
    html = [o.data.get("text/html", "") for c in cells for o in c.get("outputs", []) if "data" in o]
    fetched = r"<script|<link|<iframe|(src|href)\s*=\s*[\"']?https?:"
    assert not any(re.search(fetched, text) for text in html)


@pytest.mark.notebooks
@pytest.mark.parametrize("path", PATHS, ids=NAMES)
def test_the_notebook_runs(path: Path, weights_folder: Path) -> None:
    if "gemma3-270m" in path.read_text(encoding="utf-8"):  # whose terms a reader accepts by this
        command = [sys.executable, "-m", "tinyllm", "pull", "gemma3-270m", "--accept-license"]
        subprocess.run(command, check=True, timeout=600)
    execute(path)
