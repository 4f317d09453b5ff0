"""Run the notebooks from top to bottom and keep what they show.

    python notebooks/run.py            # all of them
    python notebooks/run.py 03 05      # some

Each is executed in a fresh kernel with the repository's own `tinyllm`; an error in a cell stops the
run and leaves the file as it was. What would differ from run to run for no reason (ids, times of
execution, the Python version) is left out of the file.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent
SECONDS_A_CELL = 300


def notebooks(*numbers: str) -> list[Path]:
    """The notebooks whose names begin with one of these numbers; all without any."""
    return [p for p in sorted(HERE.glob("[0-9]*.ipynb")) if not numbers or p.name[:2] in numbers]


def execute(path: Path) -> nbformat.NotebookNode:
    """Run every cell in order; raises nbclient's CellExecutionError at the first that fails."""
    notebook = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    python_path = [str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    client = NotebookClient(
        notebook,
        timeout=SECONDS_A_CELL,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(HERE)}},
    )
    client.execute(env={**os.environ, "PYTHONPATH": os.pathsep.join(python_path)})
    return notebook


def tidy(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Leave out what differs from run to run."""
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number:02}", {}
        if cell.cell_type == "code":  # progress notes name places of this machine
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook


def main() -> None:
    """Execute the notebooks named on the command line, and save them."""
    for path in notebooks(*sys.argv[1:]):
        start = time.perf_counter()
        nbformat.write(tidy(execute(path)), path)  # type: ignore[no-untyped-call]
        print(f"{path.name}: {time.perf_counter() - start:.0f} s, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
