"""`python server.py`: read the flags, load, serve. See `--help`."""

from __future__ import annotations

import sys

from tinyllm.api.serve import serve
from tinyllm.api.settings import parse

if __name__ == "__main__":
    sys.exit(serve(parse()))
