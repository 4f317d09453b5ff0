"""`python -m tinyllm` is the `tinyllm` command."""

from tinyllm.cli import main

main()
