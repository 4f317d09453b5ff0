"""`tinyllm serve`, which is `python server.py`: read the flags, load, serve."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None, program: str = "server.py") -> int:
    """Serve until told to stop; the exit status.

    Args:
        argv: the flags; default: this process's own.
        program: the name that --help and mistakes are told under.
    """
    # What is made until the server is ready stays: Python would look for garbage in vain.
    gc.disable()
    words = [*(sys.argv[1:] if argv is None else argv), os.environ.get("TINYLLM_BACKEND", "")]
    if not any(word.endswith("reference") for word in words):
        # The kernels have the cores. numpy only helps, with traces: on one thread, so that two of
        # its own don't wait for each other while the kernels run. It reads this as it is imported.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # Before its first class pydantic looks through every installed package for plugins.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "true")

    from tinyllm.api.house.settings import parse

    settings = parse(argv, program=program)  # --help and mistakes needn't wait for the rest

    from tinyllm.api.house.serve import serve

    return serve(settings)
