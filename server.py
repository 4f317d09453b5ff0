"""`python server.py`: read the flags, load, serve. See `--help`."""

from __future__ import annotations

import sys

from tinyllm.api.settings import parse

if __name__ == "__main__":
    settings = parse()  # first, so that --help and mistakes needn't wait for numpy and numba

    from tinyllm.api.serve import serve

    sys.exit(serve(settings))
