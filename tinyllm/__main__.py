"""`python -m tinyllm` is the `tinyllm` command."""

from tinyllm.terminal.cli import main

main()
