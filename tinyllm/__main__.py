"""`python -m tinyllm` is the `tinyllm` command."""

import sys

if sys.version_info < (3, 10):  # noqa: UP036, for this line is what an older Python gets to see
    sys.exit("tinyllm needs Python 3.10 or newer; this is %d.%d" % sys.version_info[:2])  # noqa: UP031

try:
    from tinyllm.terminal.cli import main

    main()
except ModuleNotFoundError as error:
    sys.exit(f"tinyllm: {error.name} is missing; install tinyllm first: pip install .")
