"""`python server.py`: read the flags, load, serve. See `--help`."""

import sys

if sys.version_info < (3, 10):  # noqa: UP036, for this line is what an older Python gets to see
    sys.exit("server.py needs Python 3.10 or newer; this is %d.%d" % sys.version_info[:2])  # noqa: UP031

if __name__ == "__main__":
    try:
        from tinyllm.terminal.serve import main

        sys.exit(main())
    except ModuleNotFoundError as error:
        sys.exit(f"server.py: {error.name} is missing; install tinyllm first: pip install .")
