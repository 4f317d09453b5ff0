"""`tinyllm serve`, which is `python server.py`: read the flags, load, serve."""

from __future__ import annotations

import os
from collections.abc import Sequence

from tinyllm.api.house.settings import parse


def main(argv: Sequence[str] | None = None, program: str = "server.py") -> int:
    """Serve until told to stop; the exit status.

    Args:
        argv: the flags; default: this process's own.
        program: the name that --help and mistakes are told under.
    """
    settings = parse(argv, program=program)  # first: --help and mistakes needn't wait for numpy

    if settings.backend == "compiled":
        # The kernels have the cores. numpy only helps, with traces: on one thread, so that two of
        # its own don't wait for each other while the kernels run.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

    from tinyllm.api.house.serve import serve

    return serve(settings)
