"""`python server.py`: read the flags, load, serve. See `--help`."""

from __future__ import annotations

import os
import sys

from tinyllm.api.settings import parse

if __name__ == "__main__":
    settings = parse()  # first, so that --help and mistakes needn't wait for numpy and numba

    if settings.backend == "compiled":
        # The kernels have the cores. numpy only helps, with traces: on one thread, so that two of
        # its own don't wait for each other while the kernels run.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

    from tinyllm.api.serve import serve

    sys.exit(serve(settings))
